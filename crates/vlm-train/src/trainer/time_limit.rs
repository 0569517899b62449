//! Ends a run before its time limit, early enough for the last checkpoint to be written.

use std::time::{Duration, Instant};

/// The part of the limit that is always kept for the last checkpoint, at most [`MAX_RESERVE`].
const RESERVE: u32 = 10;
/// The longest time that is kept before the first checkpoint shows how long one takes.
const MAX_RESERVE: Duration = Duration::from_secs(60);

/// Determines when a run must end.
#[derive(Debug)]
pub(super) struct TimeLimit {
    limit: Option<Duration>,
    /// Start of the current update.
    update_began: Instant,
    longest_update: Duration,
}

impl TimeLimit {
    pub(super) fn new(limit: Option<Duration>) -> Self {
        Self { limit, update_began: Instant::now(), longest_update: Duration::ZERO }
    }

    /// Records that an update begins.
    pub(super) fn begin_update(&mut self) {
        self.update_began = Instant::now();
    }

    /// Records that an update ended.
    pub(super) fn end_update(&mut self) {
        self.longest_update = self.longest_update.max(self.update_began.elapsed());
    }

    /// Whether the run must end after the update that now begins, `elapsed` after its start. Room is
    /// left for this update and one more, and for a checkpoint that is being written and the last
    /// one, each of which may take as long as the longest so far (`longest_save`).
    pub(super) fn is_near(&self, elapsed: Duration, longest_save: Duration) -> bool {
        let Some(limit) = self.limit else { return false };
        let reserve = 2 * (self.longest_update + longest_save);
        elapsed + reserve.max((limit / RESERVE).min(MAX_RESERVE)) >= limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_run_ends_early_enough_for_an_update_and_two_saves() {
        let secs = Duration::from_secs;
        let mut limit = TimeLimit::new(Some(secs(3_600)));
        assert!(!limit.is_near(secs(3_539), secs(0)));
        assert!(limit.is_near(secs(3_540), secs(0)));
        limit.longest_update = secs(20);
        assert!(!limit.is_near(secs(3_359), secs(100)));
        assert!(limit.is_near(secs(3_360), secs(100)));
        assert!(!TimeLimit::new(None).is_near(secs(1 << 40), secs(1)));
        assert!(TimeLimit::new(Some(secs(20))).is_near(secs(18), secs(0)));
    }
}
