//! The output of the ranks. It is forwarded line by line, so that lines of different ranks do not
//! mix, and the last lines are kept for the report of a failure.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Number of last lines that are kept for each rank.
const NUM_LAST_LINES: usize = 12;
/// Largest number of bytes that are forwarded at once; longer lines are split.
const MAX_LINE: u64 = 64 << 10;

/// The last lines that a rank printed, on both of its streams.
#[derive(Debug, Clone, Default)]
pub struct LastLines(Arc<Mutex<VecDeque<String>>>);

impl LastLines {
    fn push(&self, line: &[u8]) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == NUM_LAST_LINES {
            lines.pop_front();
        }
        lines.push_back(String::from_utf8_lossy(line).trim_end().to_owned());
    }

    /// The lines, oldest first.
    pub fn get(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

/// Prefix of the lines of a rank; empty for rank 0.
pub fn prefix(rank: usize) -> String {
    if rank == 0 { String::new() } else { format!("[rank {rank}] ") }
}

/// Prints a line of the launcher on standard error.
pub fn print_line(text: &str) {
    // An error is ignored: the reader may have closed the pipe.
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Forwards the lines of a stream until it ends. `open` returns the writer for a line.
pub fn forward_lines<W: Write + 'static>(
    stream: impl Read + Send + 'static,
    prefix: String,
    last_lines: LastLines,
    open: fn() -> W,
) -> JoinHandle<()> {
    thread::spawn(move || {
        let mut stream = BufReader::new(stream);
        let mut line = Vec::new();
        loop {
            line.clear();
            match stream.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) {
                Ok(0) | Err(_) => return,
                Ok(_) => {}
            }
            if line.last() != Some(&b'\n') {
                line.push(b'\n');
            }
            last_lines.push(&line);
            // A closed pipe behind this launcher (`| head`) must not stop the ranks, so the error
            // is ignored.
            let _ = open().write_all(&[prefix.as_bytes(), &line].concat());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    static WRITTEN: Mutex<Vec<u8>> = Mutex::new(Vec::new());

    struct TestWriter;

    impl Write for TestWriter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            WRITTEN.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_has_the_rank_as_prefix_and_the_last_lines_are_kept() {
        let text: String = (0..20).map(|n| format!("line {n}\n")).collect();
        let last_lines = LastLines::default();
        let stream = std::io::Cursor::new(text + "no end");
        forward_lines(stream, prefix(3), last_lines.clone(), || TestWriter).join().unwrap();
        let written = String::from_utf8(WRITTEN.lock().unwrap().clone()).unwrap();
        assert_eq!(written.lines().count(), 21);
        assert!(written.lines().all(|line| line.starts_with("[rank 3] ")), "{written}");
        assert!(written.ends_with("[rank 3] no end\n"));
        let last = last_lines.get();
        assert_eq!(last.len(), NUM_LAST_LINES);
        assert_eq!((last[0].as_str(), last[11].as_str()), ("line 9", "no end"));
    }
}
