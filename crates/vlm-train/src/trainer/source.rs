//! The source of a trainer's batches.

use vlm_data::{Batch, DataError, Loader};

/// The source of a trainer's batches, such as a [`Loader`].
pub trait BatchSource {
    /// Number of batches in an epoch, the same for every epoch and on every rank.
    fn batches_per_epoch(&self) -> usize;
    /// This rank's batches of `epoch`, in order, from batch `first` on.
    fn epoch(&self, epoch: u64, first: usize) -> Batches<'_>;
    /// The location of row `row` in the dataset, for a message.
    fn locate(&self, row: usize) -> String;
}

/// An iterator over batches.
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
