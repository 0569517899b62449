//! The update of the weights from the accumulated gradients.
//!
//! On a GPU the CPU does not wait for the norm of the gradients: the optimizer's kernels skip an
//! update whose norm is not finite, and the norms are read when a log line or a checkpoint needs
//! them. All ranks read them at the same steps.

use tch::Kind;
use vlm_model::ModelError;
use vlm_torch::set_grad_none;

use super::Trainer;
use super::accumulation::Accumulation;
use super::unread_norms::UnreadNorm;
use crate::TrainError;
use crate::config::LossAverage;
use crate::parallel::scale_gradients;

impl Trainer<'_> {
    /// Updates the weights. Returns `false` without gradients, or for an update that is skipped because
    /// of its loss. An update whose gradients are not finite is skipped, too.
    ///
    /// # Errors
    /// `max_skipped_in_a_row` consecutive updates were skipped.
    pub(super) fn update(&mut self, accumulation: Accumulation) -> Result<bool, TrainError> {
        let optim = &self.config.optim;
        if optim.zero_unused_gradients && self.state.counters.update == 0 {
            self.read_norms()?;
        }
        // Before the first gradient there is no momentum, and a run that never learns must end with
        // an error instead of many updates by zero.
        let zeroes = optim.zero_unused_gradients && self.state.counters.update > 0;
        if !(accumulation.learns || zeroes && accumulation.supervised_tokens > 0) {
            return Ok(false);
        }
        let params = self.optimizer.params();
        if accumulation.is_skipped {
            self.state.counters.skipped_updates += 1;
            set_grad_none(&params)?;
            return Ok(false);
        }
        let divisor = match optim.loss_average {
            LossAverage::Batch => self.state.loss_scale(),
            LossAverage::Token => self.state.loss_scale() * accumulation.supervised_tokens as f64,
        };
        let max_norm = match optim.grad_clip {
            0.0 => f64::INFINITY,
            clip => clip,
        };
        let norm = match &self.shards {
            // The loss was multiplied by the number of ranks for the mean over them.
            Some(shards) => {
                let is_used = shards.reduce(1.0 / (divisor * self.world.world_size() as f64))?;
                self.optimizer.set_used(&is_used);
                shards.clip_grad_norm(max_norm)?
            }
            None => {
                if divisor != 1.0 {
                    scale_gradients(&params, 1.0 / divisor)?;
                }
                self.gradients.clip_grad_norm(&params, max_norm)?
            }
        };
        let step = self.state.counters.step;
        let rate = |lr| self.schedule.rate(step, lr);
        let unread = UnreadNorm { norm, step: step + 1, rows: accumulation.rows };
        // The scale of the next loss and the moving averages depend on whether the update is skipped.
        let needs_norm = self.state.scaler.is_some() || optim.ema_decay.is_some();
        let norm = if unread.norm.device().is_cuda() && !needs_norm {
            // The product of a number and 0 is 0, or NaN if the number is not finite.
            let found_inf = (&unread.norm * 0.0).ne(0.0).to_kind(Kind::Float);
            self.optimizer.step(rate, Some(&found_inf))?;
            None
        } else {
            let norm = f64::try_from(&unread.norm).map_err(ModelError::from)?;
            if norm.is_finite() {
                self.optimizer.step(rate, None)?;
            }
            Some(norm)
        };
        if let Some(shards) = &self.shards {
            shards.share()?;
        }
        self.world.check_not_aborted()?;
        set_grad_none(&params)?;
        match norm {
            Some(norm) => self.count_update(norm, &unread)?,
            None => self.unread_norms.push(unread),
        }
        Ok(true)
    }

    /// Reads the norms of all updates so far, and counts these updates.
    ///
    /// # Errors
    /// As [`Self::update`].
    pub(super) fn read_norms(&mut self) -> Result<(), TrainError> {
        for (norm, unread) in self.unread_norms.read()? {
            self.count_update(norm, &unread)?;
        }
        Ok(())
    }

    fn count_update(&mut self, norm: f64, unread: &UnreadNorm) -> Result<(), TrainError> {
        self.state.count_update(norm.is_finite());
        self.grad_norm = Some(norm);
        if self.state.skipped_in_a_row >= self.config.optim.max_skipped_in_a_row {
            return Err(self.diverged(unread.step, &unread.rows));
        }
        Ok(())
    }
}
