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

/// Source files and name of each library.
const LIBRARIES: [(&[&str], &str); 2] =
    [(&["device.cpp", "operators.cpp"], "libtorch_cuda.so"), (&["nccl.cpp"], "libvlm_nccl.so")];

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

/// Compiles the libraries that are missing or older than their sources, and returns their folder.
fn build(workspace: &Workspace) -> Result<PathBuf> {
    let sources = workspace.root().join("tests/fake-cuda");
    let folder = workspace.target_dir().join("fake-cuda");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let mut compilers = Vec::new();
    for (names, library) in LIBRARIES {
        let library = folder.join(library);
        let sources: Vec<PathBuf> = names.iter().map(|name| sources.join(name)).collect();
        if !sources.iter().all(|source| cxx::is_newer(&library, source)) {
            eprintln!("test: compiling {}", names.join(" and "));
            compilers.push((names, compile(workspace, &sources, &library)?));
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

fn compile(workspace: &Workspace, sources: &[PathBuf], library: &Path) -> Result<Child> {
    let torch = workspace.libtorch_link().join("torch");
    let (include, lib) = (torch.join("include"), torch.join("lib"));
    cxx::compiler()
        .args(["-shared", "-fPIC", "-std=c++17", "-O1", "-w"])
        .args(["-DUSE_DISTRIBUTED", "-DUSE_C10D_GLOO", "-D_GLIBCXX_USE_CXX11_ABI=1"])
        .args([Path::new("-I"), &include, Path::new("-I")])
        .arg(include.join("torch/csrc/api/include"))
        .args(sources)
        .args([Path::new("-L"), &lib])
        .args(["-lc10", "-ltorch_cpu"])
        .arg(format!("-Wl,-rpath,{}", lib.display()))
        .arg("-o")
        .arg(library)
        .stdin(Stdio::null())
        .spawn()
        .with_context(|| format!("starting the C++ compiler {}", cxx::name()))
}
