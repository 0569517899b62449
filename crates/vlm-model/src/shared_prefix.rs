//! The tokens with which all rows of a batch begin, such as the system prompt of a chat template:
//! the model computes them once for all rows.
//!
//! Dimensions: B batch · T tokens · P tokens of the prefix · H hidden size

use tch::{Device, Tensor};

use crate::indices::index_tensor;
use crate::layers::select_positions;
use crate::{ModelBatch, ModelError};

/// Number of tokens of the shortest prefix. With fewer, joining the keys and values of prefix and
/// rows takes longer than what is saved.
const MIN_LEN: i64 = 8;

/// A batch without its prefix.
#[derive(Debug)]
pub(crate) struct SharedPrefix {
    /// Number of tokens of the prefix.
    len: i64,
    /// The other positions, as indices into the flattened positions of the batch, i64.
    rest: Tensor,
    /// The needed positions, as indices into the others, `[S]`, i64.
    pub(crate) needed: Tensor,
}

impl SharedPrefix {
    /// The longest prefix that all rows share and that has neither an image nor one of the `needed`
    /// positions `[S]`; `None` if it is short. Only on the CPU: elsewhere, reading the ids would
    /// wait for the device.
    ///
    /// # Errors
    /// The shape of the batch is wrong.
    pub(crate) fn find(batch: &ModelBatch, needed: &Tensor) -> Result<Option<Self>, ModelError> {
        if batch.input_ids.device() != Device::Cpu {
            return Ok(None);
        }
        let rows = batch.rows()?;
        if rows.is_empty() {
            return Ok(None);
        }
        let ids = Vec::<i64>::try_from(batch.input_ids.flatten(0, -1))?;
        let needed = Vec::<i64>::try_from(needed)?;
        // Rows without a token have the same start as the next row, and no position.
        let row_of = |position: i64| rows.partition_point(|(start, _)| *start <= position) - 1;
        let longest = (rows.iter().map(|(_, len)| len - 1))
            .chain(batch.image_starts.iter().map(|&(_, start)| start))
            .chain(needed.iter().map(|&position| position - rows[row_of(position)].0))
            .min()
            .unwrap_or(0);
        let id = |(start, _): &(i64, i64), at: i64| ids[(start + at) as usize];
        let is_shared = |&at: &i64| rows.iter().all(|row| id(row, at) == id(&rows[0], at));
        let len = (0..longest).take_while(is_shared).count() as i64;
        if len < MIN_LEN {
            return Ok(None);
        }
        let rest: Vec<i64> =
            rows.iter().flat_map(|(start, row_len)| start + len..start + row_len).collect();
        let needed: Vec<i64> =
            needed.iter().map(|&at| at - (row_of(at) as i64 + 1) * len).collect();
        let index = |values: &[i64]| index_tensor(values, Device::Cpu);
        Ok(Some(Self { len, rest: index(&rest), needed: index(&needed) }))
    }

    /// The ids of the prefix, `[1, P]`.
    pub(crate) fn ids(&self, batch: &ModelBatch) -> Tensor {
        batch.input_ids.narrow(0, 0, 1).narrow(1, 0, self.len)
    }

    /// The embeddings of the positions after the prefix: `[B, T, H]` → `[B, T - P, H]`, and of a
    /// packed batch `[1, sum of lengths, H]` → `[1, sum of lengths - B·P, H]`.
    pub(crate) fn rest_of(&self, embedded_bth: &Tensor, packed_lengths: Option<&[i64]>) -> Tensor {
        match packed_lengths {
            None => embedded_bth.narrow(1, self.len, embedded_bth.size()[1] - self.len),
            Some(_) => select_positions(embedded_bth, &self.rest),
        }
    }

    /// The lengths of the packed rows without the prefix.
    pub(crate) fn rest_lengths(&self, packed_lengths: Option<&[i64]>) -> Option<Vec<i64>> {
        packed_lengths.map(|lengths| lengths.iter().map(|len| len - self.len).collect())
    }
}
