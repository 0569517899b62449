//! The key/value cache of attention: with it, generating a token computes only that token.
//!
//! Memory is allocated ahead of need and doubled when it is full, so that adding a token copies
//! only that token.
//!
//! Dimensions: B batch · K key/value heads · T new tokens · S slots (cached tokens and padding) ·
//! D head width

use tch::{Kind, Tensor};

/// Number of slots that are allocated in addition to the first tokens.
const RESERVE: i64 = 64;

/// Keys and values of the tokens so far, for each block. For generation only: no gradient passes
/// through it.
#[derive(Debug, Default)]
pub struct KvCache {
    blocks: Vec<BlockCache>,
    padding: Option<Tensor>,
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
    /// (i64, on the model's device) is the length of each row's padding. Tokens do not attend to
    /// padding, and positions are counted from the first token.
    pub fn left_padded(padding: Tensor) -> Self {
        Self { blocks: Vec::new(), padding: Some(padding) }
    }

    /// Number of slots that are used.
    pub fn len(&self) -> i64 {
        self.blocks.first().map_or(0, |block| block.len)
    }

    /// Whether the cache has no tokens yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps only the rows of the batch with the indices `rows` (i64), in this order.
    pub fn select_rows(&mut self, rows: &Tensor) {
        for BlockCache { keys, values, .. } in &mut self.blocks {
            *keys = keys.index_select(0, rows);
            *values = values.index_select(0, rows);
        }
        self.padding = self.padding.as_ref().map(|padding| padding.index_select(0, rows));
    }

    /// The positions of the next `len` tokens, `[B, T]`; `None` if they are the same in all rows.
    pub(crate) fn positions(&self, len: i64) -> Option<Tensor> {
        let padding = self.padding.as_ref()?;
        let slots =
            Tensor::arange_start(self.len(), self.len() + len, (Kind::Int64, padding.device()));
        Some((slots.unsqueeze(0) - padding.unsqueeze(1)).clamp_min(0))
    }

    /// The attention mask of the next `len` tokens, `[B, 1, T, S]`, true where a token attends to a
    /// slot; `None` if no row is padded. A slot of padding attends to itself, because a softmax
    /// over no values is not a number.
    pub(crate) fn mask(&self, len: i64) -> Option<Tensor> {
        let padding = self.padding.as_ref()?;
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
        cache.select_rows(&Tensor::from_slice(&[1i64]));
        let (keys, _) = cache.extend(0, &whole.narrow(0, 1, 1), &whole.narrow(0, 1, 1));
        assert_eq!(keys.narrow(2, 0, 300), whole.narrow(0, 1, 1));
    }

    #[test]
    fn only_padding_attends_to_padding() {
        let cache = KvCache::left_padded(Tensor::from_slice(&[0i64, 2]));
        let mask = cache.mask(3).unwrap().to_kind(Kind::Int64);
        assert_eq!(
            Vec::<i64>::try_from(mask.flatten(0, -1)).unwrap(),
            [1, 0, 0, 1, 1, 0, 1, 1, 1, 1, 0, 0, 0, 1, 0, 0, 0, 1]
        );
        let positions = cache.positions(3).unwrap();
        assert_eq!(Vec::<i64>::try_from(positions.flatten(0, -1)).unwrap(), [0, 1, 2, 0, 0, 0]);
    }
}
