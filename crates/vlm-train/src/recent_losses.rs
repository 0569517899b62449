//! The last losses of a run, and their median, with which a sudden rise of the loss is detected.

use serde::{Deserialize, Serialize};

/// Number of losses that are kept.
const WINDOW: usize = 32;
/// Number of losses from which on there is a median.
const MIN_LOSSES: u64 = 8;

/// The last losses of a run. As part of a checkpoint they make a continued run detect the same rises
/// as an uninterrupted one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct RecentLosses {
    // In 32 bits, so that they are read as they were written.
    losses: [f32; WINDOW],
    /// Number of losses since the start.
    count: u64,
}

impl RecentLosses {
    /// Adds a loss. One that is not finite is left out.
    pub(crate) fn add(&mut self, loss: f64) {
        if loss.is_finite() {
            self.losses[self.count as usize % WINDOW] = loss as f32;
            self.count += 1;
        }
    }

    /// The median of the last losses; `None` before there are enough of them.
    pub(crate) fn median(&self) -> Option<f64> {
        if self.count < MIN_LOSSES {
            return None;
        }
        let mut sorted = self.losses[..WINDOW.min(self.count as usize)].to_vec();
        sorted.sort_by(f32::total_cmp);
        let middle = sorted.len() / 2;
        let upper = f64::from(sorted[middle]);
        Some(if sorted.len() % 2 == 1 {
            upper
        } else {
            (upper + f64::from(sorted[middle - 1])) / 2.0
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_that_of_the_last_losses() {
        let mut losses = RecentLosses::default();
        for (k, expected) in [(7, None), (8, Some(4.5)), (9, Some(5.0)), (40, Some(24.5))] {
            while losses.count < k {
                losses.add(losses.count as f64 + 1.0);
                losses.add(f64::NAN);
            }
            assert_eq!(losses.median(), expected, "{k} losses");
        }
        let text = serde_json::to_string(&losses).unwrap();
        assert_eq!(serde_json::from_str::<RecentLosses>(&text).unwrap(), losses);
    }
}
