//! Dynamic loss scaling for float16, as `torch.amp.GradScaler` does it.

use serde::{Deserialize, Serialize};

/// The factor on the loss that keeps float16 gradients from vanishing. It is doubled after 2000 good
/// updates in a row, and halved after one whose gradients overflowed.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LossScaler {
    scale: f64,
    good_updates: u32,
}

impl Default for LossScaler {
    fn default() -> Self {
        Self { scale: 65_536.0, good_updates: 0 }
    }
}

impl LossScaler {
    const GROWTH_INTERVAL: u32 = 2_000;

    /// The present factor.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Adjusts the factor after an update. `finite` says whether all gradients were finite.
    pub fn updated(&mut self, finite: bool) {
        if !finite {
            *self = Self { scale: self.scale * 0.5, good_updates: 0 };
            return;
        }
        self.good_updates += 1;
        if self.good_updates == Self::GROWTH_INTERVAL {
            *self = Self { scale: self.scale * 2.0, good_updates: 0 };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_on_overflow_and_doubles_after_enough_good_updates() {
        let mut scaler = LossScaler::default();
        scaler.updated(false);
        assert_eq!(scaler.scale(), 32_768.0);
        for _ in 0..LossScaler::GROWTH_INTERVAL {
            scaler.updated(true);
        }
        assert_eq!(scaler.scale(), 65_536.0);
    }
}
