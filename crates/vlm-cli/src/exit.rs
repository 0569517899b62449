//! How the command ends: its exit code, its last words, its log.

use std::process::ExitCode;

use tracing_subscriber::EnvFilter;
use vlm_data::DataError;
use vlm_model::weights::WeightsError;
use vlm_train::TrainError;

/// 0 for success, 2 for what the user asked wrongly, 1 for what failed while running.
pub fn code(result: anyhow::Result<()>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", told_once(&error));
            ExitCode::from(if is_usage(&error) { 2 } else { 1 })
        }
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

fn is_usage(error: &anyhow::Error) -> bool {
    match error.downcast_ref::<TrainError>() {
        Some(TrainError::Usage(_)) => true,
        Some(TrainError::Data(data)) => is_data_usage(data),
        Some(TrainError::Model(model)) => matches!(model, vlm_model::ModelError::Config(_)),
        Some(TrainError::Failed(_)) => false,
        None => {
            error.downcast_ref::<DataError>().is_some_and(is_data_usage)
                || matches!(error.downcast_ref(), Some(vlm_model::ModelError::Config(_)))
                || error.is::<WeightsError>()
        }
    }
}

fn is_data_usage(error: &DataError) -> bool {
    !matches!(
        error,
        DataError::TooManyRejected { .. } | DataError::WorkerPanic { .. } | DataError::Row { .. }
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
        eprintln!(
            "error: an operation failed that should not have{place}: {first}\n\
             Please report this. What was saved before is as it was."
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
        .with_writer(std::io::stderr)
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .without_time()
        .init();
}
