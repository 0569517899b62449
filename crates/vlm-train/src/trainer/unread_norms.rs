//! Norms of gradients that are still on the GPU.

use tch::{Kind, Tensor};
use vlm_model::ModelError;

use crate::TrainError;

/// Largest number of norms that are not read yet.
const MAX_UNREAD: usize = 64;

/// The norm of the gradients of an update, which the CPU has not read yet.
#[derive(Debug)]
pub(super) struct UnreadNorm {
    pub(super) norm: Tensor,
    /// The step of the update, from 1.
    pub(super) step: u64,
    /// Indices of this rank's rows, for messages.
    pub(super) rows: Vec<usize>,
}

/// The norms of the last updates that the CPU has not read yet, in the order of the updates.
#[derive(Debug, Default)]
pub(super) struct UnreadNorms(Vec<UnreadNorm>);

impl UnreadNorms {
    /// Adds the norm of an update.
    pub(super) fn push(&mut self, norm: UnreadNorm) {
        self.0.push(norm);
    }

    /// Whether they must be read now, because they are too many.
    pub(super) fn are_many(&self) -> bool {
        self.0.len() >= MAX_UNREAD
    }

    /// Reads all norms in one transfer and removes them.
    ///
    /// # Errors
    /// libtorch fails.
    pub(super) fn read(&mut self) -> Result<Vec<(f64, UnreadNorm)>, TrainError> {
        let unread = std::mem::take(&mut self.0);
        if unread.is_empty() {
            return Ok(Vec::new());
        }
        let norms: Vec<&Tensor> = unread.iter().map(|unread| &unread.norm).collect();
        let read = || Vec::<f64>::try_from(Tensor::f_stack(&norms, 0)?.f_to_kind(Kind::Double)?);
        let read = read().map_err(ModelError::from)?;
        Ok(read.into_iter().zip(unread).collect())
    }
}
