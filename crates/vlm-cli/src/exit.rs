//! The exit code of the command and its error message.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::ExitCode;

use vlm_config::ConfigError;
use vlm_data::DataError;
use vlm_infer::{ErrorKind, InferError};
use vlm_model::weights::WeightsError;
use vlm_model::{ModelError, ShapeError};
use vlm_train::{TrainError, is_out_of_memory, out_of_memory_message};

use crate::console;
use crate::error::CliError;
use crate::log;
use crate::short_errors::shortened;

/// Prints the error, if there is one, and returns the exit code: 0 for success, 2 for a usage
/// error, 1 for any other failure.
pub fn code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => match console::failure() {
            Some(failure) => {
                eprintln!("error: {failure}");
                ExitCode::FAILURE
            }
            None => ExitCode::SUCCESS,
        },
        // The reader of our output has ended, which is not a failure.
        Err(error) if has_io_error(&error, |e| e.kind() == io::ErrorKind::BrokenPipe) => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            let message = error_chain(&error);
            let message = out_of_memory_message(&message).unwrap_or(message);
            let message = vlm_config::with_flags(&message);
            let hint = flag_hint(&error);
            let message = format!("{}{hint}", with_short_words(&message));
            if log::is_json() {
                eprintln!("{}", serde_json::json!({ "level": "ERROR", "message": message }));
            } else {
                eprintln!("error: {message}");
            }
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
    }
}

/// Prints an error of the command line and ends the program. Long arguments are cut.
pub fn of_usage(error: clap::Error) -> ! {
    let error = shortened(error);
    // The text of a value's own parser is not among what clap knows of the error.
    let (text, code) = (error.to_string(), error.exit_code());
    let short = with_short_words(&text);
    if short == text {
        error.exit();
    }
    eprint!("{short}");
    std::process::exit(code)
}

/// Runs a command. When a tensor operation runs out of memory, `tch` panics; this is returned as an
/// error.
pub fn with_memory_errors(command: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    catch_unwind(AssertUnwindSafe(command)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        match text.or_else(|| panic.downcast_ref().copied()) {
            Some(text) if is_out_of_memory(text) => Err(anyhow::anyhow!("{text}")),
            _ => resume_unwind(panic),
        }
    })
}

/// A hint with the flag of the setting that caused the error, or an empty text.
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

/// The error and its sources on one line. A source whose text is already part of the line is
/// omitted.
fn error_chain(error: &anyhow::Error) -> String {
    let mut message = error.to_string();
    for cause in error.chain().skip(1).map(ToString::to_string) {
        if !message.contains(&cause) {
            message = format!("{message}: {cause}");
        }
    }
    message
}

/// Largest number of characters of a word in an error message, such as a path or a value of a flag.
const MAX_WORD: usize = 300;

/// The text with each longer word shortened, and the length of the word in parentheses.
fn with_short_words(text: &str) -> String {
    let short = |word: &str| {
        let (shown, end) = word.split_at(word.trim_end().len());
        if shown.chars().count() <= MAX_WORD {
            return word.to_owned();
        }
        vlm_display::shorten(shown, MAX_WORD / 3) + end
    };
    text.split_inclusive(char::is_whitespace).map(short).collect()
}

/// Whether an I/O error that fulfils `is_wanted` is among the sources of the error.
fn has_io_error(error: &anyhow::Error, is_wanted: impl Fn(&std::io::Error) -> bool) -> bool {
    error.chain().any(|cause| cause.downcast_ref().is_some_and(&is_wanted))
}

fn is_usage(error: &anyhow::Error) -> bool {
    // A full or failing disk is never a usage error, even for a file that the user named.
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

/// Parts of the messages of panics because the system refuses another thread.
const NO_THREAD: [&str; 3] =
    ["ThreadPoolBuildError", "failed to spawn thread", "Resource temporarily unavailable"];

/// Reports panics as internal errors, without a stack trace, and with the exit code of a failure.
pub fn report_panics_as_errors() {
    std::panic::set_hook(Box::new(|info| {
        let payload = info.payload();
        let text = payload
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| payload.downcast_ref::<&str>().copied())
            .unwrap_or("unknown");
        // libtorch appends C++ stack frames to its message.
        let first = text.split("Exception raised from").next().unwrap_or(text).trim();
        let place =
            info.location().map_or(String::new(), |l| format!(" at {}:{}", l.file(), l.line()));
        // Out-of-memory panics, and those of decoders on damaged files, are caught and reported
        // elsewhere.
        if is_out_of_memory(text) || vlm_data::is_panic_caught() {
            return;
        }
        if NO_THREAD.iter().any(|part| text.contains(part)) {
            eprintln!(
                "error: a thread cannot be started ({first}): raise the limit on processes \
                 (ulimit -u) or on memory (ulimit -v), or use fewer threads. Earlier checkpoints \
                 are unaffected."
            );
        } else {
            eprintln!(
                "error: internal error{place}: {first}\n\
                 Please report this. Earlier checkpoints are unaffected."
            );
        }
        if std::thread::current().name() == Some("main") {
            std::process::exit(1);
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_or_failing_disk_is_a_failure_and_a_missing_file_a_usage_error() {
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
    fn a_long_word_is_shortened_and_its_length_is_shown() {
        let text = with_short_words(&format!("--dtype is {} here", "x".repeat(5000)));
        assert!(text.ends_with("xx… (5000 characters) here") && text.len() < 200, "{text}");
        assert_eq!(with_short_words("a  b\n  c"), "a  b\n  c");
    }
}
