//! Process groups: processes that train together connect through a TCP store and exchange CPU
//! tensors with Gloo. This is c10d, as in Python's `torch.distributed`; `torchrun` can launch the
//! processes.

use std::ffi::{CString, c_int};
use std::net::{IpAddr, UdpSocket};
use std::ptr::{self, NonNull};
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tch::{Device, Kind, Tensor};

use crate::ffi::{self, GroupHandle};
use crate::{Error, Result};

/// The rank of this process, the size of the group, and the address of its store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupOptions {
    /// Host of the store: `MASTER_ADDR`.
    pub master_addr: String,
    /// Port of the store: `MASTER_PORT`.
    pub master_port: u16,
    /// Rank of this process, from 0: `RANK`.
    pub rank: usize,
    /// Number of processes: `WORLD_SIZE`.
    pub world_size: usize,
    /// Whether this process runs the store. Rank 0 does, unless the launcher runs it
    /// (`TORCHELASTIC_USE_AGENT_STORE=True`).
    pub is_server: bool,
    /// Longest time to wait for the other ranks, at the start and in each operation.
    pub timeout: Duration,
    /// Whether all ranks are on this machine, so that a loopback address can be used.
    pub is_on_one_machine: bool,
    /// Prefix of all keys in the store. A launcher's store may outlive the processes; with a prefix
    /// per attempt, the processes of a second attempt do not read the addresses of the first.
    pub prefix: String,
}

impl GroupOptions {
    /// The address of this machine to which the other ranks connect: the one from which it reaches
    /// the store. libtorch would choose the address that the host's name resolves to, which other
    /// machines often cannot reach. `None` leaves the choice to libtorch: if `GLOO_SOCKET_IFNAME`
    /// is set, or if the address is a loopback address although there are other machines.
    fn own_address(&self) -> Option<CString> {
        if std::env::var_os("GLOO_SOCKET_IFNAME").is_some() {
            return None;
        }
        let address = self.address_towards_store()?;
        let is_reachable = self.is_on_one_machine || !address.is_loopback();
        is_reachable.then(|| CString::new(address.to_string()).ok()).flatten()
    }

    /// The address from which this machine reaches the store.
    pub(crate) fn address_towards_store(&self) -> Option<IpAddr> {
        // Nothing is sent: connecting a datagram socket only looks up the route.
        let socket = UdpSocket::bind(("0.0.0.0", 0)).ok()?;
        socket.connect((self.master_addr.as_str(), self.master_port)).ok()?;
        Some(socket.local_addr().ok()?.ip())
    }
}

/// A group of processes. Every operation is collective: all ranks call it, in the same order.
#[derive(Debug)]
pub struct ProcessGroup {
    handle: NonNull<GroupHandle>,
    options: GroupOptions,
    rank: usize,
    world_size: usize,
    /// Whether NCCL is used for CUDA tensors.
    pub(crate) uses_nccl: AtomicBool,
}

impl ProcessGroup {
    /// Connects to the other ranks. Returns when all ranks are connected.
    ///
    /// # Errors
    /// The rank is not below the world size, the port is in use, or other ranks do not connect
    /// within the timeout.
    pub fn connect(options: &GroupOptions) -> Result<Self> {
        const OPERATION: &str = "connect";
        let GroupOptions { master_port, rank, world_size, is_server, timeout, .. } = options;
        let wrong = |message: String| Error::argument("connect to the process group", message);
        let (Ok(c_rank), Ok(c_size)) = (c_int::try_from(*rank), c_int::try_from(*world_size))
        else {
            return Err(wrong(format!("rank {rank} of {world_size} is too large")));
        };
        if rank >= world_size {
            return Err(wrong(format!("rank is {rank}; expected less than {world_size}")));
        }
        let host = text("master_addr", &options.master_addr)?;
        let prefix = text("prefix", &options.prefix)?;
        let address = options.own_address();
        let timeout_ms = milliseconds(*timeout);
        let mut handle = ptr::null_mut();
        // SAFETY: NUL-terminated strings (the address may be null) and numbers; all outlive the
        // call, which writes an owned group to `handle` on success.
        let status = unsafe {
            ffi::vlm_group_connect(
                host.as_ptr(),
                *master_port,
                c_rank,
                c_size,
                c_int::from(*is_server),
                timeout_ms,
                prefix.as_ptr(),
                address.as_ref().map_or(ptr::null(), |address| address.as_ptr()),
                &mut handle,
            )
        };
        let describe = |error: Error| error.on_rank(*rank, *world_size);
        ffi::check(OPERATION, status).map_err(describe)?;
        let handle =
            NonNull::new(handle).ok_or_else(|| Error::torch(OPERATION, "no group was created"))?;
        Ok(Self {
            handle,
            options: options.clone(),
            rank: *rank,
            world_size: *world_size,
            uses_nccl: AtomicBool::new(false),
        })
    }

    /// The options of this group.
    pub fn options(&self) -> &GroupOptions {
        &self.options
    }

    /// Rank of this process, from 0.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Number of processes.
    pub fn world_size(&self) -> usize {
        self.world_size
    }

    /// Replaces a CPU tensor by the sum of all ranks' tensors.
    ///
    /// # Errors
    /// Shapes or dtypes differ between ranks, or a rank died or did not respond within the timeout.
    pub fn all_reduce_sum(&self, tensor: &mut Tensor) -> Result<()> {
        // SAFETY: the group lives as long as `self`; the tensor is borrowed mutably for the call.
        let status =
            unsafe { ffi::vlm_group_all_reduce_sum(self.handle.as_ptr(), tensor.as_mut_ptr()) };
        self.check("all_reduce_sum", status)
    }

