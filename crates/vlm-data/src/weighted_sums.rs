//! Sums of rows of bytes under integer weights, with vectors of eight products.
//!
//! The sums are those of Pillow's `Resample.c`, exact in 32 bits. A weight has more bits than a
//! vector's 16, so it is split into two parts, and the two sums are joined at the end. The vectors
//! multiply pairs of values and add each pair (`pmaddwd` of SSE2, which every x86-64 CPU has), so
//! two rows are kept together.

use wide::{i16x8, i32x4};

/// Fractional bits of a weight: of the 32 bits of a sum, 8 are for a pixel and 2 for overshoot.
pub(crate) const WEIGHT_BITS: u32 = 32 - 8 - 2;

/// Bits of the lower part of a weight.
const LOW_BITS: u32 = WEIGHT_BITS / 2;

/// Half a unit of the result, which is rounded down.
const HALF: i32 = 1 << (WEIGHT_BITS - 1);

/// Values of the sums that are computed together, in four vectors of pairs.
const LANES: usize = 16;

/// Rows of 48 bytes. An element has the values of a row of even index in its lower 16 bits, and of
/// the next row in its upper ones.
pub(crate) struct Block {
    pairs: Vec<[u32; Self::WIDTH]>,
}

impl Block {
    /// Bytes of a row.
    pub(crate) const WIDTH: usize = 3 * LANES;

    /// A block of `rows` rows of zeros.
    pub(crate) fn new(rows: usize) -> Self {
        Self { pairs: vec![[0; Self::WIDTH]; rows.div_ceil(2)] }
    }

    /// Sets the first bytes of all rows. The rows of `bytes` have at most [`Self::WIDTH`] bytes.
    pub(crate) fn set_rows<'a>(&mut self, mut bytes: impl Iterator<Item = &'a [u8]>) {
        for pair in &mut self.pairs {
            let first = bytes.next().unwrap_or_default();
            let second = bytes.next().unwrap_or(&[0; Self::WIDTH]);
            set_pair(pair, first, second);
        }
    }

    /// Sets the `N` bytes from `start` on of all rows.
    pub(crate) fn set_column<const N: usize>(&mut self, start: usize, bytes: &[[u8; N]]) {
        for (pair, bytes) in self.pairs.iter_mut().zip(bytes.chunks(2)) {
            let second = bytes.get(1).unwrap_or(&[0; N]);
            set_pair(&mut pair[start..start + N], &bytes[0], second);
        }
    }

    /// The rounded sum of the rows under `weights`, limited to 0 to 255.
    pub(crate) fn sum(&self, weights: &Weights) -> [u8; Self::WIDTH] {
        let mut out = [0; Self::WIDTH];
        let pairs = &self.pairs[weights.first_pair..];
        for (part, out) in out.as_chunks_mut::<LANES>().0.iter_mut().enumerate() {
            let mut high = [i32x4::splat(0); LANES / 4];
            let mut low = [i32x4::splat(HALF); LANES / 4];
            for (values, [high_weights, low_weights]) in pairs.iter().zip(&weights.pairs) {
                let values: [i16x8; LANES / 4] =
                    bytemuck::cast(values.as_chunks::<LANES>().0[part]);
                for (sums, values) in values.iter().enumerate() {
                    high[sums] += values.dot(*high_weights);
                    low[sums] += values.dot(*low_weights);
                }
            }
            for (out, (high, low)) in out.as_chunks_mut().0.iter_mut().zip(high.iter().zip(low)) {
                let sums: i32x4 = (*high << LOW_BITS) + low;
                *out = sums.to_array().map(|sum| (sum >> WEIGHT_BITS).clamp(0, 255) as u8);
            }
        }
        out
    }
}

/// The weights of the rows of a block from one row on.
pub(crate) struct Weights {
    first_pair: usize,
    /// Upper and lower part of the weights of two rows, as the values of a block.
    pairs: Vec<[i16x8; 2]>,
}

impl Weights {
    /// The weights of the rows from `first` on, in units of 2<sup>-[`WEIGHT_BITS`]</sup>. As
    /// numbers they are between -16 and 16.
    pub(crate) fn new(first: usize, weights: &[i32]) -> Self {
        let mut of_pairs = vec![0; first % 2];
        of_pairs.extend(weights);
        of_pairs.resize(of_pairs.len().next_multiple_of(2), 0);
        let (of_pairs, _) = of_pairs.as_chunks::<2>();
        let low_part = |weight: i32| weight & ((1 << LOW_BITS) - 1);
        let pair = |&weights: &[i32; 2]| {
            [weights.map(|weight| weight >> LOW_BITS), weights.map(low_part)]
                .map(|[first, second]| bytemuck::cast([packed(first as u16, second as u16); 4]))
        };
        Self { first_pair: first / 2, pairs: of_pairs.iter().map(pair).collect() }
    }
}

fn set_pair(pair: &mut [u32], first: &[u8], second: &[u8]) {
    for (value, (&first, &second)) in pair.iter_mut().zip(first.iter().zip(second)) {
        *value = packed(first.into(), second.into());
    }
}

fn packed(first: u16, second: u16) -> u32 {
    u32::from(first) | u32::from(second) << 16
}
