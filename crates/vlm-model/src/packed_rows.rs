//! Rows that lie end to end in one sequence, `[1, total]`, instead of side by side, filled up to the
//! longest.
//!
//! Dimensions: R rows · N tokens of all rows · G rows of a group · L longest of them

use tch::{Device, Tensor};

use crate::indices::index_tensor;

/// A row joins a group when it has at least this share of the longest's tokens: 3 / 4.
const LEAST_SHARE: (i64, i64) = (3, 4);

/// Where the rows of a packed sequence are.
#[derive(Debug)]
pub(crate) struct PackedRows {
    num_rows: i64,
    groups: Groups,
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
            index_tensor(&values, device)
        };
        Self {
            num_rows: lengths.len() as i64,
            groups: Groups::new(lengths, device),
            row_of_token: of_each(&|row, _| row),
            positions: of_each(&|_, at| at),
        }
    }

    /// Another handle of the same.
    pub(crate) fn share(&self) -> Self {
        Self {
            num_rows: self.num_rows,
            groups: self.groups.share(),
            row_of_token: self.row_of_token.shallow_clone(),
            positions: self.positions.shallow_clone(),
        }
    }

    /// The rows side by side, in groups of like length.
    pub(crate) fn groups(&self) -> &Groups {
        &self.groups
    }

    /// `[1, N]`, i64.
    pub(crate) fn positions(&self) -> Tensor {
        self.positions.unsqueeze(0)
    }

    /// `[N, E]` → `[R, E]`: the sums over each row's tokens.
    pub(crate) fn sums(&self, values_ne: &Tensor) -> Tensor {
        let size = [self.num_rows, values_ne.size()[1]];
        Tensor::zeros(size, (values_ne.kind(), values_ne.device()))
            .index_add(0, &self.row_of_token, values_ne)
    }
}

/// The rows side by side for attention, which sees whole rows: in groups of like length, each filled
/// up to its longest. One call a group instead of one a row, and little computed in vain.
#[derive(Debug)]
pub(crate) struct Groups {
    groups: Vec<Group>,
    /// `[N]`, i64: where each token is in the groups laid end to end.
    places: Tensor,
}

#[derive(Debug)]
struct Group {
    rows: i64,
    longest: i64,
    /// `[G · L]`, i64: the token in each place. A row is filled up with its own last token, which
    /// those before it do not see.
    tokens: Tensor,
}

impl Groups {
    fn new(lengths: &[i64], device: Device) -> Self {
        let (share, whole) = LEAST_SHARE;
        let starts: Vec<i64> = lengths
            .iter()
            .scan(0, |end, &length| {
                *end += length;
                Some(*end - length)
            })
            .collect();
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
            let count =
                rest.iter().take_while(|&&row| lengths[row] * whole >= longest * share).count();
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

    /// Another handle of the same.
    fn share(&self) -> Self {
        let share = |group: &Group| Group { tokens: group.tokens.shallow_clone(), ..*group };
        Self {
            groups: self.groups.iter().map(share).collect(),
            places: self.places.shallow_clone(),
        }
    }

    /// Calls `attend` with each group's part of `inputs`, `[1, heads, N, D]` → `[G, heads, L, D]`,
    /// and puts the tokens of what it returns, of the shape of the first, back in their places:
    /// `[1, heads, N, D]`.
    pub(crate) fn each(
        &self,
        inputs: [&Tensor; 3],
        attend: impl Fn([&Tensor; 3]) -> Tensor,
    ) -> Tensor {
        // Heads after tokens: a token's numbers are then in one piece.
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
    fn rows_of_like_length_are_attended_together_and_come_back_in_order() {
        let lengths = [40, 3, 38, 30, 29, 4, 0, 1];
        let groups = Groups::new(&lengths, Device::Cpu);
        let shapes: Vec<(i64, i64)> = groups.groups.iter().map(|g| (g.rows, g.longest)).collect();
        // 40, 38 and 30; 29 is less than three quarters of 40. Then 4 and 3, and 1.
        assert_eq!(shapes, [(3, 40), (1, 29), (2, 4), (1, 1)]);
        let total = lengths.iter().sum::<i64>();
        let x = Tensor::arange(total * 2 * 3, (Kind::Float, Device::Cpu)).view([1, total, 2, 3]);
        let x_1htd = x.transpose(1, 2);
        let out = groups.each([&x_1htd, &x_1htd, &x_1htd], |[a, b, c]| (a + b + c) / 3.0);
        assert_eq!(out, x_1htd);
    }
}
