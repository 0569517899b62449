//! libtorch out of the Python wheels, fetched by the user's own pip under their own settings
//! (mirrors, proxies, certificates): packages are named, hosts are not.

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

/// `libtorch_cpu.so` of the wheels is linked to these two even where there is no GPU.
const CPU_COMPANIONS: [&str; 2] = ["nvidia-cuda-runtime==13.0.96", "nvidia-cuda-cupti==13.0.85"];

/// What the CPU needs of 1.2 GB, relative to the folder that pip fills.
const CPU_FILES: [&str; 7] = [
    "torch/include",
    "torch/version.py",
    "torch/lib/libc10.so",
    "torch/lib/libtorch_cpu.so",
    "torch/lib/libgomp.so.1",
    "nvidia/cu13/lib/libcudart.so.13",
    "nvidia/cu13/lib/libcupti.so.13",
];

/// The wheels are chosen for one Python whatever the host's is: only their libraries are used.
/// With a platform given, pip takes only the tags it is told, and NVIDIA's wheels carry all sorts
/// (2_17, 2_18, 2_25, 2_27 for one torch): every glibc up to torch's own is named.
fn wheel_choice() -> Vec<String> {
    let mut options: Vec<String> =
        ["--only-binary=:all:", "--implementation=cp", "--python-version=3.11"]
            .map(str::to_owned)
            .into();
    options.extend((5..=28).rev().map(|minor| format!("--platform=manylinux_2_{minor}_x86_64")));
    options.push("--platform=manylinux2014_x86_64".to_owned());
    options
}

/// Downloads libtorch into the cache.
/// # Errors
/// An unsupported machine, too little disk, or pip's failure, with what to do instead.
pub fn install(cache: &Cache, python: &Python, flavour: Flavour) -> Result<()> {
    if !cfg!(all(target_os = "linux", target_arch = "x86_64")) {
        bail!(
            "the wheels are known for Linux on x86_64, this is {} on {}: install libtorch \
             {VERSION} yourself and set LIBTORCH to its folder",
            std::env::consts::OS,
            std::env::consts::ARCH
        );
    }
    // Download, unpacked copy and pip's cache together.
    let (needed_bytes, announcement) = match flavour {
        Flavour::Cpu => (2_500_000_000, "0.5 GB to download, 0.5 GB kept"),
        Flavour::Cuda => (12_000_000_000, "3 GB to download, 5 GB kept"),
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
    let script = folder.join("torch/lib/libtorch.so");
    fs::write(&script, link_farm::LINKER_SCRIPT)
        .with_context(|| format!("writing {}", script.display()))?;
    fs::remove_dir_all(&wheels).with_context(|| format!("removing {}", wheels.display()))
}

/// The wheels stay whole; what is built against is a farm of links beside them.
fn fill_cuda(cache: &Cache, python: &Python, folder: &Path) -> Result<()> {
    let wheels = folder.join("wheels");
    let torch = format!("torch=={VERSION}");
    run_pip(cache, python, folder, &wheels, &[torch.as_str()])?;
    link_farm::build(&Libtorch::open(&wheels)?, folder)
}

/// Runs pip with its own progress on the terminal. Everything it writes stays within `folder`, so
/// that an interrupted run leaves nothing elsewhere.
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
        .args(wheel_choice())
        .args(packages)
        .stdin(cache.lock_for_child()?)
        .stdout(terminal)
        .env("TMPDIR", &scratch)
        .env("PIP_DISABLE_PIP_VERSION_CHECK", "1")
        // Settings made for installing into an environment: they refuse or clash with --target.
        .env("PIP_REQUIRE_VIRTUALENV", "0")
        .env("PIP_USER", "0")
        .env("PIP_ROOT_USER_ACTION", "ignore")
        .status()
        .with_context(|| format!("starting {}", python.program))?;
    if !status.success() {
        bail!(
            "pip could not install {} ({status}); its reason is above. Without a network or a \
             mirror that has them: install torch {VERSION} or libtorch {VERSION} on this machine \
             in another way and run `cargo xtask setup --from ITS_FOLDER`, or set LIBTORCH",
            packages.join(" ")
        );
    }
    fs::remove_dir_all(&scratch).with_context(|| format!("removing {}", scratch.display()))
}
