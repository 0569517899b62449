//! Rows to samples to batches, on the host, without libtorch.
