//! How `--timeout-secs` is spent: a rank that hangs is to be reported before it is over, though
//! finding out about the others takes time itself.

use std::time::Duration;

/// The parts of a timeout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Patience {
    /// How long an operation waits for the other ranks.
    pub wait: Duration,
    /// How long a rank that noticed a failure looks for its cause; leaving word for the others may
    /// take as long again.
    pub report: Duration,
    /// Between two reports of a rank.
    pub interval: Duration,
}

impl Patience {
    /// Divides a timeout.
    pub fn of(timeout: Duration) -> Self {
        let report = (timeout / 8).min(Duration::from_secs(4));
        let interval = (timeout / 40).min(Duration::from_millis(500));
        Self { wait: timeout - 2 * report, report, interval }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_waited_and_looked_for_fits_into_the_timeout() {
        for secs in [1, 2, 8, 30, 600] {
            let timeout = Duration::from_secs(secs);
            let Patience { wait, report, interval } = Patience::of(timeout);
            assert!(wait + 2 * report <= timeout && wait >= timeout * 3 / 4, "{secs} s");
            // Enough looks at the others to tell one that has ended from one that is slow.
            assert!(3 * interval < report, "{secs} s");
        }
    }
}
