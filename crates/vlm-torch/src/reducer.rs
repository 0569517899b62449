//! Averaging of gradients over a process group, overlapped with the backward pass: the `Reducer`
//! under Python's `DistributedDataParallel`.

use std::ffi::c_int;
use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::Tensor;

use crate::ffi::{self, ReducerHandle};
use crate::{Error, ProcessGroup, Result};

/// How gradients are put together for the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReducerOptions {
    /// Bytes of gradients that travel together.
    pub bucket_bytes: i64,
    /// The same for the first bucket, small so that the network starts early.
    pub first_bucket_bytes: i64,
    /// Parameters may have no part in a loss (experts without a token). Costs a walk over the graph
    /// each step; without it such a step is an error.
    pub find_unused_parameters: bool,
}

impl Default for ReducerOptions {
    /// PyTorch's sizes; every parameter is used.
    fn default() -> Self {
        Self { bucket_bytes: 25 << 20, first_bucket_bytes: 1 << 20, find_unused_parameters: false }
    }
}

/// How long a step takes, as the reducer itself measured it: means over the first ten steps and
/// every tenth after them. All zero before a step was measured.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReducerTimes {
    /// From [`Reducer::prepare_forward`] to [`Reducer::prepare_backward`].
    pub forward: Duration,
    /// The backward pass, until the last gradient was computed.
    pub backward: Duration,
    /// From the first bucket's sending to the last one's arrival.
    pub communication: Duration,
    /// The part of it during which the backward pass still computed.
    pub hidden: Duration,
}

/// Hooks into the gradients of a set of parameters until dropped. Gradients become views of its
/// buckets: reset them with [`crate::set_grad_none`], tch's `zero_grad` panics on them.
///
/// A step: [`Self::prepare_forward`], the forward pass, [`Self::prepare_backward`] with the loss, its
/// backward pass; then the gradients are averages over the ranks. Micro-batches that only accumulate
/// leave both calls out. The parameters must be equal on all ranks at the start
/// ([`ProcessGroup::broadcast`]).
#[derive(Debug)]
pub struct Reducer<'group> {
    handle: NonNull<ReducerHandle>,
    group: &'group ProcessGroup,
}

impl<'group> Reducer<'group> {
    /// All of `params` require gradients; names are for messages. Collective.
    /// # Errors
    /// Parameters whose shapes differ between ranks, or that want no gradient.
    pub fn new(
        group: &'group ProcessGroup,
        params: &[(String, Tensor)],
        options: &ReducerOptions,
    ) -> Result<Self> {
        const OPERATION: &str = "Reducer::new";
        if let Some((name, _)) = params.iter().find(|(_, param)| !param.requires_grad()) {
            return Err(Error::argument(
                OPERATION,
                format!("parameter {name:?} wants no gradient"),
            ));
        }
        let names: Vec<_> = params.iter().map(|(name, _)| name.as_ptr()).collect();
        let name_sizes: Vec<_> = params.iter().map(|(name, _)| name.len()).collect();
        let handles = ffi::handles(params.iter().map(|(_, param)| param));
        let mut handle = ptr::null_mut();
        // SAFETY: three arrays of equal length that, like the names and tensors behind them, outlive
        // the call; the shim copies names and tensor handles, and holds its own reference to the
        // group. `handle` receives an owned reducer on success.
        let status = unsafe {
            ffi::vlm_reducer_new(
                group.handle(),
                names.as_ptr(),
                name_sizes.as_ptr(),
                handles.as_ptr(),
                handles.len(),
                options.bucket_bytes,
                options.first_bucket_bytes,
                c_int::from(options.find_unused_parameters),
                &mut handle,
            )
        };
        group.check(OPERATION, status)?;
        let handle =
            NonNull::new(handle).ok_or_else(|| Error::torch(OPERATION, "no reducer was made"))?;
        Ok(Self { handle, group })
    }

    /// Before the forward pass of a micro-batch whose gradients are to be averaged.
    /// # Errors
    /// The step before left gradients unfinished: a parameter without a part in the loss.
    pub fn prepare_forward(&self) -> Result<()> {
        // SAFETY: the reducer lives as long as `self`.
        let status = unsafe { ffi::vlm_reducer_prepare_forward(self.handle.as_ptr()) };
        self.group.check("Reducer::prepare_forward", status)
    }

    /// Between the forward pass and the backward pass of `loss`.
    /// # Errors
    /// As [`Self::prepare_forward`].
    pub fn prepare_backward(&self, loss: &Tensor) -> Result<()> {
        // SAFETY: the reducer lives as long as `self`; the loss is borrowed for the call.
        let status =
            unsafe { ffi::vlm_reducer_prepare_backward(self.handle.as_ptr(), loss.as_ptr()) };
        self.group.check("Reducer::prepare_backward", status)
    }

    /// Where the time goes.
    /// # Errors
    /// libtorch's own; none is known.
    pub fn times(&self) -> Result<ReducerTimes> {
        let mut nanoseconds = [0i64; 4];
        // SAFETY: the reducer lives as long as `self`; the call writes four numbers.
        let status =
            unsafe { ffi::vlm_reducer_times(self.handle.as_ptr(), nanoseconds.as_mut_ptr()) };
        self.group.check("Reducer::times", status)?;
        let [forward, backward, communication, hidden] =
            nanoseconds.map(|ns| Duration::from_nanos(ns.max(0) as u64));
        Ok(ReducerTimes { forward, backward, communication, hidden })
    }

    /// Bytes of gradients that are summed over the ranks at each synchronised step, and in how many
    /// buckets.
    /// # Errors
    /// libtorch's own; none is known.
    pub fn bucket_bytes(&self) -> Result<(u64, usize)> {
        let (mut bytes, mut count) = (0i64, 0i64);
        // SAFETY: the reducer lives as long as `self`; both numbers outlive the call.
        let status =
            unsafe { ffi::vlm_reducer_bucket_bytes(self.handle.as_ptr(), &mut bytes, &mut count) };
        self.group.check("Reducer::bucket_bytes", status)?;
        Ok((bytes as u64, count as usize))
    }
}

impl Drop for Reducer<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle came from `vlm_reducer_new` and is freed once.
        unsafe { ffi::vlm_reducer_free(self.handle.as_ptr()) }
    }
}
