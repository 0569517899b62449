//! Peak memory of the process or of a CUDA device.

use std::ffi::c_int;
use std::fs;
use std::path::Path;

use tch::Device;

use crate::{Error, Result, ffi};

/// Makes the C library keep freed memory for later use, instead of giving it back to the system.
/// A training step frees and needs about the same memory as the one before; without this the system
/// clears most of it in every step. The largest amount of memory in use hardly changes. It has an
/// effect with glibc alone.
pub fn keep_freed_memory() {
    // SAFETY: takes nothing and changes settings of the C library.
    unsafe { ffi::vlm_keep_freed_memory() };
}

/// The largest memory in use since the start or the last [`reset_peak`], in bytes. For CUDA, it is
/// the memory that libtorch has allocated on the device; for the CPU, the resident memory of the
/// process (`VmHWM`).
///
/// # Errors
/// CUDA is not loaded or was not used yet, or the system has no `/proc`.
pub fn peak_memory_bytes(device: Device) -> Result<u64> {
    const OPERATION: &str = "peak_memory_bytes";
    match device {
        Device::Cpu => high_water_mark(Path::new("/proc/self/status")),
        Device::Cuda(index) => {
            let mut bytes = 0;
            // SAFETY: takes a number and writes one integer that outlives the call.
            let status =
                unsafe { ffi::vlm_cuda_peak_bytes(cuda_index(OPERATION, index)?, &mut bytes) };
            ffi::check(OPERATION, status)?;
            Ok(u64::try_from(bytes).unwrap_or(0))
        }
        other => {
            Err(Error::argument(OPERATION, format!("device {other:?}; expected the CPU or CUDA")))
        }
    }
}

/// Resets [`peak_memory_bytes`] to the memory that is in use now.
///
/// # Errors
/// As [`peak_memory_bytes`]. For the CPU, the kernel may not permit a reset.
pub fn reset_peak(device: Device) -> Result<()> {
    const OPERATION: &str = "reset_peak";
    match device {
        Device::Cpu => {
            // "5" resets the peak resident set size: proc_pid_clear_refs(5).
            let path = Path::new("/proc/self/clear_refs");
            fs::write(path, "5").map_err(|e| Error::io("write", path, e))
        }
        Device::Cuda(index) => {
            // SAFETY: takes one number.
            let status = unsafe { ffi::vlm_cuda_reset_peak(cuda_index(OPERATION, index)?) };
            ffi::check(OPERATION, status)
        }
        other => {
            Err(Error::argument(OPERATION, format!("device {other:?}; expected the CPU or CUDA")))
        }
    }
}

/// Free and total memory of CUDA device `index`, in bytes. Memory that libtorch keeps for later
/// tensors is not free.
///
/// # Errors
/// CUDA is not loaded, or there is no such device.
pub fn cuda_memory(index: usize) -> Result<(u64, u64)> {
    const OPERATION: &str = "cuda_memory";
    let (mut free, mut total) = (0, 0);
    // SAFETY: takes a number and writes two integers that outlive the call.
    let status =
        unsafe { ffi::vlm_cuda_memory(cuda_index(OPERATION, index)?, &mut free, &mut total) };
    ffi::check(OPERATION, status)?;
    Ok((free, total))
}

/// Returns the memory that libtorch keeps for later tensors to the GPU. Does nothing on the CPU.
///
/// # Errors
/// CUDA is not loaded.
pub fn empty_cache(device: Device) -> Result<()> {
    if !device.is_cuda() {
        return Ok(());
    }
    // SAFETY: takes no arguments.
    ffi::check("empty_cache", unsafe { ffi::vlm_cuda_empty_cache() })
}

fn cuda_index(operation: &'static str, index: usize) -> Result<c_int> {
    c_int::try_from(index)
        .map_err(|_| Error::argument(operation, format!("there is no CUDA device {index}")))
}

fn high_water_mark(path: &Path) -> Result<u64> {
    let status = fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
    let kibibytes = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok());
    kibibytes.map(|k| k * 1024).ok_or_else(|| {
        Error::argument("peak_memory_bytes", format!("{} has no VmHWM line in kB", path.display()))
    })
}
