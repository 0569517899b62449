//! How long libgomp's threads wait for each other in a busy loop.
//!
//! OpenMP's threads synchronise thousands of times in a training step, and wait in a busy loop:
//! 300,000 rounds by default, 3.6 ms where that was measured. When another program has one of the
//! cores for a while, the threads on the other cores waste their time at every synchronisation, and
//! a step may take ten times as long. A thirtieth of the rounds costs nothing on an idle machine,
//! and frees the cores in time on a busy one.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// libgomp's setting for the rounds of the busy loop, and the value that it gets.
const SPIN_COUNT: (&str, &str) = ("GOMP_SPINCOUNT", "10000");

/// Replaces this process by the same program with a shorter busy loop: libgomp reads its settings
/// when it is loaded, before any of our code runs. Does nothing where the user has chosen a setting,
/// or where there is a single thread.
pub fn limit() {
    let is_set = |name| env::var_os(name).is_some();
    let is_alone = env::var_os("OMP_NUM_THREADS").is_some_and(|threads| threads == "1");
    if is_set(SPIN_COUNT.0) || is_set("OMP_WAIT_POLICY") || is_alone {
        return;
    }
    let mut words = env::args_os();
    let Some(name) = words.next() else { return };
    // `exec` returns only when it fails; the program then runs with the default.
    let error = Command::new("/proc/self/exe")
        .arg0(name)
        .args(words)
        .env(SPIN_COUNT.0, SPIN_COUNT.1)
        .exec();
    tracing::debug!("the busy wait of OpenMP threads keeps its default: {error}");
}
