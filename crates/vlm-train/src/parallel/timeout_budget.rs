//! How the timeout of a group operation is divided, so that a rank that hangs is reported before the
//! timeout is over, although finding out about the other ranks takes time itself.

use std::time::Duration;

/// The parts of a timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TimeoutBudget {
    /// How long an operation waits for the other ranks.
    pub wait: Duration,
    /// How long a rank that noticed a failure looks for its cause. Publishing its own error for the
    /// other ranks may take as long again.
    pub report: Duration,
    /// Time between two heartbeats of a rank.
    pub interval: Duration,
}

impl TimeoutBudget {
    /// Divides `timeout` into its parts.
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
            // Enough heartbeats to tell a rank that has ended from one that is slow.
            assert!(3 * interval < report, "{secs} s");
        }
    }
}
