//! The arithmetic of the forward pass. Weights, optimizer, norms and loss stay in float32.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind};

use crate::TrainError;

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

/// The device that a name stands for: `auto`, `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// Another name; CUDA asked for where there is none.
pub fn device(name: &str) -> Result<Device, TrainError> {
    let available = || tch::Cuda::is_available();
    let number = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" => return Ok(if available() { Device::Cuda(0) } else { Device::Cpu }),
        "cuda" => 0,
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
    let count = tch::Cuda::device_count();
    if number as i64 >= count {
        return Err(TrainError::Usage(format!(
            "--device is {name}, but there are {count} CUDA devices, numbered from 0"
        )));
    }
    Ok(Device::Cuda(number))
}
