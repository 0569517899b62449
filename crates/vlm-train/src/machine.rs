//! Names of this machine and of its devices, for messages.

use std::fs;

use tch::Device;
use vlm_display::count;

/// The host name; empty if it cannot be read.
pub(crate) fn host_name() -> String {
    fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default().trim().to_owned()
}

/// A device; the CPU with the number of its threads.
pub(crate) fn device_name(device: Device) -> String {
    match device {
        Device::Cpu => format!("CPU, {}", count(tch::get_num_threads(), "thread")),
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}"),
    }
}
