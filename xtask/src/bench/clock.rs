//! Processor time: what the work costs, whatever else the machine does meanwhile.

use std::time::Duration;

use anyhow::{Context, Result};

/// Processor time of this thread since it began. From `schedstat`, whose first number is
/// nanoseconds on a processor.
pub fn thread_time() -> Result<Duration> {
    read("/proc/thread-self/schedstat")
}

fn read(path: &str) -> Result<Duration> {
    let text = std::fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
    let nanoseconds = text.split_whitespace().next().and_then(|number| number.parse().ok());
    Ok(Duration::from_nanos(nanoseconds.with_context(|| format!("{path} has no time in it"))?))
}
