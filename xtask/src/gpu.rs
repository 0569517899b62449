//! Whether this machine has an NVIDIA GPU, and whether its driver serves a build of libtorch. Asks the
//! files of the system alone, so that it works before libtorch is there.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::libtorch::{Flavour, Libtorch};

/// What shows a GPU, relative to the root of the file system: the driver's own record, its device
/// files (containers often have these alone), and WSL2's bridge to the driver of Windows.
const SIGNS: [&str; 4] = ["proc/driver/nvidia/version", "dev/nvidiactl", "dev/nvidia0", "dev/dxg"];

/// Least driver for each major version of CUDA (CUDA Compatibility, table of minor-version
/// compatibility).
const LEAST_DRIVERS: [(u32, u32); 3] = [(11, 450), (12, 525), (13, 580)];

/// The first file that shows a GPU; `root` is `/` but in tests.
pub fn sign(root: &Path) -> Option<String> {
    let found = SIGNS.iter().find(|sign| root.join(sign).exists())?;
    Some(format!("/{found}"))
}

/// The libtorch that suits this machine: with CUDA when it has a GPU.
pub fn flavour_of_this_machine() -> Flavour {
    if sign(Path::new("/")).is_some() { Flavour::Cuda } else { Flavour::Cpu }
}

/// The version of the NVIDIA driver, as `(580, "580.65.06")`.
pub fn driver() -> Option<(u32, String)> {
    let record = fs::read_to_string("/proc/driver/nvidia/version").ok();
    let from_record = record.as_deref().and_then(version_in_record);
    let from_tool = || {
        let query = ["--query-gpu=driver_version", "--format=csv,noheader"];
        let output = Command::new("nvidia-smi").args(query).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let version = text.lines().next()?.trim().to_owned();
        Some((major(&version)?, version))
    };
    from_record.or_else(from_tool)
}

/// `NVRM version: NVIDIA UNIX x86_64 Kernel Module  580.65.06  …` → 580.
fn version_in_record(record: &str) -> Option<(u32, String)> {
    let is_version = |word: &&str| word.contains('.') && major(word).is_some_and(|n| n >= 100);
    let version = record.split_whitespace().find(is_version)?;
    Some((major(version)?, version.to_owned()))
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

/// Why runs would use the CPU although a GPU is there, with what to do; `None` where there is no GPU,
/// or where nothing stands in its way.
pub fn complaint(libtorch: &Libtorch) -> Option<String> {
    complaint_about(&sign(Path::new("/"))?, libtorch.flavour(), &libtorch.version, driver())
}

fn complaint_about(
    sign: &str,
    flavour: Flavour,
    libtorch: &str,
    driver: Option<(u32, String)>,
) -> Option<String> {
    if flavour == Flavour::Cpu {
        return Some(format!(
            "this machine has an NVIDIA GPU ({sign}), but the libtorch in use is the one for the CPU, \
             so runs use the CPU: `cargo xtask setup --cuda` gets the one for CUDA"
        ));
    }
    let cuda: u32 = libtorch.split_once("+cu")?.1.get(..2)?.parse().ok()?;
    let (_, least) = LEAST_DRIVERS.iter().find(|(version, _)| *version == cuda)?;
    let (found, version) = driver?;
    (found < *least).then(|| {
        format!(
            "the NVIDIA driver {version} is too old for libtorch {libtorch}, which needs {least} or \
             newer, so runs use the CPU: update the driver, or set LIBTORCH to a libtorch of an older \
             CUDA"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_files_and_wsl_show_a_gpu() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(sign(root.path()), None);
        fs::create_dir(root.path().join("dev")).unwrap();
        fs::write(root.path().join("dev/dxg"), "").unwrap();
        assert_eq!(sign(root.path()).as_deref(), Some("/dev/dxg"));
    }

    #[test]
    fn the_drivers_version_is_read_from_its_record() {
        let record = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 2024\n\
                      GCC version:  gcc version 12.3.0 (Ubuntu 12.3.0-1ubuntu1~22.04)\n";
        assert_eq!(version_in_record(record), Some((535, "535.183.01".to_owned())));
        assert_eq!(version_in_record("no driver"), None);
    }

    #[test]
    fn a_build_or_driver_that_leaves_the_gpu_idle_is_complained_about() {
        let complaint = |flavour, version, driver: u32| {
            complaint_about("/dev/nvidia0", flavour, version, Some((driver, driver.to_string())))
        };
        let cpu = complaint(Flavour::Cpu, "2.11.0+cpu", 580).unwrap();
        assert!(cpu.contains("setup --cuda") && cpu.contains("/dev/nvidia0"), "{cpu}");
        let old = complaint(Flavour::Cuda, "2.11.0+cu130", 535).unwrap();
        assert!(old.contains("needs 580"), "{old}");
        assert_eq!(complaint(Flavour::Cuda, "2.11.0+cu130", 580), None);
        assert_eq!(complaint(Flavour::Cuda, "2.11.0+cu128", 535), None);
    }
}
