//! The window of rows at hand, and the next one in the making: rows are tokenized once to know how
//! long they are, and nobody shall wait for it in the middle of an epoch.

use std::sync::Arc;
use std::thread::JoinHandle;

use crate::order::{EpochOrder, Window};
use crate::worker::RowMaker;

/// The global batches of an epoch.
pub(crate) struct Windows {
    maker: Arc<RowMaker>,
    order: Arc<EpochOrder>,
    current: Option<Window>,
    /// The window after it.
    next: Option<JoinHandle<Window>>,
    looks_ahead: bool,
}

impl Windows {
    /// `looks_ahead`: whether the next window is made in a thread before it is asked for.
    pub(crate) fn new(maker: Arc<RowMaker>, order: EpochOrder, looks_ahead: bool) -> Self {
        Self { maker, order: Arc::new(order), current: None, next: None, looks_ahead }
    }

    /// The rows of global batch `index`.
    pub(crate) fn global_batch(&mut self, index: usize) -> Vec<usize> {
        if let Some(window) = self.order.window_of(index)
            && self.current.as_ref().is_none_or(|current| current.index != window)
        {
            // A thread that ended without a window is no loss: it is made here.
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

impl Drop for Windows {
    fn drop(&mut self) {
        if let Some(thread) = self.next.take() {
            let _ = thread.join();
        }
    }
}

fn make(order: &EpochOrder, maker: &RowMaker, window: usize) -> Window {
    order.window(window, |rows| maker.lengths(rows))
}
