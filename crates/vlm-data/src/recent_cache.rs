//! Keeps the most recently used values in memory, up to a number of bytes.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

/// Largest total size of the kept values in bytes.
const MAX_BYTES: usize = 64 << 20;
/// Number of values that are kept regardless of their size: rows are read one after another, from the same
/// pages or buffers.
const MIN_KEPT: usize = 2;

/// A cache of values that threads share.
#[derive(Debug)]
pub(crate) struct RecentCache<K, V> {
    /// The most recently used value is first.
    values: Mutex<VecDeque<(K, Arc<V>)>>,
    num_bytes: fn(&V) -> usize,
}

impl<K: PartialEq, V> RecentCache<K, V> {
    /// An empty cache of values whose size `num_bytes` tells.
    pub(crate) fn new(num_bytes: fn(&V) -> usize) -> Self {
        Self { values: Mutex::default(), num_bytes }
    }

    /// The value of `key`, made if the cache does not have it. Two threads may make the same value.
    ///
    /// # Errors
    /// Those of `make`.
    pub(crate) fn get_or_make<E>(
        &self,
        key: K,
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<Arc<V>, E> {
        if let Some(found) = self.find(&key) {
            return Ok(found);
        }
        let value = Arc::new(make()?);
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        values.push_front((key, Arc::clone(&value)));
        let mut total = 0;
        let num_kept = values
            .iter()
            .take_while(|(_, value)| {
                total += (self.num_bytes)(value);
                total <= MAX_BYTES
            })
            .count();
        values.truncate(num_kept.max(MIN_KEPT));
        Ok(value)
    }

    fn find(&self, key: &K) -> Option<Arc<V>> {
        let mut values = self.values.lock().unwrap_or_else(PoisonError::into_inner);
        let at = values.iter().position(|(other, _)| other == key)?;
        let entry = values.remove(at)?;
        let value = Arc::clone(&entry.1);
        values.push_front(entry);
        Some(value)
    }
}
