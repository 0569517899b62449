//! The last decoded pages of some Parquet files.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::levels::PageRows;
use crate::row_error::ReadError;

/// All pages kept together, in bytes.
const MAX_BYTES: usize = 64 << 20;

/// File, column, row group, page.
type Key = (usize, usize, usize, usize);

/// Keeps the pages used last, up to a number of bytes. Threads share it.
#[derive(Debug, Default)]
pub(crate) struct PageCache {
    /// The one used last is in front.
    pages: Mutex<VecDeque<(Key, Arc<PageRows>)>>,
}

impl PageCache {
    /// The page under `key`, decoded if it is not there. Two threads may decode one page at once.
    pub(super) fn get_or_decode(
        &self,
        key: Key,
        decode: impl FnOnce() -> Result<PageRows, ReadError>,
    ) -> Result<Arc<PageRows>, ReadError> {
        if let Some(found) = self.find(&key) {
            return Ok(found);
        }
        let page = Arc::new(decode()?);
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        pages.push_front((key, Arc::clone(&page)));
        let mut total = 0;
        let num_kept = pages
            .iter()
            .take_while(|(_, page)| {
                total += page.num_bytes();
                total <= MAX_BYTES
            })
            .count();
        // One of each column is kept, whatever its size: rows are read one after another.
        pages.truncate(num_kept.max(2));
        Ok(page)
    }

    fn find(&self, key: &Key) -> Option<Arc<PageRows>> {
        let mut pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        let at = pages.iter().position(|(other, _)| other == key)?;
        let entry = pages.remove(at)?;
        let page = Arc::clone(&entry.1);
        pages.push_front(entry);
        Some(page)
    }
}
