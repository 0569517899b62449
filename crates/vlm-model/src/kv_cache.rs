//! What attention keeps of the tokens seen so far, so that each new token costs one step.
//!
//! Memory is taken ahead and doubled when it is full: adding a token copies that token alone.
//!
//! Dimensions: B rows · K key/value heads · T new tokens · S slots (tokens seen, padding included)
//! · D head width

use tch::{Kind, Tensor};

/// Slots taken beyond the first tokens.
const RESERVE: i64 = 64;

/// Keys and values of the tokens seen so far, one pair a block. For generation only: no gradient
/// passes through it.
#[derive(Debug, Default)]
pub struct KvCache {
    blocks: Vec<BlockCache>,
    padding: Option<Tensor>,
}

/// `[B, K, capacity, D]` each, of which the first `len` slots are taken.
#[derive(Debug)]
struct BlockCache {
    keys: Tensor,
    values: Tensor,
    len: i64,
}

impl KvCache {
    /// For prompts of different lengths, filled up on the left: `padding` `[B]` (i64, on the
    /// model's device) tells how many slots of each row's front are no tokens. They are never
    /// looked at, and positions are counted from the first token.
    pub fn left_padded(padding: Tensor) -> Self {
        Self { blocks: Vec::new(), padding: Some(padding) }
    }

    /// Number of slots taken.
    pub fn len(&self) -> i64 {
        self.blocks.first().map_or(0, |block| block.len)
    }

    /// Whether no token has been seen yet.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Keeps only the given rows of the batch, in the given order.
    pub fn select_rows(&mut self, rows: &Tensor) {
        for BlockCache { keys, values, .. } in &mut self.blocks {
            *keys = keys.index_select(0, rows);
            *values = values.index_select(0, rows);
        }
        self.padding = self.padding.as_ref().map(|padding| padding.index_select(0, rows));
    }

    /// `[B, T]`: the positions of the next `len` tokens, where rows differ in that.
    pub(crate) fn positions(&self, len: i64) -> Option<Tensor> {
        let padding = self.padding.as_ref()?;
        let slots =
            Tensor::arange_start(self.len(), self.len() + len, (Kind::Int64, padding.device()));
        Some((slots.unsqueeze(0) - padding.unsqueeze(1)).clamp_min(0))
    }

    /// `[B, 1, T, S]`: true where one of the next `len` tokens may look, when rows are padded. A
    /// slot of padding looks at itself: a row of the softmax must not be empty.
    pub(crate) fn mask(&self, len: i64) -> Option<Tensor> {
        let padding = self.padding.as_ref()?;
        let total = self.len() + len;
        let of = |start| Tensor::arange_start(start, total, (Kind::Int64, padding.device()));
        let (seen_by, slots) = (of(self.len()).view([1, 1, -1, 1]), of(0).view([1, 1, 1, -1]));
        let is_token = slots.ge_tensor(&padding.view([-1, 1, 1, 1]));
        let is_itself = slots.eq_tensor(&seen_by);
        Some(slots.le_tensor(&seen_by).logical_and(&is_token).logical_or(&is_itself))
    }

    /// Adds the new tokens' keys and values `[B, K, T, D]` of block `index` and returns all of
    /// that block, `[B, K, S, D]`.
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
    fn what_was_added_is_there_whatever_the_pieces() {
        let whole = Tensor::randn([2, 3, 300, 4], (Kind::Float, Device::Cpu));
        let mut cache = KvCache::default();
        let mut at = 0;
        // Beyond the reserve, beyond twice it, and one at a time.
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
    fn padding_is_hidden_from_all_but_itself() {
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
