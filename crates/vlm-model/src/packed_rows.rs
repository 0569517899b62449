//! Rows that lie end to end in one sequence, `[1, total]`, instead of side by side, filled up to the
//! longest.
//!
//! Dimensions: R rows · N tokens of all rows

use std::sync::Arc;

use tch::{Device, Tensor};

/// Where the rows of a packed sequence are.
#[derive(Debug)]
pub(crate) struct PackedRows {
    lengths: Arc<[i64]>,
    /// `[N]`, i64.
    row_of_token: Tensor,
    /// `[N]`, i64: of each token in its row, from 0.
    positions: Tensor,
}

impl PackedRows {
    pub(crate) fn new(lengths: &[i64], device: Device) -> Self {
        let of_each = |value: &dyn Fn(i64, i64) -> i64| {
            let rows = lengths.iter().enumerate();
            let values: Vec<i64> = rows
                .flat_map(|(row, &length)| (0..length).map(move |at| (row as i64, at)))
                .map(|(row, at)| value(row, at))
                .collect();
            Tensor::from_slice(&values).to_device(device)
        };
        Self {
            lengths: lengths.into(),
            row_of_token: of_each(&|row, _| row),
            positions: of_each(&|_, at| at),
        }
    }

    /// Another handle of the same.
    pub(crate) fn share(&self) -> Self {
        Self {
            lengths: Arc::clone(&self.lengths),
            row_of_token: self.row_of_token.shallow_clone(),
            positions: self.positions.shallow_clone(),
        }
    }

    /// `[R]`
    pub(crate) fn lengths(&self) -> &[i64] {
        &self.lengths
    }

    /// `[1, N]`, i64.
    pub(crate) fn positions(&self) -> Tensor {
        self.positions.unsqueeze(0)
    }

    /// `[N, E]` → `[R, E]`: the sums over each row's tokens.
    pub(crate) fn sums(&self, values_ne: &Tensor) -> Tensor {
        let size = [self.lengths.len() as i64, values_ne.size()[1]];
        Tensor::zeros(size, (values_ne.kind(), values_ne.device())).index_add(
            0,
            &self.row_of_token,
            values_ne,
        )
    }
}
