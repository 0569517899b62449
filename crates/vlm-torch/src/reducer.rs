//! Averages gradients over a process group while the backward pass runs, with the `Reducer` of
//! Python's `DistributedDataParallel`.

use std::ffi::c_int;
use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::Tensor;

use crate::ffi::{self, ReducerHandle};
use crate::{Error, ProcessGroup, Result};

/// Options of a [`Reducer`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ReducerOptions {
    /// Size of the buckets in which gradients are sent, in bytes.
    pub bucket_bytes: i64,
    /// Size of the first bucket, which is smaller so that communication starts early.
    pub first_bucket_bytes: i64,
    /// Whether the loss may not depend on some parameters, for example those of experts without
    /// tokens. If so, the graph is searched for them in each step; if not, such a step is an error.
    pub find_unused_parameters: bool,
}

impl Default for ReducerOptions {
    /// PyTorch's defaults: the loss depends on every parameter.
    fn default() -> Self {
        Self { bucket_bytes: 25 << 20, first_bucket_bytes: 1 << 20, find_unused_parameters: false }
    }
}

/// Times of a step as the reducer measures them: the means over the first ten steps and every tenth
/// after them. All are zero before the first measurement.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReducerTimes {
    /// From [`Reducer::prepare_forward`] to [`Reducer::prepare_backward`].
    pub forward: Duration,
    /// From the start of the backward pass until its last gradient is computed.
    pub backward: Duration,
    /// From the start of the first bucket's communication until the last bucket is received.
    pub communication: Duration,
    /// The part of `communication` that overlaps with the backward pass.
    pub hidden: Duration,
}

/// Averages the gradients of a set of parameters over the ranks, until it is dropped. The gradients
/// become views of its buckets: reset them with [`crate::set_grad_none`], because tch's `zero_grad`
/// panics for them.
///
/// A step consists of [`Self::prepare_forward`], the forward pass, [`Self::prepare_backward`] with
/// the loss, and its backward pass; then the gradients are averages over the ranks. For
/// micro-batches that only accumulate gradients, neither method is called. The parameters must be
/// equal on all ranks at the start ([`ProcessGroup::broadcast`]).
#[derive(Debug)]
pub struct Reducer<'group> {
    handle: NonNull<ReducerHandle>,
    group: &'group ProcessGroup,
}

impl<'group> Reducer<'group> {
    /// A reducer for `params`, which must all require a gradient; their names are for messages. All
    /// ranks must call this.
    ///
    /// # Errors
    /// The shape of a parameter differs between ranks, or it does not require a gradient.
    pub fn new(
        group: &'group ProcessGroup,
        params: &[(String, Tensor)],
        options: &ReducerOptions,
    ) -> Result<Self> {
        const OPERATION: &str = "Reducer::new";
        if let Some((name, _)) = params.iter().find(|(_, param)| !param.requires_grad()) {
            return Err(Error::argument(
                OPERATION,
                format!("parameter {name:?} does not require a gradient"),
            ));
        }
        let names: Vec<_> = params.iter().map(|(name, _)| name.as_ptr()).collect();
        let name_sizes: Vec<_> = params.iter().map(|(name, _)| name.len()).collect();
        let handles = ffi::handles(params.iter().map(|(_, param)| param));
        let mut handle = ptr::null_mut();
        // SAFETY: three arrays of equal length that outlive the call, as do the names and tensors
        // that they refer to; the shim copies names and tensor handles, and has its own reference
        // to the group. `handle` receives an owned reducer on success.
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
        let handle = NonNull::new(handle)
            .ok_or_else(|| Error::torch(OPERATION, "no reducer was created"))?;
        Ok(Self { handle, group })
    }

    /// Called before the forward pass of a micro-batch whose gradients are averaged.
    ///
    /// # Errors
    /// The reduction of the previous step is not complete, because its loss did not depend on a
    /// parameter.
    pub fn prepare_forward(&self) -> Result<()> {
        // SAFETY: the reducer lives as long as `self`.
        let status = unsafe { ffi::vlm_reducer_prepare_forward(self.handle.as_ptr()) };
        self.group.check("Reducer::prepare_forward", status)
    }

    /// Called between the forward pass and the backward pass of `loss`.
    ///
    /// # Errors
    /// As [`Self::prepare_forward`].
    pub fn prepare_backward(&self, loss: &Tensor) -> Result<()> {
        // SAFETY: the reducer lives as long as `self`; the loss is borrowed for the call.
        let status =
            unsafe { ffi::vlm_reducer_prepare_backward(self.handle.as_ptr(), loss.as_ptr()) };
        self.group.check("Reducer::prepare_backward", status)
    }

    /// The times of a step.
    ///
    /// # Errors
    /// libtorch fails; no such case is known.
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

    /// Bytes of gradients that are summed over the ranks in each synchronised step, and the number
    /// of buckets.
    ///
    /// # Errors
    /// libtorch fails; no such case is known.
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
