//! Handles signals. The first Ctrl-C or SIGTERM asks for a clean end, the second ends the process.
//! SIGUSR1 asks a training run to save and to continue.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use signal_hook::consts::SIGUSR1;
use vlm_train::Requests;

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
    })?;
    Ok(stop)
}
