//! A shuffle that is computed and not stored: the position of any row is known at once, for any
//! number of rows.

use rand::{RngCore, SeedableRng};
use rand_chacha::ChaCha8Rng;

use crate::mix::mix_bits;

/// Number of rounds. Four rounds of random functions make a Feistel network a strong permutation
/// (Luby and Rackoff 1988); the functions here are weaker than random, and a round takes a
/// nanosecond.
const NUM_ROUNDS: usize = 8;

/// Smallest number of bits in a half. With fewer there are so few round functions that the orders
/// would resemble each other.
const MIN_HALF_BITS: u32 = 4;

/// A permutation of `0..len` that is determined by a key: a Feistel network over the next power of
/// four, which is repeated while the result is out of the range (cycle walking, Black and Rogaway
/// 2002).
#[derive(Debug, Clone)]
pub(crate) struct Permutation {
    len: u64,
    half_bits: u32,
    keys: [u64; NUM_ROUNDS],
}

impl Permutation {
    /// The permutation of `key`.
    pub(crate) fn new(len: usize, key: [u8; 32]) -> Self {
        let len = len as u64;
        let bits = u64::BITS - len.saturating_sub(1).leading_zeros();
        let mut rng = ChaCha8Rng::from_seed(key);
        Self {
            len,
            half_bits: bits.div_ceil(2).max(MIN_HALF_BITS),
            keys: std::array::from_fn(|_| rng.next_u64()),
        }
    }

    /// The new position of `index`, which must be below the length.
    pub(crate) fn at(&self, index: usize) -> usize {
        debug_assert!((index as u64) < self.len);
        let mut value = index as u64;
        loop {
            // The walk returns to `index` at the latest, so the loop ends.
            value = self.walk(value);
            if value < self.len {
                return value as usize;
            }
        }
    }

    fn walk(&self, value: u64) -> u64 {
        let mask = (1 << self.half_bits) - 1;
        let (mut left, mut right) = (value >> self.half_bits, value & mask);
        for key in self.keys {
            (left, right) = (right, left ^ (mix_bits(right ^ key) & mask));
        }
        left << self.half_bits | right
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(seed: u64) -> [u8; 32] {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&seed.to_le_bytes());
        key
    }

    proptest! {
        #[test]
        fn every_place_is_taken_once(
            len in prop_oneof![1..300_usize, 4000..5000_usize, Just(70_000)],
            seed: u64,
        ) {
            let permutation = Permutation::new(len, key(seed));
            let mut seen = vec![false; len];
            for index in 0..len {
                prop_assert!(!std::mem::replace(&mut seen[permutation.at(index)], true));
            }
        }
    }

    /// Chi-square with 19 degrees of freedom is below 43.8 with probability 0.999.
    #[test]
    fn each_row_comes_to_each_place_about_as_often() {
        for index in [0, 7, 19] {
            let mut counts = [0f64; 20];
            for seed in 0..20_000 {
                counts[Permutation::new(20, key(seed)).at(index)] += 1.0;
            }
            let chi_square: f64 = counts.iter().map(|c| (c - 1000.0).powi(2) / 1000.0).sum();
            assert!(chi_square < 43.8, "row {index}: {chi_square}");
        }
    }

    /// Of 100,000 neighbours about one stays a neighbour by chance (Poisson with mean 2, both
    /// directions together); what is close stays close in a third of the range.
    #[test]
    fn neighbours_are_separated() {
        let len = 100_000;
        let permutation = Permutation::new(len, key(3));
        let places: Vec<usize> = (0..len).map(|index| permutation.at(index)).collect();
        let distances = places.windows(2).map(|pair| pair[0].abs_diff(pair[1]));
        assert!(distances.clone().filter(|&distance| distance == 1).count() < 12);
        let mean = distances.sum::<usize>() as f64 / (len - 1) as f64;
        assert!((mean / len as f64 - 1.0 / 3.0).abs() < 0.01, "{mean}");
    }
}
