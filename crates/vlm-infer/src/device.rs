//! The device that a model runs on.

use std::path::Path;

use tch::Device;

use crate::InferError;

/// What shows that this machine has a GPU that CUDA could use: the file of the NVIDIA driver or of a
/// device, or of WSL2's way to the GPU of its Windows. `root` is `/` but in tests.
fn trace_of_gpu(root: &Path) -> Option<String> {
    let is_device = |name: &str| {
        let number = name.strip_prefix("nvidia");
        number.is_some_and(|n| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit()))
    };
    let in_dev = std::fs::read_dir(root.join("dev")).into_iter().flatten().flatten();
    let mut devices: Vec<String> = in_dev
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .filter(|name| is_device(name) || name == "nvidiactl" || name == "dxg")
        .collect();
    devices.sort();
    let driver = root.join("proc/driver/nvidia/version");
    let device = devices.first().map(|name| format!("/dev/{name}"));
    device.or_else(|| driver.exists().then(|| "/proc/driver/nvidia".to_owned()))
}

/// Why a machine with a GPU trains on the CPU, and what to do. `cuda` is what loading libtorch's CUDA
/// part came to, `visible` the value of `CUDA_VISIBLE_DEVICES`.
fn why_no_cuda(cuda: &vlm_torch::Result<bool>, visible: Option<&str>) -> String {
    if let Some(visible) = visible.filter(|value| value.is_empty() || value.starts_with('-')) {
        return format!(
            "CUDA_VISIBLE_DEVICES is {visible:?}, which hides every GPU: unset it to use them"
        );
    }
    match cuda {
        Ok(false) => "the libtorch in use is the build for the CPU alone: run `cargo xtask setup \
                      --cuda` on this machine, then the same command again"
            .to_owned(),
        Ok(true) => {
            "libtorch's CUDA finds no device that it can use: the driver may be older than \
                     this build of CUDA needs, or this process may not use the device; compare \
                     `nvidia-smi` with what `cargo xtask doctor` prints"
                .to_owned()
        }
        Err(error) => format!("libtorch's CUDA part cannot be loaded ({error})"),
    }
}

fn warn_of_unused_gpu() {
    if let Some(trace) = trace_of_gpu(Path::new("/")) {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        tracing::warn!(
            "THE GPU IS NOT USED: this machine has one ({trace} is there), and everything is computed \
             on the CPU, many times slower. The reason: {}. The device cpu chooses the CPU without \
             this warning, the device cuda fails where there is no CUDA",
            why_no_cuda(&vlm_torch::load_cuda(), visible.as_deref())
        );
    }
}

/// The device that `name` stands for: `auto`, `cpu`, `cuda` or `cuda:N`. `auto` is CUDA's first
/// device, or the CPU where there is no CUDA; `cuda` is CUDA's first device.
///
/// # Errors
/// Another name; a CUDA device that is not there.
pub fn select_device(name: &str) -> Result<Device, InferError> {
    let unusable = |message: String| Err(InferError::setting("device", message));
    let number = match name {
        "cpu" => return Ok(Device::Cpu),
        "auto" if !tch::Cuda::is_available() => {
            warn_of_unused_gpu();
            return Ok(Device::Cpu);
        }
        "auto" | "cuda" => 0,
        other => match other.strip_prefix("cuda:").and_then(|n| n.parse().ok()) {
            Some(number) => number,
            None => {
                return unusable(format!(
                    "device is {other:?}; expected auto, cpu, cuda or cuda:N with a number"
                ));
            }
        },
    };
    if !tch::Cuda::is_available() {
        return unusable(format!(
            "device is {name}, but libtorch finds no CUDA here; `cargo xtask doctor` says what is \
             missing, and the device cpu needs none"
        ));
    }
    let count = tch::Cuda::device_count();
    if number as i64 >= count {
        return unusable(format!(
            "device is {name}, but there are {count} CUDA devices, numbered from 0"
        ));
    }
    Ok(Device::Cuda(number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_shows_by_the_files_of_its_driver_devices_or_windows() {
        for (file, expected) in [
            ("dev/nvidia0", Some("/dev/nvidia0")),
            ("dev/nvidiactl", Some("/dev/nvidiactl")),
            ("dev/dxg", Some("/dev/dxg")),
            ("proc/driver/nvidia/version", Some("/proc/driver/nvidia")),
            ("dev/nvidia-uvm", None),
            ("dev/null", None),
        ] {
            let root = tempfile::tempdir().unwrap();
            let path = root.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "").unwrap();
            assert_eq!(trace_of_gpu(root.path()).as_deref(), expected, "{file}");
        }
    }

    #[test]
    fn every_reason_for_the_cpu_says_what_to_do() {
        let of = |cuda: vlm_torch::Result<bool>, visible| why_no_cuda(&cuda, visible);
        assert!(of(Ok(false), None).contains("cargo xtask setup --cuda"));
        assert!(of(Ok(true), Some("0")).contains("driver may be older"));
        assert!(of(Ok(true), Some("")).contains("CUDA_VISIBLE_DEVICES is \"\""));
        assert!(of(Ok(true), Some("-1")).contains("unset it"));
    }
}
