//! What ranks print: passed on line by line, so that no two lines mix, and the last ones kept for
//! the report of a failure.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};

/// Lines kept of each rank.
const NUM_LAST_LINES: usize = 12;
/// A line longer than this is passed on in pieces.
const MAX_LINE: u64 = 64 << 10;

/// The last lines of one rank, of both its streams.
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

/// What stands before a rank's lines. Rank 0 speaks for all, its lines stand as they are.
pub fn prefix(rank: usize) -> String {
    if rank == 0 { String::new() } else { format!("[rank {rank}] ") }
}

/// A line of the launcher's own, on standard error.
pub fn say(text: &str) {
    // As below: nobody may be listening any more.
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// Passes on a stream's lines to what `open` gives for each, until the stream ends.
pub fn pass_on<W: Write + 'static>(
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
            // A reader of ours that went away (`| head`) must not stop the ranks: they go on unheard.
            let _ = open().write_all(&[prefix.as_bytes(), &line].concat());
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    static HEARD: Mutex<Vec<u8>> = Mutex::new(Vec::new());

    struct Heard;

    impl Write for Heard {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            HEARD.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn every_line_has_its_rank_in_front_and_the_last_ones_are_kept() {
        let text: String = (0..20).map(|n| format!("line {n}\n")).collect();
        let last_lines = LastLines::default();
        let stream = std::io::Cursor::new(text + "no end");
        pass_on(stream, prefix(3), last_lines.clone(), || Heard).join().unwrap();
        let heard = String::from_utf8(HEARD.lock().unwrap().clone()).unwrap();
        assert_eq!(heard.lines().count(), 21);
        assert!(heard.lines().all(|line| line.starts_with("[rank 3] ")), "{heard}");
        assert!(heard.ends_with("[rank 3] no end\n"));
        let last = last_lines.get();
        assert_eq!(last.len(), NUM_LAST_LINES);
        assert_eq!((last[0].as_str(), last[11].as_str()), ("line 9", "no end"));
    }
}
