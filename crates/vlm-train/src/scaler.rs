//! Dynamic loss scaling for float16, as in `torch.amp.GradScaler`.

use serde::{Deserialize, Serialize};

/// Scales the loss so that float16 gradients do not vanish. The factor is doubled after 2000
/// consecutive updates with finite gradients, and halved after an update with an overflow.
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

    /// The current factor.
    pub fn scale(&self) -> f64 {
        self.scale
    }

    /// Adjusts the factor after an update. `is_finite` is whether all gradients were finite.
    pub fn update(&mut self, is_finite: bool) {
        if !is_finite {
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
    fn the_factor_is_halved_on_overflow_and_doubled_after_the_growth_interval() {
        let mut scaler = LossScaler::default();
        scaler.update(false);
        assert_eq!(scaler.scale(), 32_768.0);
        for _ in 0..LossScaler::GROWTH_INTERVAL {
            scaler.update(true);
        }
        assert_eq!(scaler.scale(), 65_536.0);
    }
}
