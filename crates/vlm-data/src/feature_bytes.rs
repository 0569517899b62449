//! Reuses the memory of batches of features. The features of a batch take megabytes; requesting
//! that memory from the system for each batch, page by page, costs three times as much as filling
//! it.

use std::fmt;
use std::ops::Deref;
use std::sync::{Arc, Mutex, PoisonError};

/// Number of free buffers that are kept; further ones are returned to the system.
const MAX_WAITING: usize = 8;

/// The bytes of some features. When dropped, their memory is used for a later batch of the same
/// cache.
pub struct FeatureBytes {
    bytes: Vec<u8>,
    pool: Option<Arc<Pool>>,
}

/// Free buffers of any length.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<Vec<Vec<u8>>>);

impl FeatureBytes {
    /// `len` bytes of unspecified content.
    pub(crate) fn from_pool(pool: &Arc<Pool>, len: usize) -> Self {
        let waiting = pool.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let bytes = match waiting {
            Some(mut bytes) if bytes.capacity() >= len => {
                bytes.resize(len, 0);
                bytes
            }
            _ => vec![0; len],
        };
        Self { bytes, pool: Some(Arc::clone(pool)) }
    }

    pub(crate) fn as_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for FeatureBytes {
    fn drop(&mut self) {
        if let Some(pool) = &self.pool {
            let mut waiting = pool.0.lock().unwrap_or_else(PoisonError::into_inner);
            if waiting.len() < MAX_WAITING {
                waiting.push(std::mem::take(&mut self.bytes));
            }
        }
    }
}

impl From<Vec<u8>> for FeatureBytes {
    fn from(bytes: Vec<u8>) -> Self {
        Self { bytes, pool: None }
    }
}

impl Deref for FeatureBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Clone for FeatureBytes {
    fn clone(&self) -> Self {
        self.bytes.clone().into()
    }
}

impl PartialEq for FeatureBytes {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for FeatureBytes {}

impl fmt::Debug for FeatureBytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_a_dropped_batch_serves_the_next_whatever_its_length() {
        let pool = Arc::new(Pool::default());
        let first = FeatureBytes::from_pool(&pool, 100);
        let at = first.as_ptr();
        drop(first);
        let mut second = FeatureBytes::from_pool(&pool, 40);
        assert_eq!((second.as_ptr(), second.len()), (at, 40));
        second.as_mut().fill(7);
        let copy = second.clone();
        drop(second);
        assert_eq!(FeatureBytes::from_pool(&pool, 100).len(), 100);
        assert!(copy.iter().all(|&byte| byte == 7));
        let many: Vec<_> = (0..20).map(|_| FeatureBytes::from_pool(&pool, 10)).collect();
        drop(many);
        assert_eq!(pool.0.lock().unwrap().len(), MAX_WAITING);
    }
}
