//! The arithmetic of the forward pass. Weights, optimizer, norms and loss stay in float32.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::TrainError;
use crate::parallel::LaunchEnv;

/// Type of the forward pass's matrix products.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Dtype {
    /// 32 bits, no autocast.
    Float32,
    /// Autocast to bfloat16; needs no loss scaling.
    Bfloat16,
    /// Autocast to float16, with dynamic loss scaling.
    Float16,
}

impl Dtype {
    /// What a run uses unless told otherwise: bfloat16 on CUDA, float32 on the CPU.
    pub fn default_on(device: Device) -> Self {
        if device.is_cuda() { Self::Bfloat16 } else { Self::Float32 }
    }

    /// The type to autocast to; `None`: no autocast.
    pub fn autocast_kind(self) -> Option<Kind> {
        match self {
            Self::Float32 => None,
            Self::Bfloat16 => Some(Kind::BFloat16),
            Self::Float16 => Some(Kind::Half),
        }
    }
}

/// The device that a name stands for: `auto`, `cpu`, `cuda` or `cuda:N`. Of several processes on
/// this machine each has a CUDA device of its own, that of its `local_rank`, unless the launcher
/// lets it see one only.
///
/// # Errors
/// Another name; CUDA asked for where there is none, or fewer devices than processes.
pub fn device(name: &str, launch: Option<&LaunchEnv>) -> Result<Device, TrainError> {
    let available = || tch::Cuda::is_available();
    let own = || match launch {
        Some(env) if tch::Cuda::device_count() > 1 => env.local_rank,
        _ => 0,
    };
    let number = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" if !available() => return Ok(Device::Cpu),
        "auto" | "cuda" => own(),
        other => other.strip_prefix("cuda:").and_then(|n| n.parse().ok()).ok_or_else(|| {
            TrainError::Usage(format!(
                "--device is {other:?}; expected auto, cpu, cuda or cuda:N with a number"
            ))
        })?,
    };
    if !available() {
        return Err(TrainError::Usage(format!(
            "--device is {name}, but libtorch sees no CUDA here; `cargo xtask doctor` says what is \
             missing, --device cpu runs without"
        )));
    }
    if let Some(env) = launch.filter(|env| env.local_world_size > 1 && name.starts_with("cuda:")) {
        return Err(TrainError::Usage(format!(
            "--device is {name}, but {} processes on this machine cannot share one device; give \
             --device cuda, and each takes its own",
            env.local_world_size
        )));
    }
    let count = tch::Cuda::device_count();
    if number as i64 >= count {
        if let Some(env) = launch {
            return Err(TrainError::Usage(format!(
                "local rank {} has no CUDA device: there are {count} for {} processes on this \
                 machine; start as many processes as there are devices",
                env.local_rank, env.local_world_size
            )));
        }
        return Err(TrainError::Usage(format!(
            "--device is {name}, but there are {count} CUDA devices, numbered from 0"
        )));
    }
    Ok(Device::Cuda(number))
}
