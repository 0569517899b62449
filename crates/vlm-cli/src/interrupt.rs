//! Handles signals. The first Ctrl-C or SIGTERM asks for a clean end, the second ends the process.
//! SIGUSR1 asks a training run to save and to continue.

use std::io::{ErrorKind, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use signal_hook::consts::SIGUSR1;
use vlm_train::Requests;

use crate::error::CliError;

/// Signals within this time count as one. A batch system or a closed terminal may send a signal
/// both to this process and to its launcher, which passes it on, or may send two types of signal.
const ONE_REQUEST: Duration = Duration::from_millis(500);

/// Installs the handlers of a training run, and returns what they set.
pub fn requests() -> anyhow::Result<Requests> {
    let requests = Requests { stop: flag()?, ..Requests::default() };
    signal_hook::flag::register(SIGUSR1, Arc::clone(&requests.save))
        .context("listening for SIGUSR1")?;
    Ok(requests)
}

/// Installs the handler of Ctrl-C and SIGTERM, and returns a flag that the first signal sets.
pub fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    flag_with("stopping after saving what is done; send the signal again to end at once\n")
}

/// As [`flag`], with the text that the first signal writes to standard error.
pub fn flag_with(notice: &'static str) -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    let mut first = None;
    ctrlc::set_handler(move || {
        let since: Instant = *first.get_or_insert_with(Instant::now);
        if seen.swap(true, Ordering::Relaxed) {
            if since.elapsed() >= ONE_REQUEST {
                std::process::exit(130);
            }
            return;
        }
        // An error is ignored: if the launcher was killed, standard error is closed, and the run
        // must still be saved.
        let _ = std::io::stderr().write_all(notice.as_bytes());
    })
    .map_err(|error| CliError::Failed(cannot_listen(&error)))?;
    Ok(stop)
}

/// The message for a handler that cannot be installed. It runs in a thread of its own.
fn cannot_listen(error: &ctrlc::Error) -> String {
    // Its own message omits the reason.
    let ctrlc::Error::System(source) = error else {
        return format!("cannot listen for Ctrl-C and SIGTERM: {error}");
    };
    let advice = match source.kind() {
        ErrorKind::WouldBlock | ErrorKind::OutOfMemory => {
            ", because the memory of this machine, the limit on it (`ulimit -v`) or that on \
             processes and threads (`ulimit -u`) is used up; raise the limit, or end other programs"
        }
        _ => "",
    };
    format!("cannot start the thread that listens for Ctrl-C and SIGTERM{advice}: {source}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_cannot_be_started_names_the_limits_to_raise() {
        // EAGAIN and ENOMEM, with which a thread fails to start.
        for code in [11, 12] {
            let error = ctrlc::Error::System(std::io::Error::from_raw_os_error(code));
            let message = cannot_listen(&error);
            for part in ["thread", "Ctrl-C", "memory", "ulimit -v", "ulimit -u", "os error"] {
                assert!(message.contains(part), "{part:?} is not in {message}");
            }
        }
        let error = ctrlc::Error::System(std::io::Error::from_raw_os_error(24));
        let message = cannot_listen(&error);
        assert!(
            message.contains("Too many open files") && !message.contains("ulimit"),
            "{message}"
        );
    }
}
