//! How long the arithmetic's threads wait for each other awake.
//!
//! OpenMP's threads meet thousands of times a step, and spin while they wait: 300,000 rounds of
//! libgomp's, 3.6 ms where that was measured. Where another program has one of the cores for a
//! while, the threads on the others spin their time away at every meeting, and a step may take ten
//! times as long. A thirtieth of that costs nothing on a quiet machine, and on a crowded one the
//! cores are given away in time.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// libgomp's setting, and what it is set to.
const SPIN_COUNT: (&str, &str) = ("GOMP_SPINCOUNT", "10000");

/// Starts this program anew in its own place, with less spinning: libgomp reads its settings as it
/// is loaded, before any of ours runs. Settings of the user's are left as they are, and a single
/// thread waits for nobody.
pub fn limit() {
    let is_set = |name| env::var_os(name).is_some();
    let is_alone = env::var_os("OMP_NUM_THREADS").is_some_and(|threads| threads == "1");
    if is_set(SPIN_COUNT.0) || is_set("OMP_WAIT_POLICY") || is_alone {
        return;
    }
    let mut words = env::args_os();
    let Some(name) = words.next() else { return };
    // Returns only when it fails, and then all goes on as it was.
    let error = Command::new("/proc/self/exe")
        .arg0(name)
        .args(words)
        .env(SPIN_COUNT.0, SPIN_COUNT.1)
        .exec();
    tracing::debug!("threads spin as long as libgomp has them: {error}");
}
