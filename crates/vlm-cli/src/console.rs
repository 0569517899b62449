//! `print!`, `println!`, `eprint!` and `eprintln!` for programs whose output may go into a pipe. The
//! standard ones panic when its reader is gone, as after `| head -1`: with these the program continues
//! without being read. A full disk behind standard output is remembered for the exit code.
//!
//! `vlm` and `xtask` share this file. It must come first in `main.rs`, since macros are known from their
//! definition on.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

/// Why something could not be written to standard output.
static FAILURE: OnceLock<String> = OnceLock::new();

/// Writes to standard output, at once.
pub fn to_stdout(text: Arguments) {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_fmt(text).and_then(|()| stdout.flush());
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = FAILURE.set(format!("standard output cannot be written: {error}"));
    }
}

/// Writes to standard error. There is nobody to tell that it failed.
pub fn to_stderr(text: Arguments) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// Why standard output is not whole, if it is not: a full disk, say. A reader that went away is no
/// failure.
pub fn failure() -> Option<&'static str> {
    FAILURE.get().map(String::as_str)
}

/// The standard macro, without its panic.
#[allow(unused_macros)]
macro_rules! print {
    ($($text:tt)*) => { $crate::console::to_stdout(format_args!($($text)*)) };
}

/// The standard macro, without its panic.
#[allow(unused_macros)]
macro_rules! println {
    () => { $crate::console::to_stdout(format_args!("\n")) };
    ($($text:tt)*) => { $crate::console::to_stdout(format_args!("{}\n", format_args!($($text)*))) };
}

/// The standard macro, without its panic.
#[allow(unused_macros)]
macro_rules! eprint {
    ($($text:tt)*) => { $crate::console::to_stderr(format_args!($($text)*)) };
}

/// The standard macro, without its panic.
#[allow(unused_macros)]
macro_rules! eprintln {
    () => { $crate::console::to_stderr(format_args!("\n")) };
    ($($text:tt)*) => { $crate::console::to_stderr(format_args!("{}\n", format_args!($($text)*))) };
}
