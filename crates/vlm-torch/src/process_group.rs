//! Processes that train together: they meet at a TCP store and exchange CPU tensors by Gloo, the
//! same c10d that Python's `torch.distributed` uses. `torchrun` can launch them.

use std::ffi::{CString, c_int};
use std::ptr::{self, NonNull};
use std::time::Duration;

use tch::Tensor;

use crate::ffi::{self, GroupHandle};
use crate::{Error, Result};

/// Who this process is among which others, and where they meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOptions {
    /// Host of the store: `MASTER_ADDR`.
    pub master_addr: String,
    /// Its port: `MASTER_PORT`.
    pub master_port: u16,
    /// This process, from 0: `RANK`.
    pub rank: usize,
    /// How many there are: `WORLD_SIZE`.
    pub world_size: usize,
    /// Whether this process runs the store. One does: rank 0, unless the launcher does it
    /// (`TORCHELASTIC_USE_AGENT_STORE=True`).
    pub is_server: bool,
    /// How long to wait for the others, at the start and in each operation.
    pub timeout: Duration,
}

/// A group of processes. Every operation is collective: all ranks call it, in the same order.
#[derive(Debug)]
pub struct ProcessGroup {
    handle: NonNull<GroupHandle>,
    rank: usize,
    world_size: usize,
}

impl ProcessGroup {
    /// Meets the other ranks; returns when all are there.
    /// # Errors
    /// A rank outside of the world; a port that is taken; ranks that do not come in time.
    pub fn connect(options: &GroupOptions) -> Result<Self> {
        const OPERATION: &str = "connect";
        let GroupOptions { master_addr, master_port, rank, world_size, is_server, timeout } =
            options;
        let wrong = |message: String| Error::argument("connect to the process group", message);
        let (Ok(c_rank), Ok(c_size)) = (c_int::try_from(*rank), c_int::try_from(*world_size))
        else {
            return Err(wrong(format!("rank {rank} of {world_size} is too large")));
        };
        if rank >= world_size {
            return Err(wrong(format!("rank {rank} of {world_size}; ranks start at 0")));
        }
        let host =
            CString::new(master_addr.as_str()).map_err(|e| wrong(format!("master_addr: {e}")))?;
        let timeout_ms = i64::try_from(timeout.as_millis()).unwrap_or(i64::MAX);
        let mut handle = ptr::null_mut();
        // SAFETY: a NUL-terminated string and numbers; `handle` outlives the call, which writes an
        // owned group to it on success.
        let status = unsafe {
            ffi::vlm_group_connect(
                host.as_ptr(),
                *master_port,
                c_rank,
                c_size,
                c_int::from(*is_server),
                timeout_ms,
                &mut handle,
            )
        };
        let describe = |error: Error| error.on_rank(*rank, *world_size);
        ffi::check(OPERATION, status).map_err(describe)?;
        let handle =
            NonNull::new(handle).ok_or_else(|| Error::torch(OPERATION, "no group was made"))?;
        Ok(Self { handle, rank: *rank, world_size: *world_size })
    }

    /// This process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// How many processes there are.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Replaces a CPU tensor by the sum of all ranks' tensors.
    /// # Errors
    /// Shapes or dtypes that differ between ranks, a rank that died or hangs past the timeout.
    pub fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<()> {
        // SAFETY: the group lives as long as `self`; the tensor is borrowed mutably for the call.
        let status =
            unsafe { ffi::vlm_group_all_reduce_sum(self.handle.as_ptr(), tensor.as_mut_ptr()) };
        self.check("all_reduce_sum", status)
    }

    /// Replaces the tensors by those of rank `root`.
    /// # Errors
    /// As [`Self::all_reduce_sum`]; a root outside of the world.
    pub fn broadcast(&self, tensors: &[Tensor], root: usize) -> Result<()> {
        const OPERATION: &str = "broadcast";
        let root =
            c_int::try_from(root).ok().filter(|_| root < self.world_size).ok_or_else(|| {
                Error::argument(OPERATION, format!("root {root} of {} ranks", self.world_size))
            })?;
        let handles = ffi::handles(tensors);
        // SAFETY: the group lives as long as `self`; the handles are borrowed for the call. Values
        // change in place, as with every in-place operation of tch on a shallow clone.
        let status = unsafe {
            ffi::vlm_group_broadcast(self.handle.as_ptr(), handles.as_ptr(), handles.len(), root)
        };
        self.check(OPERATION, status)
    }

    /// Waits until every rank is here.
    /// # Errors
    /// A rank that died or hangs past the timeout.
    pub fn barrier(&self) -> Result<()> {
        // SAFETY: the group lives as long as `self`.
        let status = unsafe { ffi::vlm_group_barrier(self.handle.as_ptr()) };
        self.check("barrier", status)
    }

    pub(crate) fn handle(&self) -> *mut GroupHandle {
        self.handle.as_ptr()
    }

    pub(crate) fn check(&self, operation: &'static str, status: c_int) -> Result<()> {
        ffi::check(operation, status).map_err(|error| error.on_rank(self.rank, self.world_size))
    }
}

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        // SAFETY: the handle came from `vlm_group_connect` and is freed once. Reducers that still
        // use the group hold references of their own.
        unsafe { ffi::vlm_group_free(self.handle.as_ptr()) }
    }
}
