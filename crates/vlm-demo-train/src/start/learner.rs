//! The update of both starting models: AdamW with gradient clipping and a cosine schedule.

use std::time::Instant;

use anyhow::{Result, ensure};
use tch::Tensor;
use vlm_model::params::ParamStore;
use vlm_torch::{clip_grad_norm, set_grad_none};

use vlm_config::OptimConfig;
use vlm_train::optimizer::{AdamW, ModelPart};

const CLIP: f64 = 1.0;
const LOG_INTERVAL: u64 = 100;

/// The schedule of the learning rate.
#[derive(Debug, Clone, Copy)]
struct Schedule {
    num_steps: u64,
    warmup_steps: u64,
    /// Time limit in seconds, to which the schedule is shortened.
    max_secs: Option<f64>,
}

impl Schedule {
    /// The fraction of the training that is done, from 0 to 1.
    fn progress(&self, step: u64, secs: f64) -> f64 {
        let by_steps = step as f64 / self.num_steps.max(1) as f64;
        by_steps.max(self.max_secs.map_or(0.0, |max_secs| secs / max_secs)).min(1.0)
    }

    /// The factor of the learning rate: a linear warm-up times half a cosine from 1 to 0.02.
    fn factor(&self, step: u64, secs: f64) -> f64 {
        let rise = ((step + 1) as f64 / self.warmup_steps.max(1) as f64).min(1.0);
        let cosine = 0.5 * (1.0 + (std::f64::consts::PI * self.progress(step, secs)).cos());
        rise * (0.02 + 0.98 * cosine)
    }
}

/// The settings that both trainings have in common.
#[derive(Debug, Clone)]
pub(super) struct LearnerPlan {
    /// Name of the model in the log.
    pub name: &'static str,
    /// Number of samples; each is used once.
    pub num_samples: usize,
    pub batch_size: usize,
    pub learning_rate: f64,
    pub weight_decay: f64,
    pub warmup_steps: u64,
    pub seed: u64,
    /// Number of threads that draw samples.
    pub num_threads: usize,
    /// Time limit in seconds, to which the schedule of the learning rate is shortened.
    pub max_secs: Option<f64>,
}

impl LearnerPlan {
    /// Number of updates.
    pub fn num_steps(&self) -> usize {
        self.num_samples / self.batch_size
    }

    fn schedule(&self) -> Schedule {
        let num_steps = self.num_steps() as u64;
        Schedule { num_steps, warmup_steps: self.warmup_steps, max_secs: self.max_secs }
    }
}

/// Trains all parameters of its stores.
#[derive(Debug)]
pub(super) struct Learner {
    plan: LearnerPlan,
    schedule: Schedule,
    /// Optimizer of the matrices, with weight decay.
    matrices: AdamW,
    /// Optimizer of biases and norms, without weight decay.
    vectors: AdamW,
    params: Vec<Tensor>,
    started: Instant,
    step: u64,
    samples: usize,
    loss_since_log: f64,
}

impl Learner {
    /// A learner for all parameters of `stores`, which become trainable.
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
            schedule: plan.schedule(),
            plan,
        }
    }

    /// Whether all steps are done or the time limit is reached.
    pub fn is_over(&self) -> bool {
        self.schedule.progress(self.step, self.secs()) >= 1.0
    }

    /// Number of samples it was trained on so far.
    pub fn samples(&self) -> usize {
        self.samples
    }

    /// Computes the gradients of `loss`, which replace earlier ones, and returns the value of
    /// `loss`.
    ///
    /// # Errors
    /// A failure of libtorch.
    pub fn backward(&self, loss: &Tensor) -> Result<f64> {
        set_grad_none(&self.params)?;
        loss.backward();
        Ok(loss.double_value(&[]))
    }

    /// Updates the parameters with the current gradients, which are of `num_samples` samples.
    /// `loss` is logged.
    ///
    /// # Errors
    /// `loss` is not finite; a failure of libtorch.
    pub fn update(&mut self, loss: f64, num_samples: usize) -> Result<()> {
        ensure!(loss.is_finite(), "{}: the loss is {loss} at step {}", self.plan.name, self.step);
        clip_grad_norm(&self.params, CLIP)?;
        let rate = self.plan.learning_rate * self.schedule.factor(self.step, self.secs());
        self.matrices.step(|_| rate, None)?;
        self.vectors.step(|_| rate, None)?;

        self.loss_since_log += loss;
        self.step += 1;
        self.samples += num_samples;
        if self.step.is_multiple_of(LOG_INTERVAL) {
            let secs = self.secs();
            tracing::info!(
                "{} {}/{} loss {:.4} lr {rate:.1e} {:.0} samples/s {secs:.0} s",
                self.plan.name,
                self.step,
                self.schedule.num_steps,
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
    fn learning_rate_rises_and_then_falls_to_its_minimum() {
        let schedule = Schedule { num_steps: 100, warmup_steps: 10, max_secs: None };
        assert!(schedule.factor(0, 0.0) < schedule.factor(5, 0.0));
        assert!(schedule.factor(12, 0.0) > schedule.factor(60, 0.0));
        assert!((schedule.factor(100, 0.0) - 0.02).abs() < 1e-9);
    }

    #[test]
    fn time_limit_shortens_the_schedule() {
        let schedule = Schedule { num_steps: 100, warmup_steps: 1, max_secs: Some(10.0) };
        assert_eq!(schedule.progress(1, 10.0), 1.0);
        assert_eq!(schedule.progress(50, 1.0), 0.5);
    }
}
