//! Mixes the bits of a number.

/// The finaliser of SplitMix64 (Steele, Lea and Flood 2014): every bit of the result depends on
/// every bit of `x`, so that consecutive numbers give unrelated results.
pub fn mix_bits(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// The number that SplitMix64 adds to its state before each result.
pub const GOLDEN_GAMMA: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_splitmix64() {
        // The first two numbers of Vigna's splitmix64.c from the state 1234567.
        let state = 1_234_567_u64;
        let number = |k: u64| mix_bits(state.wrapping_add(GOLDEN_GAMMA.wrapping_mul(k)));
        assert_eq!([number(1), number(2)], [6_457_827_717_110_365_317, 3_203_168_211_198_807_973]);
    }
}
