//! Processor time, which does not depend on what else runs on the machine.

use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time that this thread has used since it started: the first number in `schedstat`, in
/// nanoseconds.
pub fn thread_time() -> Result<Duration> {
    read("/proc/thread-self/schedstat")
}

fn read(path: &str) -> Result<Duration> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let nanoseconds = text.split_whitespace().next().and_then(|number| number.parse().ok());
    Ok(Duration::from_nanos(
        nanoseconds.with_context(|| format!("{path}: expected a time in nanoseconds"))?,
    ))
}
