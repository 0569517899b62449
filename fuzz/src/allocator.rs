//! The allocator of this program, which knows how many bytes are in use.

use cap::Cap;

/// Counts the bytes that are in use, so that an input that makes a reader allocate far more than it
/// has bytes is a finding.
#[global_allocator]
pub static ALLOCATOR: Cap<std::alloc::System> = Cap::new(std::alloc::System, usize::MAX);
