//! The update at the end of a window.

use tch::Tensor;
use vlm_torch::set_grad_none;

use super::Trainer;
use super::step::Window;
use crate::TrainError;
use crate::config::LossAverage;
use crate::parallel::scale_gradients;
use crate::schedule::Schedule;

impl Trainer<'_> {
    /// One update from the window's gradients; their norm before clipping. An update whose gradients
    /// are not finite is skipped, and too many skipped in a row end the run.
    pub(super) fn update(
        &mut self,
        schedule: &Schedule,
        window: &mut Window,
    ) -> Result<Option<f64>, TrainError> {
        let window = std::mem::take(window);
        if !window.learns {
            return Ok(None);
        }
        let params = self.optimizer.params();
        let divisor = self.loss_scale()
            * match self.config.optim.loss_average {
                LossAverage::Batch => 1.0,
                LossAverage::Token => window.supervised_tokens as f64,
            };
        if divisor != 1.0 {
            scale_gradients(&params, 1.0 / divisor)?;
        }
        let norm = self.clip(&params)?;
        if let Some(scaler) = &mut self.position.scaler {
            scaler.updated(norm.is_finite());
        }
        if norm.is_finite() {
            let step = self.position.counters.step;
            self.optimizer.step(|lr| schedule.rate(step, lr))?;
            self.position.counters.update += 1;
            self.position.skipped_in_a_row = 0;
        } else {
            self.position.counters.skipped_updates += 1;
            self.position.skipped_in_a_row += 1;
        }
        set_grad_none(&params)?;
        if self.position.skipped_in_a_row >= self.config.optim.max_skipped_in_a_row {
            return Err(self.diverged(&window.rows));
        }
        Ok(Some(norm))
    }

    /// Clips the gradients; their norm from before.
    fn clip(&self, params: &[Tensor]) -> Result<f64, TrainError> {
        let max_norm = match self.config.optim.grad_clip {
            0.0 => f64::INFINITY,
            clip => clip,
        };
        self.gradients.clip_grad_norm(params, max_norm)
    }
}
