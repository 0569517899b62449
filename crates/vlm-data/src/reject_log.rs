//! Writes the file `rejected.jsonl`, which lists every rejected row once.

use std::collections::{BTreeMap, HashSet};
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use crate::error::DataError;
use crate::reject::{RejectReason, Rejected};

/// Appends rejected rows to a file of JSON lines, each row once, in however many epochs it is read.
#[derive(Debug)]
pub struct RejectLog {
    path: PathBuf,
    file: File,
    written: HashSet<usize>,
    by_reason: BTreeMap<RejectReason, usize>,
}

impl RejectLog {
    /// Opens or creates the log. Rows that it already lists, for example after resuming, are not
    /// written again.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn open(path: &Path) -> Result<Self, DataError> {
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .read(true)
            .open(path)
            .map_err(DataError::io(path, "open the log of rejected rows"))?;
        let (mut written, mut by_reason) = (HashSet::new(), BTreeMap::new());
        let mut ends_mid_line = false;
        let mut reader = BufReader::new(&file);
        let mut line = Vec::new();
        loop {
            line.clear();
            let read = reader
                .read_until(b'\n', &mut line)
                .map_err(DataError::io(path, "read the log of rejected rows"))?;
            if read == 0 {
                break;
            }
            ends_mid_line = line.last() != Some(&b'\n');
            // A line that a crash left incomplete does not parse: its row is written again.
            if let Ok(rejected) = serde_json::from_slice::<Rejected>(&line) {
                let is_new = written.insert(rejected.row);
                *by_reason.entry(rejected.reason).or_default() += usize::from(is_new);
            }
        }
        if ends_mid_line {
            file.write_all(b"\n").map_err(DataError::io(path, "write the log of rejected rows"))?;
        }
        Ok(Self { path: path.to_owned(), file, written, by_reason })
    }

    /// Appends the row unless it is already listed, and returns whether it was new.
    ///
    /// # Errors
    /// A file that cannot be written.
    pub fn record(&mut self, rejected: &Rejected) -> Result<bool, DataError> {
        if self.written.contains(&rejected.row) {
            return Ok(false);
        }
        let mut line = serde_json::to_vec(rejected).map_err(|e| {
            DataError::content(&self.path, format!("cannot write {rejected:?}: {e}"))
        })?;
        line.push(b'\n');
        // Each line is written by one call, so that another process that appends to the file cannot
        // split it.
        self.file
            .write_all(&line)
            .map_err(DataError::io(&self.path, "write the log of rejected rows"))?;
        self.written.insert(rejected.row);
        *self.by_reason.entry(rejected.reason).or_default() += 1;
        Ok(true)
    }

    /// Number of rows in the log.
    pub fn len(&self) -> usize {
        self.written.len()
    }

    /// Number of rejected rows by reason.
    pub fn by_reason(&self) -> &BTreeMap<RejectReason, usize> {
        &self.by_reason
    }

    /// Whether no row was rejected yet.
    pub fn is_empty(&self) -> bool {
        self.written.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reject::RejectReason;

    fn rejected(row: usize) -> Rejected {
        Rejected {
            row,
            location: format!("a.jsonl:{}", row + 1),
            reason: RejectReason::MissingImage,
            detail: "no file \"x.jpg\"".into(),
        }
    }

    #[test]
    fn a_row_is_written_once_even_by_a_reopened_log() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rejected.jsonl");
        let mut log = RejectLog::open(&path).unwrap();
        assert!(log.record(&rejected(3)).unwrap());
        assert!(!log.record(&rejected(3)).unwrap());
        drop(log);
        std::fs::write(&path, format!("{}{{\"row\":", std::fs::read_to_string(&path).unwrap()))
            .unwrap();
        let mut log = RejectLog::open(&path).unwrap();
        assert!(!log.record(&rejected(3)).unwrap());
        assert!(log.record(&rejected(4)).unwrap());
        assert_eq!(log.len(), 2);
        assert_eq!(log.by_reason(), &BTreeMap::from([(RejectReason::MissingImage, 2)]));
        let text = std::fs::read_to_string(&path).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].contains(r#""reason":"missing-image""#), "{text}");
        assert_eq!(serde_json::from_str::<Rejected>(lines[2]).unwrap(), rejected(4));
    }
}
