//! Packed batches: the rows are concatenated into one sequence, `[1, N]`, instead of being padded
//! to the longest.
//!
//! Dimensions: R rows · N tokens of all rows · G rows of a group · L tokens of its longest row ·
//! E values per token

use tch::{Device, Tensor};

use crate::indices::index_tensor;

/// A row is put into a group if its length is at least this fraction of the longest row's: 3 / 4.
const MIN_LENGTH_RATIO: (i64, i64) = (3, 4);

/// The positions of the rows in a packed batch.
#[derive(Debug)]
pub(crate) struct PackedRows {
    num_rows: i64,
    /// The first token of each row, and N.
    starts: Vec<i64>,
    groups: Groups,
    /// Index of each token's row, `[N]`, i64.
    row_of_token: Tensor,
    /// Position of each token in its row, from 0; `[N]`, i64.
    positions: Tensor,
}

impl PackedRows {
    /// The positions of rows with these lengths; the index tensors are on `device`.
    pub(crate) fn new(lengths: &[i64], device: Device) -> Self {
        let of_each = |value: &dyn Fn(i64, i64) -> i64| {
            let rows = lengths.iter().enumerate();
            let values: Vec<i64> = rows
                .flat_map(|(row, &length)| (0..length).map(move |at| (row as i64, at)))
                .map(|(row, at)| value(row, at))
                .collect();
            index_tensor(&values, device)
        };
        Self {
            num_rows: lengths.len() as i64,
            starts: starts(lengths),
            groups: Groups::new(lengths, device),
            row_of_token: of_each(&|row, _| row),
            positions: of_each(&|_, at| at),
        }
    }

    /// A copy that shares the tensors' storage.
    pub(crate) fn shallow_clone(&self) -> Self {
        Self {
            num_rows: self.num_rows,
            starts: self.starts.clone(),
            groups: self.groups.shallow_clone(),
            row_of_token: self.row_of_token.shallow_clone(),
            positions: self.positions.shallow_clone(),
        }
    }

    /// The first token of each row, and N.
    pub(crate) fn starts(&self) -> &[i64] {
        &self.starts
    }

    /// The rows in groups of similar length.
    pub(crate) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// Position of each token in its row, `[1, N]`, i64.
    pub(crate) fn positions(&self) -> Tensor {
        self.positions.unsqueeze(0)
    }

    /// The sums over each row's tokens, `[N, E]` → `[R, E]`.
    pub(crate) fn sums(&self, values_ne: &Tensor) -> Tensor {
        let size = [self.num_rows, values_ne.size()[1]];
        Tensor::zeros(size, (values_ne.kind(), values_ne.device()))
            .index_add(0, &self.row_of_token, values_ne)
    }
}

/// The first token of each row with these lengths, and the number of all tokens.
fn starts(lengths: &[i64]) -> Vec<i64> {
    let mut starts = vec![0];
    starts.extend(lengths.iter().scan(0, |end, &length| {
        *end += length;
        Some(*end)
    }));
    starts
}

/// The rows in groups of similar length, each padded to its longest row, for attention. Attention
/// is then called once per group instead of once per row, and computes little padding.
#[derive(Debug)]
pub(crate) struct Groups {
    groups: Vec<Group>,
    /// Index of each token in the concatenation of all groups, `[N]`, i64.
    places: Tensor,
}

/// Rows of similar length.
#[derive(Debug)]
struct Group {
    rows: i64,
    longest: i64,
    /// Index in the packed batch of each token of the padded group, `[G · L]`, i64. A row is padded
    /// with its own last token, to which the tokens before it do not attend.
    tokens: Tensor,
}

impl Groups {
    fn new(lengths: &[i64], device: Device) -> Self {
        let (numerator, denominator) = MIN_LENGTH_RATIO;
        let starts = starts(lengths);
        let mut longest_first: Vec<usize> =
            (0..lengths.len()).filter(|&row| lengths[row] > 0).collect();
        longest_first.sort_by_key(|&row| std::cmp::Reverse(lengths[row]));
        let index = |values: &[i64]| index_tensor(values, device);

        let mut places = vec![0; lengths.iter().sum::<i64>() as usize];
        let mut groups = Vec::new();
        let mut filled = 0;
        let mut rest = longest_first.as_slice();
        while let Some(&first) = rest.first() {
            let longest = lengths[first];
            let count = rest
                .iter()
                .take_while(|&&row| lengths[row] * denominator >= longest * numerator)
                .count();
            let (group, others) = rest.split_at(count);
            rest = others;
            let mut tokens = Vec::with_capacity(count * longest as usize);
            for &row in group {
                for at in 0..lengths[row] {
                    places[(starts[row] + at) as usize] = filled + tokens.len() as i64;
                    tokens.push(starts[row] + at);
                }
                let last = starts[row] + lengths[row] - 1;
                tokens.extend((lengths[row]..longest).map(|_| last));
            }
            filled += tokens.len() as i64;
            groups.push(Group { rows: count as i64, longest, tokens: index(&tokens) });
        }
        Self { groups, places: index(&places) }
    }

    /// A copy that shares the tensors' storage.
    fn shallow_clone(&self) -> Self {
        let clone = |group: &Group| Group { tokens: group.tokens.shallow_clone(), ..*group };
        Self {
            groups: self.groups.iter().map(clone).collect(),
            places: self.places.shallow_clone(),
        }
    }

    /// Calls `attend` for each group with the group's rows of `inputs` `[1, heads, N, D]`, padded
    /// to `[G, heads, L, D]`. The results, of the shape of the first input, are returned in the
    /// order of the packed batch, `[1, heads, N, D]`.
    pub(crate) fn each(
        &self,
        inputs: [&Tensor; 3],
        attend: impl Fn([&Tensor; 3]) -> Tensor,
    ) -> Tensor {
        // Heads after tokens, so that the values of a token are contiguous for `index_select`.
        let inputs = inputs.map(|x| x.transpose(1, 2).squeeze_dim(0));
        let of_group = |group: &Group| {
            let side_by_side = inputs.each_ref().map(|x| {
                let (_, heads, width) = x.size3().expect("[N, heads, D] by construction");
                x.index_select(0, &group.tokens)
                    .view([group.rows, group.longest, heads, width])
                    .transpose(1, 2)
            });
            attend(side_by_side.each_ref()).transpose(1, 2).flatten(0, 1)
        };
        let found: Vec<Tensor> = self.groups.iter().map(of_group).collect();
        Tensor::cat(&found, 0).index_select(0, &self.places).unsqueeze(0).transpose(1, 2)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn rows_of_similar_length_share_a_group_and_keep_their_order() {
        let lengths = [40, 3, 38, 30, 29, 4, 0, 1];
        let groups = Groups::new(&lengths, Device::Cpu);
        let shapes: Vec<(i64, i64)> = groups.groups.iter().map(|g| (g.rows, g.longest)).collect();
        // Lengths 40, 38 and 30; then 29, which is less than three quarters of 40; then 4 and 3;
        // then 1. The empty row is in no group.
        assert_eq!(shapes, [(3, 40), (1, 29), (2, 4), (1, 1)]);
        let total = lengths.iter().sum::<i64>();
        let x = Tensor::arange(total * 2 * 3, (Kind::Float, Device::Cpu)).view([1, total, 2, 3]);
        let x_1htd = x.transpose(1, 2);
        let out = groups.each([&x_1htd, &x_1htd, &x_1htd], |[a, b, c]| (a + b + c) / 3.0);
        assert_eq!(out, x_1htd);
    }
}
