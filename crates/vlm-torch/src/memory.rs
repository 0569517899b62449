//! How much memory a run has needed.

use std::ffi::c_int;
use std::fs;
use std::path::Path;

use tch::Device;

use crate::{Error, Result, ffi};

/// The most memory in use at once since the start or [`reset_peak`], in bytes. CUDA: what libtorch's
/// allocator handed out on that device. CPU: the process's resident memory (`VmHWM`).
/// # Errors
/// CUDA that is not loaded or was not used yet; a system without `/proc`.
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
        other => Err(Error::argument(OPERATION, format!("device {other:?} counts no memory"))),
    }
}

/// Starts [`peak_memory_bytes`] anew from what is in use now.
/// # Errors
/// As there; on the CPU a kernel that does not let a process reset its own mark.
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
        other => Err(Error::argument(OPERATION, format!("device {other:?} counts no memory"))),
    }
}

fn cuda_index(operation: &'static str, index: usize) -> Result<c_int> {
    c_int::try_from(index)
        .map_err(|_| Error::argument(operation, format!("no CUDA device has the number {index}")))
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
