//! Installs libtorch from Python wheels with the user's pip. Only packages are named here; the
//! index and all other settings (mirrors, proxies, certificates) are the user's.

use std::fs;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cache::{Cache, gigabytes, libtorch_entry, size_of_tree};
use crate::libtorch::{Flavour, Libtorch, VERSION};
use crate::link_farm;
use crate::python::Python;

/// Packages to which `libtorch_cpu.so` of the wheels is linked even without a GPU.
const CPU_COMPANIONS: [&str; 2] = ["nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"];

/// The files that the CPU needs, relative to the folder that pip fills with 1.2 GB.
const CPU_FILES: [&str; 7] = [
    "torch/include",
    "torch/version.py",
    "torch/lib/libc10.so",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libgomp.so.1",
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cu13/lib/libcupti.so.13",
];

/// Options of pip that select the wheels. They are for one fixed version of Python, since only
/// their libraries are used. With `--platform`, pip accepts only the given platform tags, and
/// NVIDIA's wheels have different ones (2_17, 2_18, 2_25, 2_27 for one torch), so that of every
/// glibc up to that of torch is given.
fn wheel_options() -> Vec<String> {
    let mut options: Vec<String> =
        ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
            .map(str::to_owned)
            .into();
    options.extend((5..=28).rev().map(|minor| format!("--platform=manylinux_2_{minor}_x86_64")));
    options.push("--platform=manylinux2014_x86_64".to_owned());
    options
}

/// Installs libtorch into the cache.
///
/// # Errors
/// An unsupported machine; too little disk space; a failure of pip.
pub fn install(cache: &Cache, python: &Python, flavour: Flavour) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "wheels are supported on Linux on x86_64, but this is {} on {}: install libtorch \
             {VERSION} yourself and set LIBTORCH to its folder",
            std::env::consts::OS,
            std::env::consts::ARCH
        );
    }
    // The space for the download, the unpacked copy and pip's cache.
    let (needed_bytes, announcement) = match flavour {
        Flavour::Cpu => (2_500_000_000, "0.5 GB to download, 0.5 GB on disk"),
        Flavour::Cuda => (12_000_000_000, "3 GB to download, 5 GB on disk"),
    };
    cache.require_free_bytes(needed_bytes)?;
    let entry = libtorch_entry(flavour)?;
    eprintln!(
        "setup: installing torch {VERSION} ({}) with {} -m pip: {announcement}",
        flavour.name(),
        python.program
    );
    let start = Instant::now();
    cache.put(&entry, |folder| match flavour {
        Flavour::Cpu => fill_cpu(cache, python, folder),
        Flavour::Cuda => fill_cuda(cache, python, folder),
    })?;
    eprintln!(
        "setup: {} in {} after {:.0} s",
        gigabytes(size_of_tree(&entry)),
        entry.display(),
        start.elapsed().as_secs_f64()
    );
    Ok(())
}

fn fill_cpu(cache: &Cache, python: &Python, folder: &Path) -> Result<()> {
    let wheels = folder.join("wheels");
    let torch = format!("torch=={VERSION}");
    let mut packages = vec!["--no-deps", torch.as_str()];
    packages.extend(CPU_COMPANIONS);
    run_pip(cache, python, folder, &wheels, &packages)?;
    for file in CPU_FILES {
        let (from, to) = (wheels.join(file), folder.join(file));
        let parent = to.parent().unwrap_or(folder);
        fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
        fs::rename(&from, &to)
            .with_context(|| format!("expected {file} in the wheels of torch {VERSION}"))?;
    }
    keep_licenses(&wheels, folder)?;
    let script = folder.join("torch/lib/libtorch.so");
    fs::write(&script, link_farm::LINKER_SCRIPT)
        .with_context(|| format!("writing {}", script.display()))?;
    fs::remove_dir_all(&wheels).with_context(|| format!("removing {}", wheels.display()))
}

/// Moves the licences of the wheels to `folder/licenses`, one folder for each package: whoever
/// passes libtorch on must pass them on, too.
fn keep_licenses(wheels: &Path, folder: &Path) -> Result<()> {
    let listing = || format!("listing {}", wheels.display());
    for entry in fs::read_dir(wheels).with_context(listing)? {
        let entry = entry.with_context(listing)?;
        let (from, name) = (entry.path().join("licenses"), entry.file_name());
        if from.is_dir() {
            let to = folder.join("licenses").join(name);
            fs::create_dir_all(folder.join("licenses"))
                .and_then(|()| fs::rename(&from, &to))
                .with_context(|| format!("moving {}", from.display()))?;
        }
    }
    Ok(())
}

/// Keeps the complete wheels, with a link farm beside them to which programs are linked.
fn fill_cuda(cache: &Cache, python: &Python, folder: &Path) -> Result<()> {
    let wheels = folder.join("wheels");
    let torch = format!("torch=={VERSION}");
    run_pip(cache, python, folder, &wheels, &[torch.as_str()])?;
    link_farm::build(&Libtorch::open(&wheels)?, folder)
}

/// Installs `packages` into `target` with pip, whose progress is shown on the terminal. All files,
/// temporary ones included, are written within `folder`, so that an interruption leaves nothing
/// elsewhere.
pub fn run_pip(
    cache: &Cache,
    python: &Python,
    folder: &Path,
    target: &Path,
    packages: &[&str],
) -> Result<()> {
    let scratch = folder.join("scratch");
    fs::create_dir_all(&scratch).with_context(|| format!("making {}", scratch.display()))?;
    let terminal = std::io::stderr().as_fd().try_clone_to_owned().context("copying stderr")?;
    let status = Command::new(&python.program)
        .args(["-m", "pip", "install", "--no-compile", "--no-input", "--target"])
        .arg(target)
        .args(wheel_options())
        .args(packages)
        .stdin(cache.lock_for_child()?)
        .stdout(terminal)
        .env("TMPDIR", &scratch)
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        // These settings of the user are for installing into an environment; with --target pip
        // would fail.
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .env("PIP_USER", "0")
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .status()
        .with_context(|| format!("starting {}", python.program))?;
    if !status.success() {
        bail!(
            "pip could not install {} ({status}); see its messages above. Without access to a \
             package index, install torch {VERSION} or libtorch {VERSION} in another way and run \
             `cargo xtask setup --from FOLDER`, or set LIBTORCH",
            packages.join(" ")
        );
    }
    fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
}
