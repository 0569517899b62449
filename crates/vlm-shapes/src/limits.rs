//! The largest numbers that a configuration may have: far above those of any model, so that a damaged
//! or forged file neither fills the memory with names nor makes a product overflow.

use crate::ShapeError;

/// Largest width of a layer, number of tokens in the vocabulary or number of positions.
pub(crate) const MAX_WIDTH: i64 = 1 << 24;

/// Largest number of attention heads, and width of one.
pub(crate) const MAX_HEADS: i64 = 1 << 12;

/// Largest number of blocks.
pub(crate) const MAX_BLOCKS: i64 = 1 << 12;

/// Largest number of experts in all blocks together.
pub(crate) const MAX_EXPERTS: i64 = 1 << 17;

/// Largest side of an image or a patch in pixels.
pub(crate) const MAX_SIDE: i64 = 1 << 14;

/// Checks that each named number is between 1 and its limit.
///
/// # Errors
/// The first that is not, with its name.
pub(crate) fn check(numbers: &[(&str, i64, i64)]) -> Result<(), ShapeError> {
    for &(name, value, limit) in numbers {
        if value < 1 {
            return Err(ShapeError::Config(format!("{name} is {value}; it must be at least 1")));
        }
        if value > limit {
            return Err(ShapeError::Config(format!("{name} is {value}; the limit is {limit}")));
        }
    }
    Ok(())
}
