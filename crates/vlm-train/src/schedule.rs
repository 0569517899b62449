//! The learning rate.

use std::f64::consts::PI;

/// Rate of micro-batch `step` (from 0) of `total_steps`:
/// `lr/10 + lr/2 · (1 + cos(π · step / total_steps))`.
///
/// It starts at 1.1 · `lr` and ends near 0.1 · `lr`: MiniMind-V's `get_lr`, whose text says
/// otherwise. An update uses the rate of the last micro-batch of its window. The first
/// `warmup_steps` are scaled by `(step + 1) / warmup_steps`; the reference ignores its setting.
pub fn learning_rate(step: u64, total_steps: u64, lr: f64, warmup_steps: u64) -> f64 {
    let progress = step as f64 / total_steps as f64;
    let cosine = lr / 10.0 + 0.5 * lr * (1.0 + (PI * progress).cos());
    if step < warmup_steps { cosine * (step + 1) as f64 / warmup_steps as f64 } else { cosine }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equals_the_reference_at_its_ends_and_middle() {
        // python3: 1e-3/10 + 0.5*1e-3*(1+math.cos(math.pi*k/40)) for k = 0, 1, 20
        let golden = [(0, 0.0011), (1, 0.001_098_458_666_866_564), (20, 0.0006)];
        for (step, expected) in golden {
            assert!((learning_rate(step, 40, 1e-3, 0) - expected).abs() < 1e-15, "step {step}");
        }
    }

    #[test]
    fn warmup_rises_linearly_and_then_joins_the_cosine() {
        let cosine = |step| learning_rate(step, 100, 1.0, 0);
        assert!((learning_rate(0, 100, 1.0, 4) - cosine(0) / 4.0).abs() < 1e-15);
        assert!((learning_rate(3, 100, 1.0, 4) - cosine(3)).abs() < 1e-15);
        assert!((learning_rate(9, 100, 1.0, 4) - cosine(9)).abs() < 1e-15);
    }
}
