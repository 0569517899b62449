//! The loss of a micro-batch.

use tch::Tensor;

/// This rank's part of the loss of one micro-batch, as scalars on the device. The sum of the parts
/// of all ranks is the mean over all supervised tokens of the micro-batch.
pub(super) struct MicroBatchLoss {
    /// Loss in nats per supervised token, including the auxiliary loss.
    pub(super) mean: Tensor,
    /// Auxiliary loss of the experts, for models with experts.
    pub(super) aux_loss: Option<Tensor>,
}

impl MicroBatchLoss {
    /// The loss without its graph.
    pub(super) fn detach(&self) -> Self {
        Self { mean: self.mean.detach(), aux_loss: self.aux_loss.as_ref().map(Tensor::detach) }
    }
}
