//! Learning rate schedules.

use std::f64::consts::PI;

use crate::config::{LrSchedule, OptimConfig};

/// Default of `min_lr_ratio`, as in current MiniMind-V and in nanoVLM.
const DEFAULT_MIN_RATIO: f64 = 0.1;
/// Default of `decay_fraction`, for the schedule `wsd`.
const DEFAULT_DECAY_FRACTION: f64 = 0.2;

/// The learning rate as a function of the step (micro-batch). An update of the weights uses the
/// rate of its last micro-batch.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    kind: LrSchedule,
    min_ratio: f64,
    warmup_steps: u64,
    decay_steps: u64,
    total_steps: u64,
}

impl Schedule {
    /// The schedule of a run with `total_steps` micro-batches.
    pub fn new(optim: &OptimConfig, total_steps: u64) -> Self {
        let steps_of = |fraction: f64| (fraction * total_steps as f64).ceil() as u64;
        Self {
            kind: optim.lr_schedule,
            min_ratio: optim.min_lr_ratio.unwrap_or(DEFAULT_MIN_RATIO),
            warmup_steps: optim.warmup_fraction.map_or(optim.warmup_iters, steps_of),
            decay_steps: steps_of(optim.decay_fraction.unwrap_or(DEFAULT_DECAY_FRACTION)),
            total_steps,
        }
    }

    /// Length of the warm-up, in micro-batches.
    pub fn warmup_steps(&self) -> u64 {
        self.warmup_steps
    }

    /// The learning rate of micro-batch `step`, counted from 0, for the configured rate `lr`.
    ///
    /// The schedule `reference` is `lr/10 + lr/2 · (1 + cos(π · step / total_steps))`, which starts
    /// at 1.1 · `lr`: `get_lr` of MiniMind-V of April 2025, whose documentation says otherwise.
    /// `cosine` starts at `lr`. `minimind-3v` is `cosine` one step later: current MiniMind-V counts
    /// its steps from 1, so that the last one has the smallest rate. During the warm-up the rate is
    /// multiplied by `(step + 1) / warmup_steps`, as in nanoVLM; the cosines and `linear` decay
    /// after the warm-up, as in Hugging Face's schedules.
    pub fn rate(&self, step: u64, lr: f64) -> f64 {
        let total = self.total_steps as f64;
        let decayed = |progress: f64| self.min_ratio + (1.0 - self.min_ratio) * (1.0 - progress);
        let after_warmup = |step: u64| {
            let steps = self.total_steps.saturating_sub(self.warmup_steps).max(1) as f64;
            (step.saturating_sub(self.warmup_steps) as f64 / steps).min(1.0)
        };
        let cosine = |step| decayed(0.5 * (1.0 - (PI * after_warmup(step)).cos()));
        let rate = match self.kind {
            LrSchedule::Reference => {
                lr / 10.0 + 0.5 * lr * (1.0 + (PI * (step as f64 / total)).cos())
            }
            LrSchedule::Constant => lr,
            LrSchedule::Cosine => lr * cosine(step),
            LrSchedule::MiniMind3v => lr * cosine(step + 1),
            LrSchedule::Linear => lr * decayed(after_warmup(step)),
            LrSchedule::Wsd => {
                let start = self.total_steps.saturating_sub(self.decay_steps);
                let into_decay = step.saturating_sub(start) as f64;
                lr * decayed((into_decay / self.decay_steps.max(1) as f64).min(1.0))
            }
        };
        if step < self.warmup_steps {
            rate * (step + 1) as f64 / self.warmup_steps as f64
        } else {
            rate
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn schedule(kind: LrSchedule, total: u64, change: impl FnOnce(&mut OptimConfig)) -> Schedule {
        let mut optim = OptimConfig::default();
        optim.lr_schedule = kind;
        change(&mut optim);
        Schedule::new(&optim, total)
    }

    #[test]
    fn the_default_schedule_equals_the_reference() {
        // python3: 1e-3/10 + 0.5*1e-3*(1+math.cos(math.pi*k/40)) for k = 0, 1, 20
        let golden = [(0, 0.0011), (1, 0.001_098_458_666_866_564), (20, 0.0006)];
        let schedule = Schedule::new(&OptimConfig::default(), 40);
        for (step, expected) in golden {
            assert!((schedule.rate(step, 1e-3) - expected).abs() < 1e-15, "step {step}");
        }
    }

    #[test]
    fn minimind_3v_equals_current_minimind_v_and_cosine_is_one_step_behind() {
        // python3: 4e-4*(0.1 + 0.45*(1 + math.cos(math.pi*k/40))) for k = 0, 7, 20, 39, which
        // current MiniMind-V computes from k = 1 on.
        let golden = [
            (0, 4e-4),
            (7, 0.000_373_475_229_583_736_64),
            (20, 0.000_22),
            (39, 4.055_487_992_803_697e-5),
        ];
        let schedule = schedule(LrSchedule::Cosine, 40, |_| ());
        for (step, expected) in golden {
            let found = schedule.rate(step, 4e-4);
            assert!((found - expected).abs() < 1e-15, "step {step}: {found}");
        }
        let current = Schedule { kind: LrSchedule::MiniMind3v, ..schedule.clone() };
        for (step, expected) in &golden[1..] {
            assert!((current.rate(step - 1, 4e-4) - expected).abs() < 1e-15, "step {step}");
        }
        assert!((current.rate(39, 4e-4) - 4e-5).abs() < 1e-15);
    }

    #[test]
    fn the_warmup_rises_linearly_and_then_equals_the_reference() {
        let plain = Schedule::new(&OptimConfig::default(), 100);
        let warm = schedule(LrSchedule::Reference, 100, |optim| optim.warmup_iters = 4);
        assert!((warm.rate(0, 1.0) - plain.rate(0, 1.0) / 4.0).abs() < 1e-15);
        assert!((warm.rate(3, 1.0) - plain.rate(3, 1.0)).abs() < 1e-15);
        assert!((warm.rate(9, 1.0) - plain.rate(9, 1.0)).abs() < 1e-15);
    }

    #[test]
    fn cosine_and_linear_decay_after_the_warmup_to_min_lr_ratio() {
        for (kind, middle) in [(LrSchedule::Cosine, 0.6), (LrSchedule::Linear, 0.6)] {
            let schedule = schedule(kind, 110, |optim| {
                optim.warmup_fraction = Some(10.0 / 110.0);
                optim.min_lr_ratio = Some(0.2);
            });
            assert!((schedule.rate(0, 1.0) - 0.1).abs() < 1e-12, "{kind:?}");
            assert!((schedule.rate(10, 1.0) - 1.0).abs() < 1e-12, "{kind:?}");
            assert!((schedule.rate(60, 1.0) - middle).abs() < 1e-12, "{kind:?}");
            assert!((schedule.rate(110, 1.0) - 0.2).abs() < 1e-12, "{kind:?}");
        }
    }

    #[test]
    fn wsd_is_constant_before_its_decay_and_constant_never_decays() {
        let wsd = schedule(LrSchedule::Wsd, 100, |optim| {
            optim.decay_fraction = Some(0.5);
            optim.min_lr_ratio = Some(0.0);
        });
        assert_eq!([wsd.rate(0, 1.0), wsd.rate(50, 1.0)], [1.0, 1.0]);
        assert!((wsd.rate(75, 1.0) - 0.5).abs() < 1e-12);
        assert!(wsd.rate(100, 1.0).abs() < 1e-12);
        assert_eq!(schedule(LrSchedule::Constant, 100, |_| ()).rate(99, 0.5), 0.5);
    }
}
