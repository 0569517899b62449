//! What a rank says of itself at the start, and of its communication at the end.

use std::fs;
use std::thread::available_parallelism;

use serde_json::{Map, Value};
use tch::Device;
use vlm_torch::Reducer;

use super::Team;
use crate::TrainError;

/// CPU threads of one of several processes on this machine: its share of the cores, unless the
/// launcher has set `OMP_NUM_THREADS`. `None`: libtorch's own choice.
pub fn threads_of_one(team: Option<&Team>) -> Option<i32> {
    let env = team?.env();
    if env.local_world_size == 1 || std::env::var_os("OMP_NUM_THREADS").is_some() {
        return None;
    }
    let cores = available_parallelism().map_or(1, usize::from);
    Some((cores / env.local_world_size).max(1) as i32)
}

/// Logs a line: which host, device, driver, backend and versions this rank has. `nccl` is NCCL's
/// version, where it is used.
pub fn introduce(team: &Team, device: Device, nccl: Option<&str>) {
    let host = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    let device = match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        _ => format!("CPU, {} threads", tch::get_num_threads()),
    };
    let backend = match nccl {
        Some(version) => format!("gloo for the CPU, NCCL {version} for CUDA"),
        None => "gloo".to_owned(),
    };
    let env = team.env();
    tracing::info!(
        "rank {} of {} (local {} of {}) on {}, pid {}: {device}; NVIDIA driver {}; {backend}; vlm \
         {}, libtorch {}",
        env.rank,
        env.world_size,
        env.local_rank,
        env.local_world_size,
        host.trim(),
        std::process::id(),
        driver().unwrap_or_else(|| "none".into()),
        env!("CARGO_PKG_VERSION"),
        vlm_torch::LIBTORCH_VERSION,
    );
}

/// `NVRM version: NVIDIA UNIX … Kernel Module  580.65.06  Release Build …` → `580.65.06`.
fn driver() -> Option<String> {
    let text = fs::read_to_string("/proc/driver/nvidia/version").ok()?;
    version_in(text.lines().next()?)
}

fn version_in(line: &str) -> Option<String> {
    let is_version =
        |word: &&str| word.contains('.') && word.chars().all(|c| c.is_ascii_digit() || c == '.');
    line.split_whitespace().find(is_version).map(str::to_owned)
}

/// For `summary.json`: how many processes there were, what they sent and how much of that time the
/// backward pass hid.
///
/// # Errors
/// libtorch's own; none is known.
pub fn communication(team: &Team, reducer: &Reducer) -> Result<Map<String, Value>, TrainError> {
    let times = reducer.times()?;
    let (gradient_bytes, buckets) = reducer.bucket_bytes()?;
    let millis = |time: std::time::Duration| time.as_secs_f64() * 1e3;
    let hidden = times.hidden.as_secs_f64() / times.communication.as_secs_f64().max(1e-9);
    let value = serde_json::json!({
        "world_size": team.world_size(),
        "gradient_bytes_per_update": gradient_bytes,
        "gradient_buckets": buckets,
        "forward_ms": millis(times.forward),
        "backward_ms": millis(times.backward),
        "communication_ms": millis(times.communication),
        "communication_hidden_ms": millis(times.hidden),
        "communication_hidden_share": hidden,
    });
    Ok(value.as_object().cloned().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::version_in;

    #[test]
    fn the_drivers_version_is_found_in_its_line() {
        let line = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release \
                    Build  (dvs-builder@U22-I3)  Sun Jul 27 07:16:06 UTC 2025";
        assert_eq!(version_in(line).as_deref(), Some("580.65.06"));
        assert_eq!(version_in("NVRM version: none"), None);
    }
}
