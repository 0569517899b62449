//! Detects an NVIDIA GPU and checks that its driver supports a build of libtorch. Only files of the
//! system and `nvidia-smi` are used, so that it works before libtorch is installed.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::libtorch::{Flavour, Libtorch};
use crate::program::first_line;

/// Files that exist on a machine with a GPU, relative to the root of the file system: the driver's
/// version file, its device files (containers often have only these), and WSL2's bridge to the
/// driver of Windows.
const GPU_FILES: [&str; 4] =
    ["proc/driver/nvidia/version", "dev/nvidiactl", "dev/nvidia0", "dev/dxg"];

/// Oldest supported driver for each major version of CUDA (NVIDIA CUDA Compatibility, table of
/// minor-version compatibility).
const MIN_DRIVERS: [(u32, u32); 3] = [(11, 450), (12, 525), (13, 580)];

/// The first file that shows that there is a GPU; `None` without a GPU. `root` is `/` except in
/// tests.
pub fn detect(root: &Path) -> Option<String> {
    let found = GPU_FILES.iter().find(|file| root.join(file).exists())?;
    Some(format!("/{found}"))
}

/// The build of libtorch for this machine: with CUDA if it has a GPU.
pub fn flavour_of_this_machine() -> Flavour {
    if detect(Path::new("/")).is_some() { Flavour::Cuda } else { Flavour::Cpu }
}

/// The major and the full version of the NVIDIA driver, such as `(580, "580.65.06")`.
pub fn driver() -> Option<(u32, String)> {
    let record = fs::read_to_string("/proc/driver/nvidia/version").ok();
    let from_record = record.as_deref().and_then(version_in_record);
    let from_tool = || {
        let query = ["--query-gpu=driver_version", "--format=csv,noheader"];
        let version = first_line(Command::new("nvidia-smi").args(query))?.trim().to_owned();
        Some((major(&version)?, version))
    };
    from_record.or_else(from_tool)
}

/// Reads the version from the driver's version file: `NVRM version: NVIDIA UNIX x86_64 Kernel
/// Module 580.65.06  …` gives 580.65.06.
fn version_in_record(record: &str) -> Option<(u32, String)> {
    let is_version = |word: &&str| word.contains('.') && major(word).is_some_and(|n| n >= 100);
    let version = record.split_whitespace().find(is_version)?;
    Some((major(version)?, version.to_owned()))
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// A warning if this machine has a GPU that `libtorch` cannot use, with what to do about it.
pub fn warning(libtorch: &Libtorch) -> Option<String> {
    warning_about(&detect(Path::new("/"))?, libtorch.flavour(), &libtorch.version, driver())
}

fn warning_about(
    gpu_file: &str,
    flavour: Flavour,
    libtorch: &str,
    driver: Option<(u32, String)>,
) -> Option<String> {
    if flavour == Flavour::Cpu {
        return Some(format!(
            "this machine has an NVIDIA GPU ({gpu_file}), but the libtorch in use is for the CPU, \
             so training uses the CPU: run `cargo xtask setup --cuda` for the one with CUDA"
        ));
    }
    let cuda: u32 = libtorch.split_once("+cu")?.1.get(..2)?.parse().ok()?;
    let (_, min_driver) = MIN_DRIVERS.iter().find(|(version, _)| *version == cuda)?;
    let (found, version) = driver?;
    (found < *min_driver).then(|| {
        format!(
            "the NVIDIA driver {version} is too old for libtorch {libtorch}, which needs \
             {min_driver} or newer, so training uses the CPU: update the driver, or set LIBTORCH \
             to a libtorch for an older CUDA"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_detected_from_device_files_and_wsl() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(detect(root.path()), None);
        fs::create_dir(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/dxg"), "").unwrap();
        assert_eq!(detect(root.path()).as_deref(), Some("/dev/dxg"));
    }

    #[test]
    fn the_driver_version_is_read_from_its_version_file() {
        let record = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 2024\n\
                      GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n";
        assert_eq!(version_in_record(record), Some((535, "535.183.01".to_owned())));
        assert_eq!(version_in_record("no driver"), None);
    }

    #[test]
    fn a_libtorch_or_driver_that_cannot_use_the_gpu_gives_a_warning() {
        let warning = |flavour, version, driver: u32| {
            warning_about("/dev/nvidia0", flavour, version, Some((driver, driver.to_string())))
        };
        let cpu = warning(Flavour::Cpu, "2.11.0+cpu", 580).unwrap();
        assert!(cpu.contains("setup --cuda") && cpu.contains("/dev/nvidia0"), "{cpu}");
        let old = warning(Flavour::Cuda, "2.11.0+cu130", 535).unwrap();
        assert!(old.contains("needs 580"), "{old}");
        assert_eq!(warning(Flavour::Cuda, "2.11.0+cu130", 580), None);
        assert_eq!(warning(Flavour::Cuda, "2.11.0+cu128", 535), None);
    }
}
