//! Compares the losses of both programs: equal losses show that they do the same work.

use anyhow::Result;
use serde::Serialize;

use super::args::TrainArgs;
use super::ours::Ours;
use super::theirs::Reference;

/// Largest relative difference of two losses that count as equal. Both programs compute in float32,
/// but add in another order, and the differences grow with every update.
pub const TOLERANCE: f64 = 1e-4;

/// The losses of both programs, step by step.
#[derive(Debug, Serialize)]
pub struct LossCheck {
    pub batch_size: usize,
    pub ours: Vec<f64>,
    pub reference: Vec<f64>,
    /// Largest relative difference.
    pub max_difference: f64,
    pub is_equal: bool,
}

impl LossCheck {
    /// Trains with both programs.
    ///
    /// # Errors
    /// One of them fails.
    pub fn run(ours: &Ours, reference: &Reference, args: &TrainArgs) -> Result<Self> {
        let (steps, batch_size) = (args.check_losses, args.check_batch_size);
        let theirs = reference.losses(ours.inputs, &args.python, steps, batch_size)?;
        Ok(Self::of(batch_size, ours.losses(steps, batch_size)?, theirs))
    }

    fn of(batch_size: usize, ours: Vec<f64>, reference: Vec<f64>) -> Self {
        let differences = ours.iter().zip(&reference).map(|(a, b)| ((a - b) / b).abs());
        // A loss that is not finite is not equal to anything.
        let max_difference =
            differences.fold(0.0, |max, d| if d > max || d.is_nan() { d } else { max });
        let is_equal = ours.len() == reference.len() && max_difference <= TOLERANCE;
        Self { batch_size, ours, reference, max_difference, is_equal }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn losses_are_equal_up_to_the_tolerance_and_nan_is_equal_to_nothing() {
        let check = |ours: [f64; 2], theirs: [f64; 2]| LossCheck::of(1, ours.into(), theirs.into());
        assert!(check([8.0, 7.0005], [8.0, 7.0]).is_equal);
        assert!(!check([8.0, 7.002], [8.0, 7.0]).is_equal);
        assert!(!check([f64::NAN, 7.0], [8.0, 7.0]).is_equal);
        assert!(!LossCheck::of(1, vec![8.0], vec![8.0, 7.0]).is_equal);
    }
}
