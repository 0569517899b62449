//! The update that both starting models share: AdamW, a cosine that ends at nothing, clipping.

use std::time::Instant;

use anyhow::{Result, ensure};
use tch::Tensor;
use vlm_model::params::ParamStore;
use vlm_torch::{clip_grad_norm, set_grad_none};

use vlm_config::OptimConfig;
use vlm_train::optimizer::{AdamW, ModelPart};

const CLIP: f64 = 1.0;
const LOG_INTERVAL: u64 = 100;

/// The length of a training, and the learning rate's course over it.
#[derive(Debug, Clone, Copy)]
struct Pace {
    num_steps: u64,
    warmup_steps: u64,
    /// A limit in seconds, to which the course is shortened.
    max_secs: Option<f64>,
}

impl Pace {
    /// How much of the training is over, 0 to 1.
    fn progress(&self, step: u64, secs: f64) -> f64 {
        let by_steps = step as f64 / self.num_steps.max(1) as f64;
        by_steps.max(self.max_secs.map_or(0.0, |max_secs| secs / max_secs)).min(1.0)
    }

    /// The factor of the learning rate: a linear rise, then half a cosine down to 0.02.
    fn factor(&self, step: u64, secs: f64) -> f64 {
        let rise = ((step + 1) as f64 / self.warmup_steps.max(1) as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * self.progress(step, secs)).cos());
        rise * (0.02 + 0.98 * cosine)
    }
}

/// The settings that both trainings have.
#[derive(Debug, Clone)]
pub(super) struct LearnerPlan {
    /// Name of the part, for the log.
    pub name: &'static str,
    /// Number of samples; each is shown once.
    pub num_samples: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    pub weight_decay: f64,
    pub warmup_steps: u64,
    pub seed: u64,
    /// Number of threads that draw samples.
    pub num_threads: usize,
    /// Time limit in seconds; the learning rate's schedule is shortened to it.
    pub max_secs: Option<f64>,
}

impl LearnerPlan {
    /// Number of updates.
    pub fn num_steps(&self) -> usize {
        self.num_samples / self.batch_size
    }

    fn pace(&self) -> Pace {
        let num_steps = self.num_steps() as u64;
        Pace { num_steps, warmup_steps: self.warmup_steps, max_secs: self.max_secs }
    }
}

/// Trains every parameter of its stores with the updates that both starting models have.
#[derive(Debug)]
pub(super) struct Learner {
    plan: LearnerPlan,
    pace: Pace,
    /// Matrices decay, vectors (biases and norms) do not.
    matrices: AdamW,
    vectors: AdamW,
    params: Vec<Tensor>,
    started: Instant,
    step: u64,
    samples: usize,
    loss_since_log: f64,
}

impl Learner {
    pub fn new(stores: &[&ParamStore], plan: LearnerPlan) -> Self {
        stores.iter().for_each(|store| store.set_trainable(|_| true));
        let named = stores.iter().flat_map(|store| store.trainable());
        let (matrices, vectors): (Vec<_>, Vec<_>) =
            named.partition(|(_, tensor)| tensor.dim() >= 2);
        let all = matrices.iter().chain(&vectors);
        let optimizer = |tensors: &[(String, Tensor)], weight_decay: f64| {
            let tensors = tensors
                .iter()
                .map(|(name, tensor)| (name.clone(), tensor.shallow_clone(), ModelPart::Lm));
            let mut optim = OptimConfig::default();
            optim.weight_decay = weight_decay;
            AdamW::new(tensors.collect(), &optim)
        };
        Self {
            params: all.map(|(_, tensor)| tensor.shallow_clone()).collect(),
            matrices: optimizer(&matrices, plan.weight_decay),
            vectors: optimizer(&vectors, 0.0),
            started: Instant::now(),
            step: 0,
            samples: 0,
            loss_since_log: 0.0,
            pace: plan.pace(),
            plan,
        }
    }

    /// Whether the time is up.
    pub fn is_over(&self) -> bool {
        self.pace.progress(self.step, self.secs()) >= 1.0
    }

    /// Samples learned from so far.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// The gradient of `loss` in place of any earlier one. Returns the loss.
    /// # Errors
    /// libtorch's.
    pub fn backward(&self, loss: &Tensor) -> Result<f64> {
        set_grad_none(&self.params)?;
        loss.backward();
        Ok(loss.double_value(&[]))
    }

    /// One update down the gradient at hand; `loss` is for the log.
    /// # Errors
    /// A loss that is not finite.
    pub fn update(&mut self, loss: f64, num_samples: usize) -> Result<()> {
        ensure!(loss.is_finite(), "{}: the loss is {loss} at step {}", self.plan.name, self.step);
        clip_grad_norm(&self.params, CLIP)?;
        let rate = self.plan.learning_rate * self.pace.factor(self.step, self.secs());
        self.matrices.step(|_| rate)?;
        self.vectors.step(|_| rate)?;

        self.loss_since_log += loss;
        self.step += 1;
        self.samples += num_samples;
        if self.step.is_multiple_of(LOG_INTERVAL) {
            let secs = self.secs();
            tracing::info!(
                "{} {}/{} loss {:.4} lr {rate:.1e} {:.0} samples/s {secs:.0} s",
                self.plan.name,
                self.step,
                self.pace.num_steps,
                self.loss_since_log / LOG_INTERVAL as f64,
                self.samples as f64 / secs,
            );
            self.loss_since_log = 0.0;
        }
        Ok(())
    }

    fn secs(&self) -> f64 {
        self.started.elapsed().as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_rises_then_falls_to_its_floor() {
        let pace = Pace { num_steps: 100, warmup_steps: 10, max_secs: None };
        assert!(pace.factor(0, 0.0) < pace.factor(5, 0.0));
        assert!(pace.factor(12, 0.0) > pace.factor(60, 0.0));
        assert!((pace.factor(100, 0.0) - 0.02).abs() < 1e-9);
    }

    #[test]
    fn a_time_limit_draws_the_schedule_in() {
        let pace = Pace { num_steps: 100, warmup_steps: 1, max_secs: Some(10.0) };
        assert_eq!(pace.progress(1, 10.0), 1.0);
        assert_eq!(pace.progress(50, 1.0), 0.5);
    }
}
