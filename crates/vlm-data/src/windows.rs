//! Keeps the current window of rows and makes the next one ahead of its use: the rows of a window
//! are tokenized once to find their lengths, and the loader should not wait for that in the middle
//! of an epoch.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::order::{BucketWindow, EpochOrder};
use crate::worker::RowMaker;

/// The global batches of an epoch.
pub(crate) struct BucketWindows {
    maker: Arc<RowMaker>,
    order: Arc<EpochOrder>,
    current: Option<BucketWindow>,
    /// The next window.
    next: Option<JoinHandle<BucketWindow>>,
    looks_ahead: bool,
}

impl BucketWindows {
    /// With `looks_ahead` the next window is made in a thread before it is needed.
    pub(crate) fn new(maker: Arc<RowMaker>, order: EpochOrder, looks_ahead: bool) -> Self {
        Self { maker, order: Arc::new(order), current: None, next: None, looks_ahead }
    }

    /// The rows of global batch `index`.
    pub(crate) fn global_batch(&mut self, index: usize) -> Vec<usize> {
        if let Some(window) = self.order.window_of(index)
            && self.current.as_ref().is_none_or(|current| current.index != window)
        {
            // If the thread ended without a window, it is made here.
            let made = self.next.take().and_then(|thread| thread.join().ok());
            let made = made.filter(|made| made.index == window);
            self.current = Some(made.unwrap_or_else(|| make(&self.order, &self.maker, window)));
            self.look_ahead(window + 1);
        }
        self.order.global_batch(index, self.current.as_ref())
    }

    fn look_ahead(&mut self, window: usize) {
        if !self.looks_ahead || window >= self.order.num_windows() {
            return;
        }
        let (order, maker) = (Arc::clone(&self.order), Arc::clone(&self.maker));
        self.next = std::thread::Builder::new()
            .name("loader-window".into())
            .spawn(move || make(&order, &maker, window))
            .ok();
    }
}

impl Drop for BucketWindows {
    fn drop(&mut self) {
        if let Some(thread) = self.next.take() {
            let _ = thread.join();
        }
    }
}

fn make(order: &EpochOrder, maker: &RowMaker, window: usize) -> BucketWindow {
    order.window(window, |rows| maker.lengths(order.epoch(), rows))
}
