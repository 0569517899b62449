//! Shortens the busy waiting of OpenMP threads.
//!
//! The threads of libgomp synchronise thousands of times in a training step, and wait for each
//! other in a busy loop of 300,000 iterations by default (3.6 ms, measured). When another program
//! uses one of the cores, the threads on the other cores waste their time at every synchronisation,
//! and a step may take ten times as long. A thirtieth of the iterations costs nothing on an idle
//! machine, and frees the cores soon enough on a busy one.

use std::env;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// The environment variable for the number of iterations, and the value that it gets.
const SPIN_COUNT: (&str, &str) = ("GOMP_SPINCOUNT", "10000");

/// Executes this program again with a shorter busy loop, because libgomp reads its settings when it
/// is loaded, before `main`. Does nothing if the user has set one of the variables, or for a single
/// thread.
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
    tracing::debug!("the busy waiting of OpenMP threads could not be shortened: {error}");
}
