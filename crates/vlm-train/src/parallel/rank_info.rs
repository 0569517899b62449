//! The line that each rank logs when it starts: host, device, driver and versions.

use std::fs;

use tch::Device;

use super::launch_env::LaunchEnv;
use crate::machine::{device_name, host_name};

/// Logs host, device, driver, backend and versions of a rank. `nccl` is the version of NCCL if NCCL
/// is used.
pub(super) fn log(env: &LaunchEnv, device: Device, nccl: Option<&str>) {
    let backend = match nccl {
        Some(version) => format!("gloo for the CPU, NCCL {version} for CUDA"),
        None => "gloo".to_owned(),
    };
    tracing::info!(
        "rank {} of {} (local {} of {}) on {}, pid {}: {}; NVIDIA driver {}; {backend}; vlm \
         {}, libtorch {}",
        env.rank,
        env.world_size,
        env.local_rank,
        env.local_world_size,
        host_name(),
        std::process::id(),
        device_name(device),
        driver_version().unwrap_or_else(|| "none".into()),
        env!("CARGO_PKG_VERSION"),
        vlm_torch::LIBTORCH_VERSION,
    );
}

/// The version of the NVIDIA driver; `None` without one.
fn driver_version() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    version_in(text.lines().next()?)
}

/// `NVRM version: NVIDIA UNIX … Kernel Module  580.65.06  Release Build …` → `580.65.06`.
fn version_in(line: &str) -> Option<String> {
    let is_version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(is_version).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::version_in;

    #[test]
    fn the_driver_version_is_found_in_the_kernel_modules_line() {
        let line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release \
                    Build  (dvs-builder@U22-I3)  Sun Jul 27 07:16:06 UTC 2025";
        assert_eq!(version_in(line).as_deref(), Some("580.65.06"));
        assert_eq!(version_in("NVRM version: none"), None);
    }
}
