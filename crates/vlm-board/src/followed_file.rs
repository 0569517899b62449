//! Reads the lines that another process appends to a file, each once.

use std::fs::File;
use std::io::{self, BufRead, BufReader, ErrorKind, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Receives the lines of a [`FollowedFile`].
pub(crate) trait Lines {
    /// Forgets all lines: the file was replaced by another one, as a resumed run does.
    fn clear(&mut self);
    /// Takes line `number`, from 1.
    fn line(&mut self, number: u64, text: &[u8]);
}

/// A file of lines, and how far it was read.
#[derive(Debug)]
pub(crate) struct FollowedFile {
    path: PathBuf,
    /// Device and inode of the file that was read.
    identity: Option<(u64, u64)>,
    /// Number of bytes read: whole lines only.
    offset: u64,
    num_lines: u64,
}

impl FollowedFile {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path, identity: None, offset: 0, num_lines: 0 }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the lines that were added since the last call. A last line without its end is left
    /// until it is whole. Returns whether anything changed; a file that does not exist has not.
    pub(crate) fn read_new(&mut self, lines: &mut impl Lines) -> io::Result<bool> {
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let identity = Some((metadata.dev(), metadata.ino()));
        let mut is_changed = false;
        if self.identity != identity || metadata.len() < self.offset {
            is_changed = self.num_lines > 0;
            *self = Self { identity, ..Self::new(std::mem::take(&mut self.path)) };
            lines.clear();
        }
        if metadata.len() == self.offset {
            return Ok(is_changed);
        }
        let mut reader = BufReader::with_capacity(1 << 16, file);
        reader.seek(SeekFrom::Start(self.offset))?;
        let mut line = Vec::new();
        while reader.read_until(b'\n', &mut line)? > 0 && line.ends_with(b"\n") {
            self.offset += line.len() as u64;
            self.num_lines += 1;
            lines.line(self.num_lines, line.trim_ascii());
            is_changed = true;
            line.clear();
        }
        Ok(is_changed)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[derive(Default)]
    struct Seen(Vec<(u64, String)>);

    impl Lines for Seen {
        fn clear(&mut self) {
            self.0.clear();
        }
        fn line(&mut self, number: u64, text: &[u8]) {
            self.0.push((number, String::from_utf8_lossy(text).into_owned()));
        }
    }

    #[test]
    fn each_line_is_read_once_when_it_is_whole_and_a_replaced_file_from_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.jsonl");
        let mut seen = Seen::default();
        let mut file = FollowedFile::new(path.clone());
        assert!(!file.read_new(&mut seen).unwrap(), "the file does not exist yet");
        let mut writer = File::create(&path).unwrap();
        writer.write_all(b"a\nb\nhal").unwrap();
        assert!(file.read_new(&mut seen).unwrap());
        assert_eq!(seen.0, [(1, "a".into()), (2, "b".into())]);
        assert!(!file.read_new(&mut seen).unwrap(), "the last line is not whole");
        writer.write_all(b"f\n").unwrap();
        assert!(file.read_new(&mut seen).unwrap());
        assert_eq!(seen.0.last(), Some(&(3, "half".into())));
        let other = folder.path().join("other");
        std::fs::write(&other, "new first line\nx\ny\nz\n").unwrap();
        std::fs::rename(&other, &path).unwrap();
        assert!(file.read_new(&mut seen).unwrap());
        assert_eq!((seen.0.len(), seen.0[0].1.as_str()), (4, "new first line"));
        std::fs::write(&path, "c\n").unwrap();
        assert!(file.read_new(&mut seen).unwrap(), "the file is shorter");
        assert_eq!(seen.0, [(1, "c".into())]);
    }
}