    /// The `input` of every rank, in the order of the ranks. All must have the same shape and dtype
    /// and be on the CPU.
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`].
    pub fn all_gather(&self, input: &Tensor) -> Result<Vec<Tensor>> {
        let mut input = input.contiguous();
        let outputs: Vec<_> = (0..self.world_size).map(|_| input.empty_like()).collect();
        let handles = ffi::handles(&outputs);
        // SAFETY: the group lives as long as `self`; the handles are borrowed for the call, which
        // writes to tensors that have no other reference.
        let status = unsafe {
            ffi::vlm_group_all_gather(
                self.handle.as_ptr(),
                input.as_mut_ptr(),
                handles.as_ptr(),
                handles.len(),
            )
        };
        self.check("all_gather", status)?;
        Ok(outputs)
    }

    /// Sums `input` over the ranks and divides the result among them: `input` has `world_size` times
    /// as many elements as `output`, which receives the part with the number of this rank. Both are
    /// contiguous and have one dimension.
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`].
    pub fn reduce_scatter_sum(&self, input: &Tensor, output: &Tensor) -> Result<()> {
        let (mut input, mut output) = (input.shallow_clone(), output.shallow_clone());
        // SAFETY: the group lives as long as `self`; both tensors are owned clones. Values of
        // `output` change in place, as with every in-place operation of tch on a shallow clone.
        let status = unsafe {
            ffi::vlm_group_reduce_scatter_sum(
                self.handle.as_ptr(),
                input.as_mut_ptr(),
                output.as_mut_ptr(),
            )
        };
        self.check("reduce_scatter_sum", status)
    }

    /// Writes the `input` of every rank to `output`, in the order of the ranks. `output` has
    /// `world_size` times as many elements. Both are contiguous and have one dimension.
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`].
    pub fn all_gather_into(&self, input: &Tensor, output: &Tensor) -> Result<()> {
        let (mut input, mut output) = (input.shallow_clone(), output.shallow_clone());
        // SAFETY: as in `reduce_scatter_sum`.
        let status = unsafe {
            ffi::vlm_group_all_gather_into(
                self.handle.as_ptr(),
                input.as_mut_ptr(),
                output.as_mut_ptr(),
            )
        };
        self.check("all_gather_into", status)
    }

    /// The bytes of every rank, in the order of the ranks. Their lengths may differ.
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`].
    pub fn all_gather_bytes(&self, bytes: &[u8]) -> Result<Vec<Vec<u8>>> {
        const OPERATION: &str = "all_gather_bytes";
        let tch = |error: tch::TchError| Error::tch(OPERATION, &error);
        let lengths = self.all_gather(&Tensor::from_slice(&[bytes.len() as i64]))?;
        let lengths: Vec<usize> = lengths
            .iter()
            .map(|length| i64::try_from(length).map(|length| length as usize).map_err(tch))
            .collect::<Result<_>>()?;
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest == 0 {
            return Ok(vec![Vec::new(); self.world_size]);
        }
        let mut padded = bytes.to_vec();
        padded.resize(longest, 0);
        let gathered = self.all_gather(&Tensor::from_slice(&padded))?;
        gathered
            .iter()
            .zip(lengths)
            .map(|(tensor, length)| {
                let mut bytes = crate::tensor_to_bytes(tensor)?;
                bytes.truncate(length);
                Ok(bytes)
            })
            .collect()
    }

    /// The bytes of rank `root`; those of the other ranks are ignored.
    ///
    /// # Errors
    /// As [`Self::broadcast`].
    pub fn broadcast_bytes(&self, bytes: &[u8], root: usize) -> Result<Vec<u8>> {
        let length = Tensor::from_slice(&[bytes.len() as i64]);
        self.broadcast(std::slice::from_ref(&length), root)?;
        let length =
            i64::try_from(&length).map_err(|error| Error::tch("broadcast_bytes", &error))?;
        let buffer = if self.rank == root {
            Tensor::from_slice(bytes)
        } else {
            Tensor::zeros([length], (Kind::Uint8, Device::Cpu))
        };
        if length > 0 {
            self.broadcast(std::slice::from_ref(&buffer), root)?;
        }
        crate::tensor_to_bytes(&buffer)
    }

    /// Replaces the tensors by those of rank `root`.
    ///
    /// # Errors
    /// As [`Self::all_reduce_sum`], or `root` is not below the world size.
    pub fn broadcast(&self, tensors: &[Tensor], root: usize) -> Result<()> {
        const OPERATION: &str = "broadcast";
        let root =
            c_int::try_from(root).ok().filter(|_| root < self.world_size).ok_or_else(|| {
                Error::argument(
                    OPERATION,
                    format!("root is {root}; expected less than {}", self.world_size),
                )
            })?;
        let handles = ffi::handles(tensors);
        // SAFETY: the group lives as long as `self`; the handles are borrowed for the call. Values
        // change in place, as with every in-place operation of tch on a shallow clone.
        let status = unsafe {
            ffi::vlm_group_broadcast(self.handle.as_ptr(), handles.as_ptr(), handles.len(), root)
        };
        self.check(OPERATION, status)
    }

    /// Waits until every rank has called this.
    ///
    /// # Errors
    /// A rank died or did not respond within the timeout.
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

/// Converts a string for C.
pub(crate) fn text(what: &'static str, value: &str) -> Result<CString> {
    CString::new(value)
        .map_err(|e| Error::argument("connect to the process group", format!("{what}: {e}")))
}

pub(crate) fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}
