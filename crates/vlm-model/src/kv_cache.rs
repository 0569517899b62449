//! The key/value cache of attention: with it, generating a token computes only that token.
//!
//! Memory is allocated ahead of need and doubled when it is full, so that adding a token copies
//! only that token.
//!
//! Dimensions: B batch · K key/value heads · T new tokens · S slots (cached tokens and padding) ·
//! D head width

use tch::{Device, Kind, Tensor};

use crate::indices::index_tensor;

/// Number of slots that are allocated in addition to the first tokens.
const RESERVE: i64 = 64;

/// Keys and values of the tokens so far, for each block. For generation only: no gradient passes
/// through it.
#[derive(Debug, Default)]
pub struct KvCache {
    blocks: Vec<BlockCache>,
    padding: Option<Padding>,
}

/// Length of each row's padding on the left, `[B]`, on the host and on the model's device.
#[derive(Debug)]
struct Padding {
    lengths: Vec<i64>,
    on_device: Tensor,
}

/// Keys and values of one block, `[B, K, capacity, D]` each, of which the first `len` slots are
/// used.
#[derive(Debug)]
struct BlockCache {
    keys: Tensor,
    values: Tensor,
    len: i64,
}

impl KvCache {
    /// An empty cache for prompts of different lengths that are padded on the left. `padding` `[B]`
    /// is the length of each row's padding. Tokens do not attend to padding, and positions are
    /// counted from the first token.
    pub fn left_padded(padding: Vec<i64>, device: Device) -> Self {
        let mut cache = Self::default();
        cache.set_padding(padding, device);
        cache
    }

    /// Without a padded row, there is no mask and all rows have the same positions.
    fn set_padding(&mut self, lengths: Vec<i64>, device: Device) {
        self.padding = lengths
            .iter()
            .any(|&length| length > 0)
            .then(|| Padding { on_device: index_tensor(&lengths, device), lengths });
    }

    /// Length of each row's padding, for a cache of `num_rows` rows.
    fn padding_of(&self, num_rows: usize) -> Vec<i64> {
        self.padding.as_ref().map_or_else(|| vec![0; num_rows], |padding| padding.lengths.clone())
    }

    /// Number of slots that are used.
    pub fn len(&self) -> i64 {
        self.blocks.first().map_or(0, |block| block.len)
    }

    /// Whether the cache has no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of rows; 0 for a cache without tokens.
    pub fn num_rows(&self) -> usize {
        self.blocks.first().map_or(0, |block| block.keys.size()[0] as usize)
    }

    /// Number of slots of each row that are tokens, and not padding.
    pub fn row_lengths(&self) -> Vec<i64> {
        self.padding_of(self.num_rows()).iter().map(|padding| self.len() - padding).collect()
    }

    /// Keeps only the rows of the batch with the indices `rows`, in this order. Slots that are
    /// padding in all of them are removed.
    pub fn select_rows(&mut self, rows: &[usize]) {
        let Some(device) = self.blocks.first().map(|block| block.keys.device()) else { return };
        let padding = self.padding_of(self.num_rows());
        let padding: Vec<i64> = rows.iter().map(|&row| padding[row]).collect();
        let unused = padding.iter().copied().min().unwrap_or(0);
        let indices: Vec<i64> = rows.iter().map(|&row| row as i64).collect();
        let indices = index_tensor(&indices, device);
        for block in &mut self.blocks {
            let kept = block.keys.size()[2] - unused;
            for tensor in [&mut block.keys, &mut block.values] {
                *tensor = tensor.narrow(2, unused, kept).index_select(0, &indices);
            }
            block.len -= unused;
        }
        self.set_padding(padding.iter().map(|length| length - unused).collect(), device);
    }

    /// Adds the rows of `other` after those of this cache. The rows of the shorter cache get more
    /// padding.
    pub fn append(&mut self, other: Self) {
        if self.num_rows() == 0 {
            *self = other;
            return;
        }
        let Some(device) = other.blocks.first().map(|block| block.keys.device()) else { return };
        let len = self.len().max(other.len());
        let padding = [&*self, &other].map(|cache| {
            cache.row_lengths().iter().map(|row_length| len - row_length).collect::<Vec<_>>()
        });
        for (block, more) in self.blocks.iter_mut().zip(&other.blocks) {
            *block = block.followed_by(more, len);
        }
        self.set_padding(padding.concat(), device);
    }

    /// The positions of the next `len` tokens, `[B, T]`; `None` if they are the same in all rows.
    pub(crate) fn positions(&self, len: i64) -> Option<Tensor> {
        let padding = &self.padding.as_ref()?.on_device;
        let slots =
            Tensor::arange_start(self.len(), self.len() + len, (Kind::Int64, padding.device()));
        Some((slots.unsqueeze(0) - padding.unsqueeze(1)).clamp_min(0))
    }

    /// The attention mask of the next `len` tokens, `[B, 1, T, S]`, true where a token attends to a
    /// slot; `None` if no row is padded. A slot of padding attends to itself, because a softmax
    /// over no values is not a number.
    pub(crate) fn mask(&self, len: i64) -> Option<Tensor> {
        let padding = &self.padding.as_ref()?.on_device;
        let total = self.len() + len;
        let of = |start| Tensor::arange_start(start, total, (Kind::Int64, padding.device()));
        let (seen_by, slots) = (of(self.len()).view([1, 1, -1, 1]), of(0).view([1, 1, 1, -1]));
        let is_token = slots.ge_tensor(&padding.view([-1, 1, 1, 1]));
        let is_itself = slots.eq_tensor(&seen_by);
        Some(slots.le_tensor(&seen_by).logical_and(&is_token).logical_or(&is_itself))
    }

