//! Requests to a running training, which signal handlers set.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::{Deserialize, Serialize};

/// Flags that ask a running training to do something. A signal handler sets them, and clones share
/// them. With several processes a request to one of them is a request to all.
#[derive(Debug, Clone, Default)]
pub struct Requests {
    /// Save and end after the current update.
    pub stop: Arc<AtomicBool>,
    /// Save after the current update, and continue.
    pub save: Arc<AtomicBool>,
}

/// A request of one rank, or of all ranks together. The larger one includes the smaller ones.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Request {
    /// No request.
    #[default]
    None,
    /// Save and continue.
    Save,
    /// Save and end.
    Stop,
}

impl Requests {
    /// Whether the training was asked to end.
    pub fn stop(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// The current request. A request to save is returned once.
    pub(crate) fn take(&self) -> Request {
        let save = self.save.swap(false, Ordering::Relaxed);
        match self.stop() {
            true => Request::Stop,
            false if save => Request::Save,
            false => Request::None,
        }
    }
}
