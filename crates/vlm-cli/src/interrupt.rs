//! Ctrl-C and SIGTERM: the first asks for a clean end, the second ends at once.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Whoever ends a whole job (a batch system, a terminal that closes) may signal us and our launcher,
/// which passes it on, or send two kinds of signal: what follows the first so soon is one request.
const ONE_REQUEST: Duration = Duration::from_millis(500);

/// A flag that the first signal sets.
pub fn flag() -> anyhow::Result<Arc<AtomicBool>> {
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
        // A launcher that was killed no longer listens, and that must not stop the saving.
        let notice = "stopping: the present update is finished and saved; once more ends at once\n";
        let _ = std::io::stderr().write_all(notice.as_bytes());
    })?;
    Ok(stop)
}
