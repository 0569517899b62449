//! Random numbers of the operating system, for ids and for seeds that a request does not give.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};

/// A random number. The keys of the standard library's hash maps are the only source that needs no
/// further dependency; they are not secret.
pub(crate) fn random_u64() -> u64 {
    RandomState::new().build_hasher().finish()
}
