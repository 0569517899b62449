//! Forward and backward of one micro-batch.

use tch::{Kind, Tensor};
use vlm_data::Batch;

use super::Trainer;
use crate::TrainError;
use crate::config::LossAverage;
use crate::parallel::GlobalStepStats;

/// Gradients gathered since the last update.
#[derive(Debug, Default)]
pub(super) struct Window {
    /// Of all ranks.
    pub(super) supervised_tokens: u64,
    /// Whether any rank learned from any micro-batch.
    pub(super) learns: bool,
    /// Whether any rank was asked to stop.
    pub(super) stop: bool,
    /// Of this rank.
    pub(super) rows: Vec<usize>,
}

/// Where a micro-batch stands in its window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    /// Micro-batches of the window.
    pub(super) window_len: usize,
    /// Whether its gradients complete the window.
    pub(super) is_last: bool,
}

impl Place {
    /// Of micro-batch `index` of an epoch that ends before `end`; what is left of a window there is
    /// one too.
    pub(super) fn of(index: usize, end: usize, accumulation_steps: usize) -> Self {
        let start = index / accumulation_steps * accumulation_steps;
        let window_end = (start + accumulation_steps).min(end);
        Self { window_len: window_end - start, is_last: index + 1 == window_end }
    }
}

/// This rank's part of the loss of one micro-batch: scalars on the device. The sum over the ranks
/// is the mean over all supervised tokens of the micro-batch.
pub(super) struct MicroLoss {
    /// In nats a supervised token, the auxiliary loss included.
    pub(super) mean: Tensor,
    pub(super) aux_loss: Option<Tensor>,
}

impl Trainer<'_> {
    /// Forward and backward of one micro-batch; this rank's part of its loss, if it has any. The
    /// ranks' shares weigh as if one process had them all in one batch.
    pub(super) fn micro_step(
        &mut self,
        batch: &mut Batch,
        totals: &GlobalStepStats,
        place: Place,
        window: &mut Window,
    ) -> Result<Option<MicroLoss>, TrainError> {
        let counters = &mut self.position.counters;
        counters.samples += totals.rows;
        counters.tokens += totals.tokens;
        counters.supervised_tokens += totals.supervised_tokens;
        counters.empty_steps += u64::from(totals.supervised_tokens == 0);
        window.supervised_tokens += totals.supervised_tokens;
        window.learns |= totals.learns;
        window.stop |= totals.stop;
        window.rows.extend(&batch.rows);
        if self.model.lm().config().use_moe {
            // Padding has a part in the experts' balance, so all shares get that of one batch.
            batch.pad_to(totals.seq_len as usize, self.pad_token_id);
        }
        // Only the gradients that complete a window travel.
        let average = place.is_last && window.learns;
        if average {
            self.gradients.prepare_forward()?;
        }
        let loss = match batch.num_supervised {
            0 => None,
            _ => Some(self.forward(batch, totals)?),
        };
        let weight = match self.config.optim.loss_average {
            LossAverage::Batch => 1.0 / place.window_len as f64,
            LossAverage::Token => totals.supervised_tokens as f64,
        };
        // The reducer divides by the number of ranks; the shares are parts of one mean already.
        let num_ranks = self.world.world_size() as f64;
        let weighted = loss
            .as_ref()
            .map(|loss| &loss.mean * (weight * num_ranks * self.loss_scale()))
            .filter(Tensor::requires_grad);
        self.gradients.backward(weighted, average, || self.nothing_to_learn())?;
        let detached = |loss: MicroLoss| MicroLoss {
            mean: loss.mean.detach(),
            aux_loss: loss.aux_loss.map(|aux_loss| aux_loss.detach()),
        };
        Ok(loss.map(detached))
    }

    fn forward(&self, batch: &Batch, totals: &GlobalStepStats) -> Result<MicroLoss, TrainError> {
        let device = self.model.device();
        if self.model.lm().config().dropout > 0.0 {
            // A function of where the run is, so that a continued run draws what it would have.
            tch::manual_seed(self.seed_of_step());
        }
        let on_device = self.transfer.send(batch)?;
        let loss = vlm_torch::autocast(device, vlm_infer::autocast_kind(self.dtype), || {
            self.model.loss(&on_device.model, &on_device.supervised, &on_device.targets, true)
        })??;
        let mut mean = &loss.sum / totals.supervised_tokens as f64;
        // The auxiliary loss is a mean over the rows.
        let of_rows = batch.batch_size as f64 / totals.rows as f64;
        let aux_loss = loss.aux_loss.map(|aux_loss| aux_loss * of_rows);
        if let Some(aux_loss) = &aux_loss {
            mean += aux_loss;
        }
        Ok(MicroLoss { mean, aux_loss })
    }

    /// Whether anything is trained but the way of the images into the language model.
    pub(super) fn learns_from_text(&self) -> bool {
        self.model.params().trainable().iter().any(|(name, _)| !is_image_path(name))
    }

    /// Seed of what is drawn in this step, on this rank.
    fn seed_of_step(&self) -> i64 {
        let mut hasher = blake3::Hasher::new();
        let rank = self.world.rank() as u64;
        for number in [self.config.run.seed, self.position.counters.step, rank] {
            hasher.update(&number.to_le_bytes());
        }
        let bytes = hasher.finalize();
        bytes.as_bytes()[..7].iter().fold(0, |seed, &byte| seed << 8 | i64::from(byte))
    }

    /// A loss of zero, for a rank that has nothing to learn from while others have: it takes part
    /// in the reduction with zero gradients. It hangs on a parameter that is used wherever there is
    /// something to learn, so that nothing unused seems used.
    fn nothing_to_learn(&self) -> Tensor {
        let trainable = self.model.trainable();
        let used = trainable.iter().find(|(name, _)| !is_image_path(name));
        let (_, used) = used.unwrap_or(&trainable[0]);
        (used * 0.0).sum(Kind::Float)
    }

    pub(super) fn loss_scale(&self) -> f64 {
        self.position.scaler.map_or(1.0, |scaler| scaler.scale())
    }
}

/// Whether only rows with images give a parameter of this name a gradient.
pub(crate) fn is_image_path(name: &str) -> bool {
    name.starts_with("vision_")
}
