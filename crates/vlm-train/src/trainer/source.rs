//! Where a trainer's batches come from.

use vlm_data::{Batch, DataError, Loader};

/// Where a trainer's batches come from: a [`Loader`], or anything that keeps its promises.
pub trait BatchSource {
    /// Batches an epoch, every epoch.
    fn batches_per_epoch(&self) -> usize;
    /// The batches of an epoch from number `first` on.
    fn epoch(&self, epoch: u64, first: usize) -> Batches<'_>;
    /// Where a row stands, for a message.
    fn locate(&self, row: usize) -> String;
}

/// Batches in their order.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>;

impl BatchSource for Loader {
    fn batches_per_epoch(&self) -> usize {
        Loader::batches_per_epoch(self)
    }

    fn epoch(&self, epoch: u64, first: usize) -> Batches<'_> {
        Box::new(Loader::epoch(self, epoch, first))
    }

    fn locate(&self, row: usize) -> String {
        Loader::locate(self, row)
    }
}
