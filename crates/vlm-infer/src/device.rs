//! Selects the device of a model.

use std::path::Path;

use tch::Device;

use crate::InferError;

/// The path of a file that shows that this machine has an NVIDIA GPU: that of the driver, of a
/// device, or of the device with which WSL2 accesses the GPU of Windows. `root` is `/` except in
/// tests.
fn gpu_file(root: &Path) -> Option<String> {
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

/// Why a machine with a GPU computes on the CPU, and what to do, for a message. `cuda` is the
/// result of loading the CUDA libraries of libtorch, `visible` the value of `CUDA_VISIBLE_DEVICES`.
fn why_no_cuda(cuda: &vlm_torch::Result<bool>, visible: Option<&str>) -> String {
    if let Some(visible) = visible.filter(|value| value.is_empty() || value.starts_with('-')) {
        return format!(
            "CUDA_VISIBLE_DEVICES is {visible:?}, which hides every GPU: unset it to use them"
        );
    }
    match cuda {
        Ok(false) => "the installed libtorch is the build without CUDA: run `cargo xtask setup \
                      --cuda` on this machine, then run the same command again"
            .to_owned(),
        Ok(true) => {
            "CUDA finds no device that it can use: the driver may be older than this version of \
                     CUDA requires, or this process may not be allowed to use the device; compare \
                     the outputs of `nvidia-smi` and `cargo xtask doctor`"
                .to_owned()
        }
        Err(error) => format!("the CUDA libraries of libtorch cannot be loaded ({error})"),
    }
}

fn warn_of_unused_gpu() {
    if let Some(file) = gpu_file(Path::new("/")) {
        let visible = std::env::var("CUDA_VISIBLE_DEVICES").ok();
        tracing::warn!(
            "THE GPU IS NOT USED: this machine has one ({file} exists), but the model runs on the \
             CPU, which is many times slower. Reason: {}. Set `device = cpu` to use the CPU \
             without this warning, or `device = cuda` to fail without CUDA",
            why_no_cuda(&vlm_torch::load_cuda(), visible.as_deref())
        );
    }
}

/// The device with the name `auto`, `cpu`, `cuda` or `cuda:N`. `cuda` is the first CUDA device.
/// `auto` is the same, or the CPU without CUDA; on a machine with a GPU this logs a warning.
///
/// # Errors
/// Any other name; a CUDA device that does not exist.
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
            "device is {name}, but CUDA is not available; `cargo xtask doctor` shows what is \
             missing, and the device cpu needs no CUDA"
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
    fn a_gpu_is_detected_by_the_files_of_its_driver_and_devices() {
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
            assert_eq!(gpu_file(root.path()).as_deref(), expected, "{file}");
        }
    }

    #[test]
    fn every_reason_for_using_the_cpu_says_what_to_do() {
        let of = |cuda: vlm_torch::Result<bool>, visible| why_no_cuda(&cuda, visible);
        assert!(of(Ok(false), None).contains("cargo xtask setup --cuda"));
        assert!(of(Ok(true), Some("0")).contains("driver may be older"));
        assert!(of(Ok(true), Some("")).contains("CUDA_VISIBLE_DEVICES is \"\""));
        assert!(of(Ok(true), Some("-1")).contains("unset it"));
    }
}
