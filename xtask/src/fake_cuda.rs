//! `cargo xtask test --fake-cuda`: builds the CUDA device without a GPU (`tests/fake-cuda`), and
//! runs the tests that use it.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use anyhow::{Context, Result, bail};

use crate::cxx;
use crate::workspace::Workspace;

/// The flag of `cargo xtask test`; it is not passed to cargo.
pub const FLAG: &str = "--fake-cuda";
/// Environment variable that gives the tests the folder of the libraries.
const FOLDER_VARIABLE: &str = "VLM_FAKE_CUDA";

/// Source files and name of each library, and of the program that checks the fake device.
const TARGETS: [(&[&str], &str); 3] = [
    (&["streams.cpp", "device.cpp", "operators.cpp"], "libtorch_cuda.so"),
    (&["nccl.cpp"], "libvlm_nccl.so"),
    (&["checks.cpp"], "checks"),
];
/// Files that the sources include.
const HEADERS: [&str; 2] = ["device.h", "streams.h"];

/// Builds the libraries. Returns the arguments with which cargo runs the tests (`rest` at the end),
/// and the environment variable that the tests need.
///
/// # Errors
/// The compiler cannot be started, or fails.
pub fn prepare(
    workspace: &Workspace,
    rest: &[OsString],
) -> Result<(Vec<OsString>, (&'static str, PathBuf))> {
    let folder = build(workspace)?;
    let mut args: Vec<OsString> =
        ["--package", "vlm-tests", "--features", "fake-cuda", "--test", "fake_cuda"]
            .map(OsString::from)
            .into();
    args.extend(rest.iter().cloned());
    Ok((args, (FOLDER_VARIABLE, folder)))
}

/// Compiles what is missing or older than its sources, and returns the folder.
pub fn build(workspace: &Workspace) -> Result<PathBuf> {
    let sources = workspace.root().join("tests/fake-cuda");
    let folder = workspace.target_dir().join("fake-cuda");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut compilers = Vec::new();
    for (names, target) in TARGETS {
        let target = folder.join(target);
        let is_newer = |name: &&str| cxx::is_newer(&target, &sources.join(name));
        if !names.iter().chain(&HEADERS).all(is_newer) {
            eprintln!("test: compiling {}", names.join(" and "));
            let sources: Vec<PathBuf> = names.iter().map(|name| sources.join(name)).collect();
            compilers.push((names, compile(workspace, &sources, &target)?));
        }
    }
    for (names, mut compiler) in compilers {
        let status = compiler.wait().context("waiting for the C++ compiler")?;
        if !status.success() {
            bail!("compiling {} failed ({status}); the reason is above", names.join(" and "));
        }
    }
    Ok(folder)
}

fn compile(workspace: &Workspace, sources: &[PathBuf], target: &Path) -> Result<Child> {
    let torch = workspace.libtorch_link().join("torch");
    let (include, lib) = (torch.join("include"), torch.join("lib"));
    let is_library = target.extension().is_some();
    cxx::compiler()
        .args(is_library.then_some("-shared"))
        .args(["-fPIC", "-std=c++17", "-O1", "-w"])
        .args(["-DUSE_DISTRIBUTED", "-DUSE_C10D_GLOO", "-D_GLIBCXX_USE_CXX11_ABI=1"])
        .args([Path::new("-I"), &include, Path::new("-I")])
        .arg(include.join("torch/csrc/api/include"))
        .args(sources)
        .args([Path::new("-L"), &lib])
        .args(["-lc10", "-ltorch_cpu", "-ldl"])
        .arg(format!("-Wl,-rpath,{}", lib.display()))
        .arg("-o")
        .arg(target)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("starting the C++ compiler {}", cxx::name()))
}
