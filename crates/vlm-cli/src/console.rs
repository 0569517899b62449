//! `print!`, `println!`, `eprint!` and `eprintln!` for programs whose output may go to a pipe. The
//! standard macros panic when the reader of the pipe has ended, as with `| head -1`; with these
//! macros the program continues. Other errors of standard output, such as a full disk, are kept for
//! the exit code.
//!
//! `vlm` and `xtask` share this file. It must be the first module of `main.rs`, because macros can
//! be used only after their definition.

use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};
use std::sync::OnceLock;

/// The first error of standard output.
static FAILURE: OnceLock<String> = OnceLock::new();

/// Writes to standard output and flushes it.
pub fn to_stdout(text: Arguments) {
    let mut stdout = io::stdout().lock();
    let written = stdout.write_fmt(text).and_then(|()| stdout.flush());
    if let Err(error) = written
        && error.kind() != ErrorKind::BrokenPipe
    {
        let _ = FAILURE.set(format!("standard output cannot be written: {error}"));
    }
}

/// Writes to standard error. Errors are ignored, because they could not be reported anywhere.
pub fn to_stderr(text: Arguments) {
    let _ = io::stderr().lock().write_fmt(text);
}

/// The error due to which standard output is incomplete, such as a full disk. A reader that has
/// ended is not an error.
pub fn failure() -> Option<&'static str> {
    FAILURE.get().map(String::as_str)
}

/// As the standard macro, but does not panic.
#[allow(unused_macros)]
macro_rules! print {
    ($($text:tt)*) => { $crate::console::to_stdout(format_args!($($text)*)) };
}

/// As the standard macro, but does not panic.
#[allow(unused_macros)]
macro_rules! println {
    () => { $crate::console::to_stdout(format_args!("\n")) };
    ($($text:tt)*) => { $crate::console::to_stdout(format_args!("{}\n", format_args!($($text)*))) };
}

/// As the standard macro, but does not panic.
#[allow(unused_macros)]
macro_rules! eprint {
    ($($text:tt)*) => { $crate::console::to_stderr(format_args!($($text)*)) };
}

/// As the standard macro, but does not panic.
#[allow(unused_macros)]
macro_rules! eprintln {
    () => { $crate::console::to_stderr(format_args!("\n")) };
    ($($text:tt)*) => { $crate::console::to_stderr(format_args!("{}\n", format_args!($($text)*))) };
}
