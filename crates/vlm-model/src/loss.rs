//! The losses of a batch.
//!
//! Dimensions: B rows · S supervised positions

use tch::{Kind, Reduction, Tensor};

use crate::indices::index_tensor;

/// The loss of a batch, summed over its supervised positions.
#[derive(Debug)]
pub struct LossSum {
    /// Cross-entropy summed over the supervised positions, in nats; scalar float32.
    pub sum: Tensor,
    /// Number of supervised positions.
    pub num_supervised: i64,
    /// The experts' auxiliary loss (scalar); only in training with experts.
    pub aux_loss: Option<Tensor>,
}

impl LossSum {
    /// The loss of the logits `[S, vocab_size]` (f32) and the ids `targets` `[S]` (i64).
    pub(crate) fn new(logits_sv: &Tensor, targets: &Tensor, aux_loss: Option<Tensor>) -> Self {
        let sum = cross_entropy(logits_sv, targets, Reduction::Sum);
        Self { sum, num_supervised: targets.size()[0], aux_loss }
    }
}

/// The losses of the rows of a batch.
#[derive(Debug)]
pub struct RowLosses {
    /// Cross-entropy summed over the supervised positions of each row, in nats; `[B]`, f64.
    pub sums: Tensor,
    /// Number of supervised positions of each row; `[B]`, i64.
    pub num_supervised: Tensor,
}

impl RowLosses {
    /// The losses of the logits `[S, vocab_size]` (f32) and the ids `targets` `[S]` (i64) at the
    /// positions `supervised` `[S]` (i64), indices into the flattened ids of the batch. `rows` are
    /// each row's first position and number of tokens.
    pub(crate) fn new(
        logits_sv: &Tensor,
        supervised: &Tensor,
        targets: &Tensor,
        rows: &[(i64, i64)],
    ) -> Self {
        let losses_s = cross_entropy(logits_sv, targets, Reduction::None).to_kind(Kind::Double);
        let ends: Vec<i64> = rows.iter().map(|(start, len)| start + len).collect();
        let (num_rows, device) = (ends.len() as i64, logits_sv.device());
        // The index of the first end that is after the position; a row without tokens has no
        // position.
        let rows_s = supervised.bucketize(&index_tensor(&ends, device), false, true);
        let zeros_b = Tensor::zeros([num_rows], (Kind::Double, device));
        Self {
            sums: zeros_b.index_add(0, &rows_s, &losses_s),
            num_supervised: rows_s.bincount(None::<Tensor>, num_rows),
        }
    }
}

/// The cross-entropy in nats: `[S, vocab_size]` and `[S]` (i64) → a scalar or `[S]`.
fn cross_entropy(logits_sv: &Tensor, targets: &Tensor, reduction: Reduction) -> Tensor {
    logits_sv.cross_entropy_loss(targets, None::<Tensor>, reduction, -100, 0.0)
}
