//! How the command ends: its exit code, its last words, its log.

use std::io::{self, Write};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use vlm_config::ConfigError;
use vlm_data::DataError;
use vlm_infer::{ErrorKind, InferError};
use vlm_model::weights::WeightsError;
use vlm_model::{ModelError, ShapeError};
use vlm_train::{TrainError, is_out_of_memory, out_of_memory_message};

use crate::console;
use crate::error::CliError;

/// 0 for success, 2 for what the user asked wrongly, 1 for what failed while running.
pub fn code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => match console::failure() {
            Some(failure) => {
                eprintln!("error: {failure}");
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        },
        // Whoever read our output has read enough.
        Err(error) if has_io_error(&error, |e| e.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let told = told_once(&error);
            let told = vlm_config::with_flags(&out_of_memory_message(&told).unwrap_or(told));
            let hint = flag_hint(&error);
            eprintln!("error: {}{hint}", with_long_words_cut(&told));
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
    }
}

/// Runs a command. Memory that runs out in a tensor operation is a panic of `tch`, and an error here.
pub fn with_memory_errors(command: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        match text.or_else(|| panic.downcast_ref().copied()) {
            Some(text) if is_out_of_memory(text) => Err(anyhow::anyhow!("{text}")),
            _ => resume_unwind(panic),
        }
    })
}

/// The flag for the setting that a library found at fault.
fn flag_hint(error: &anyhow::Error) -> String {
    let infer = match error.downcast_ref::<TrainError>() {
        Some(TrainError::Infer(error)) => Some(error),
        _ => error.downcast_ref::<InferError>(),
    };
    match infer {
        Some(InferError::Unusable { setting: Some(name), .. }) => format!(" (set by --{name})"),
        _ => String::new(),
    }
}

/// The error and its causes on one line; a cause that the error before it already tells is left
/// out.
fn told_once(error: &anyhow::Error) -> String {
    let mut told = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !told.contains(&cause) {
            told = format!("{told}: {cause}");
        }
    }
    told
}

/// Longest word that an error shows whole: a path, or a value that the user gave.
const MAX_WORD: usize = 300;

/// The text with every longer word cut, and its length told.
fn with_long_words_cut(text: &str) -> String {
    let cut = |word: &str| {
        let length = word.trim_end().chars().count();
        if length <= MAX_WORD {
            return word.to_owned();
        }
        let start: String = word.chars().take(MAX_WORD / 3).collect();
        let end = &word[word.trim_end().len()..];
        format!("{start}… ({length} characters){end}")
    };
    text.split_inclusive(char::is_whitespace).map(cut).collect()
}

fn has_io_error(error: &anyhow::Error, is_meant: impl Fn(&std::io::Error) -> bool) -> bool {
    error.chain().any(|cause| cause.downcast_ref().is_some_and(&is_meant))
}

fn is_usage(error: &anyhow::Error) -> bool {
    // A full or failing disk is not a usage error, also where it affects a file of the user.
    if has_io_error(error, vlm_data::is_disk_failure) {
        return false;
    }
    match error.downcast_ref::<TrainError>() {
        Some(TrainError::Usage(_)) => true,
        Some(TrainError::Data(data)) => is_data_usage(data),
        Some(TrainError::Model(model)) => is_model_usage(model),
        Some(TrainError::Infer(error)) => error.kind() == ErrorKind::Usage,
        Some(_) => false,
        None => {
            error.is::<ConfigError>()
                || matches!(error.downcast_ref(), Some(CliError::Usage(_)))
                || error.downcast_ref::<InferError>().is_some_and(|e| e.kind() == ErrorKind::Usage)
                || error.downcast_ref::<DataError>().is_some_and(is_data_usage)
                || error.downcast_ref().is_some_and(is_model_usage)
                || error.is::<WeightsError>()
                || error.is::<ShapeError>()
        }
    }
}

fn is_model_usage(error: &ModelError) -> bool {
    matches!(error, ModelError::Config(_) | ModelError::Shapes(_))
}

fn is_data_usage(error: &DataError) -> bool {
    !matches!(
        error,
        DataError::TooManyRejected { .. }
            | DataError::WorkerPanic { .. }
            | DataError::Row { .. }
            | DataError::Threads { .. }
            | DataError::Internal(_)
    )
}

/// A panic is this program's own fault. Say so in one line instead of a trace of frames; the exit
/// code is that of a failure.
pub fn report_panics_as_errors() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        // libtorch appends the frames of its own C++ stack.
        let first = text.split("Exception raised from").next().unwrap_or(text).trim();
        let place =
            info.location().map_or(String::new(), |l| format!(" at {}:{}", l.file(), l.line()));
        // Told by whoever catches it: a training run with its parts, `main` without.
        if is_out_of_memory(text) {
            return;
        }
        eprintln!(
            "error: internal error{place}: {first}\n\
             Please report this. Earlier checkpoints are unaffected."
        );
        if std::thread::current().name() == Some("main") {
            std::process::exit(1);
        }
    }));
}

/// Log lines on standard error: `-v` for more, `RUST_LOG` for a choice.
pub fn start_log(verbose: bool) {
    let default = if verbose { "debug" } else { "info" };
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| StandardError)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .without_time()
        .init();
}

/// Standard error for the log. To the log a reader that went away is no failure: it would be reported
/// there again.
struct StandardError;

impl Write for StandardError {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        // A line of the log comes whole. The libraries name settings, and users know flags.
        let line = vlm_config::with_flags(&String::from_utf8_lossy(bytes));
        let _ = std::io::stderr().write_all(line.as_bytes());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_or_failing_disk_is_a_failure_wherever_it_happens() {
        let system = |code: i32| std::io::Error::from_raw_os_error(code);
        let of_rows = |code: i32| DataError::Io {
            path: "rows.jsonl".into(),
            action: "read the rows",
            source: system(code),
        };
        // ENOSPC, EIO, EDQUOT, EFBIG, ESTALE.
        for code in [28, 5, 122, 27, 116] {
            assert!(!is_usage(&of_rows(code).into()), "{code}");
            assert!(!is_usage(&TrainError::Data(of_rows(code)).into()), "{code}");
            let weights = WeightsError::Io { path: "lm.pth".into(), source: system(code) };
            assert!(!is_usage(&weights.into()), "{code}");
        }
        // ENOENT, EACCES.
        for code in [2, 13] {
            assert!(is_usage(&of_rows(code).into()), "{code}");
            let weights = WeightsError::Io { path: "lm.pth".into(), source: system(code) };
            assert!(is_usage(&weights.into()), "{code}");
        }
    }

    #[test]
    fn a_long_value_is_cut_and_its_length_told() {
        let told = with_long_words_cut(&format!("--dtype is {} here", "x".repeat(5000)));
        assert!(told.ends_with("xx… (5000 characters) here") && told.len() < 200, "{told}");
        assert_eq!(with_long_words_cut("a  b\n  c"), "a  b\n  c");
    }
}
