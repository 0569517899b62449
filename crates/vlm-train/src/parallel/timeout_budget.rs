//! Divides the timeout of a group operation: after the wait for the other ranks there must be time
//! left to find out which rank hangs, and to report it before the timeout is over.

use std::time::Duration;

/// The durations that a timeout is divided into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeoutBudget {
    /// Longest time that an operation waits for the other ranks.
    pub wait: Duration,
    /// Longest time for finding out the state of the other ranks after a failure. Publishing this
    /// rank's error may take the same time again.
    pub report: Duration,
    /// Time between two heartbeats of a rank.
    pub interval: Duration,
}

impl TimeoutBudget {
    /// Divides `timeout`.
    pub fn new(timeout: Duration) -> Self {
        let report = (timeout / 8).min(Duration::from_secs(4));
        let interval = (timeout / 40).min(Duration::from_millis(500));
        Self { wait: timeout - 2 * report, report, interval }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_and_reporting_fit_into_the_timeout() {
        for secs in [1, 2, 8, 30, 600] {
            let timeout = Duration::from_secs(secs);
            let TimeoutBudget { wait, report, interval } = TimeoutBudget::new(timeout);
            assert!(wait + 2 * report <= timeout && wait >= timeout * 3 / 4, "{secs} s");
            // Enough heartbeats to distinguish a rank that has ended from a slow one.
            assert!(3 * interval < report, "{secs} s");
        }
    }
}