    /// Adds the new tokens' keys and values `[B, K, T, D]` of block `index`. Returns all keys and
    /// values of that block, `[B, K, S, D]`.
    pub(crate) fn extend(
        &mut self,
        index: usize,
        keys: &Tensor,
        values: &Tensor,
    ) -> (Tensor, Tensor) {
        if index == self.blocks.len() {
            self.blocks.push(BlockCache::for_tokens_like(keys));
        }
        self.blocks[index].extend(keys, values)
    }
}

impl BlockCache {
    fn for_tokens_like(keys: &Tensor) -> Self {
        let mut size = keys.size();
        size[2] += RESERVE;
        let empty = || Tensor::empty(&size, (keys.kind(), keys.device()));
        Self { keys: empty(), values: empty(), len: 0 }
    }

    /// The rows of both blocks, of which the last `len` slots are used.
    fn followed_by(&self, other: &Self, len: i64) -> Self {
        let joined = |[own, others]: [&Tensor; 2]| {
            let mut size = own.size();
            size[0] += others.size()[0];
            size[2] = len + RESERVE;
            // Zeros, because padding is multiplied by a weight of zero, and must be a number.
            let all = Tensor::zeros(&size, (own.kind(), own.device()));
            let mut row = 0;
            for (tensor, used) in [(own, self.len), (others, other.len)] {
                let num_rows = tensor.size()[0];
                let mut place = all.narrow(0, row, num_rows).narrow(2, len - used, used);
                tch::no_grad(|| place.copy_(&tensor.narrow(2, 0, used)));
                row += num_rows;
            }
            all
        };
        Self {
            keys: joined([&self.keys, &other.keys]),
            values: joined([&self.values, &other.values]),
            len,
        }
    }

    fn extend(&mut self, keys: &Tensor, values: &Tensor) -> (Tensor, Tensor) {
        let (new, len) = (keys.size()[2], self.len);
        let total = len + new;
        let capacity = self.keys.size()[2];
        if total > capacity {
            let more = total.max(2 * capacity) - capacity;
            for tensor in [&mut self.keys, &mut self.values] {
                let mut size = tensor.size();
                size[2] = more;
                *tensor = Tensor::cat(
                    &[&*tensor, &tensor.new_empty(&size, (tensor.kind(), tensor.device()))],
                    2,
                );
            }
        }
        self.len = total;
        let put = |all: &Tensor, new_tokens: &Tensor| {
            tch::no_grad(|| all.narrow(2, len, new).copy_(new_tokens));
            all.narrow(2, 0, total)
        };
        (put(&self.keys, keys), put(&self.values, values))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    #[test]
    fn keys_and_values_are_the_same_for_pieces_of_any_length() {
        let whole = Tensor::randn([2, 3, 300, 4], (Kind::Float, Device::Cpu));
        let mut cache = KvCache::default();
        let mut at = 0;
        // Pieces that exceed the reserve once and twice, and single tokens.
        for len in [5, 70, 200, 1, 1, 23] {
            let piece = whole.narrow(2, at, len);
            let (keys, values) = cache.extend(0, &piece, &(&piece * 2.0));
            at += len;
            assert_eq!(keys, whole.narrow(2, 0, at));
            assert_eq!(values, whole.narrow(2, 0, at) * 2.0);
        }
        assert_eq!(cache.len(), 300);
        cache.select_rows(&[1]);
        let (keys, _) = cache.extend(0, &whole.narrow(0, 1, 1), &whole.narrow(0, 1, 1));
        assert_eq!(keys.narrow(2, 0, 300), whole.narrow(0, 1, 1));
    }

    #[test]
    fn only_padding_attends_to_padding() {
        let cache = KvCache::left_padded(vec![0, 2], Device::Cpu);
        let mask = cache.mask(3).unwrap().to_kind(Kind::Int64);
        assert_eq!(
            Vec::<i64>::try_from(mask.flatten(0, -1)).unwrap(),
            [1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]
        );
        let positions = cache.positions(3).unwrap();
        assert_eq!(Vec::<i64>::try_from(positions.flatten(0, -1)).unwrap(), [0, 1, 2, 0, 0, 0]);
    }

    #[test]
    fn appended_rows_are_aligned_on_the_right_and_common_padding_is_removed() {
        let rows = |num_rows, len| Tensor::randn([num_rows, 1, len, 2], (Kind::Float, Device::Cpu));
        let (long, short) = (rows(1, 5), rows(2, 3));
        let mut cache = KvCache::default();
        let _ = cache.extend(0, &long, &long);
        let mut more = KvCache::left_padded(vec![1, 0], Device::Cpu);
        let _ = more.extend(0, &short, &short);
        cache.append(more);
        assert_eq!(cache.row_lengths(), [5, 2, 3]);
        let next = rows(3, 1);
        let (keys, _) = cache.extend(0, &next, &next);
        assert_eq!(keys.narrow(0, 0, 1).narrow(2, 0, 5), long);
        assert_eq!(keys.narrow(0, 1, 2).narrow(2, 2, 3), short);
        assert_eq!(keys.narrow(2, 5, 1), next);

        cache.select_rows(&[2, 1]);
        assert_eq!((cache.len(), cache.row_lengths()), (4, vec![4, 3]));
        let next = rows(2, 1);
        let (keys, _) = cache.extend(0, &next, &next);
        assert_eq!(keys.narrow(0, 0, 1).narrow(2, 0, 3), short.narrow(0, 1, 1));
        assert_eq!(keys.narrow(0, 1, 1).narrow(2, 1, 2), short.narrow(0, 0, 1).narrow(2, 1, 2));
    }
}
