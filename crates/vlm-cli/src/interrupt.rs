//! Ctrl-C and SIGTERM: the first asks for a clean end, the second ends at once.

use std::io::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// A flag that the first signal sets.
pub fn flag() -> anyhow::Result<Arc<AtomicBool>> {
    let stop = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&stop);
    ctrlc::set_handler(move || {
        if seen.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        // A launcher that was killed no longer listens, and that must not stop the saving.
        let notice = "stopping: the present update is finished and saved; once more ends at once\n";
        let _ = std::io::stderr().write_all(notice.as_bytes());
    })?;
    Ok(stop)
}
