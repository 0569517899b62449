//! The library through which `vlm` speaks NCCL: compiled where CUDA is, since a program that is
//! linked to it would need CUDA. `vlm` finds it beside its libtorch, in `nccl/libvlm_nccl.so`.
//!
//! Seen on a machine without a GPU: it compiles against the CPU's headers and a CUDA torch, loads,
//! and says that there is no GPU. Not run on a GPU yet.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::libtorch::Libtorch;
use crate::pip;
use crate::proof::{cxx_compiler, require_success};
use crate::python::Python;
use crate::workspace::Workspace;

const SOURCE: &str = "crates/vlm-torch/nccl/plugin.cpp";
const LIBRARY: &str = "libvlm_nccl.so";

/// Headers that torch's own packages lack, by a file of each.
const HEADER_PACKAGES: [(&str, &str); 4] = [
    ("crt/host_config.h", "nvidia-cuda-crt==13.0.88"),
    ("nv/target", "nvidia-cuda-cccl==13.0.85"),
    ("nccl.h", "nvidia-nccl-cu13==2.28.9"),
    ("cuda_runtime.h", "nvidia-cuda-runtime==13.0.96"),
];

/// Included by torch's headers, which only name types of theirs: stand-ins for where a torch came
/// without its packages.
const STAND_INS: [(&str, &str); 5] = [
    (
        "cusparse.h",
        "typedef struct cusparseContext* cusparseHandle_t; typedef int cusparseStatus_t;",
    ),
    ("cublas_v2.h", "typedef struct cublasContext* cublasHandle_t; typedef int cublasStatus_t;"),
    ("cublasLt.h", "typedef struct cublasLtContext* cublasLtHandle_t;"),
    ("cusolverDn.h", "typedef struct cusolverDnContext* cusolverDnHandle_t;"),
    ("cusolver_common.h", "typedef int cusolverStatus_t;"),
];

/// Compiles the plugin for `libtorch` unless it is there and newer than its source.
/// # Errors
/// No pip for the headers, or the compiler's own words.
pub fn build(
    workspace: &Workspace,
    cache: &Cache,
    libtorch: &Libtorch,
    pythons: &[Python],
) -> Result<()> {
    let source = workspace.root().join(SOURCE);
    let Some(parent) = libtorch.torch_dir.parent() else {
        bail!("{} has no folder above it", libtorch.torch_dir.display());
    };
    let folder = parent.join("nccl");
    let library = folder.join(LIBRARY);
    if is_newer(&library, &source) {
        return Ok(());
    }
    let start = Instant::now();
    eprintln!("setup: compiling the library for NCCL");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let includes = includes(cache, libtorch, pythons, &folder)?;
    // Another checkout may load the old one meanwhile.
    let partial = folder.join(format!("{LIBRARY}.partial-{}", std::process::id()));
    let compiler = cxx_compiler();
    let mut words = compiler.split_whitespace();
    let compiled = Command::new(words.next().unwrap_or("c++"))
        .args(words)
        .args(["-shared", "-fPIC", "-std=c++17", "-O2", "-w"])
        .args(["-DUSE_DISTRIBUTED", "-DUSE_C10D_NCCL", "-D_GLIBCXX_USE_CXX11_ABI=1"])
        .args(includes.iter().flat_map(|dir| [Path::new("-I"), dir.as_path()]))
        .arg(&source)
        .arg("-o")
        .arg(&partial)
        .output()
        .with_context(|| format!("starting the C++ compiler {compiler}"))?;
    require_success(&compiled, &format!("compiling {}", source.display()))?;
    fs::rename(&partial, &library).with_context(|| format!("writing {}", library.display()))?;
    eprintln!("setup: {} ({:.0} s)", library.display(), start.elapsed().as_secs_f64());
    Ok(())
}

fn is_newer(library: &Path, source: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    matches!((modified(library), modified(source)), (Some(a), Some(b)) if a >= b)
}

/// Where headers are looked for: torch's, those that came with its packages, those fetched for the
/// purpose, and stand-ins.
fn includes(
    cache: &Cache,
    libtorch: &Libtorch,
    pythons: &[Python],
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    let torch = libtorch.torch_dir.join("include");
    let beside = libtorch.torch_dir.with_file_name("nvidia");
    let headers = folder.join("headers");
    let of = |nvidia: &Path| [nvidia.join("nccl/include"), nvidia.join("cu13/include")];
    let mut found = vec![torch.clone(), torch.join("torch/csrc/api/include")];
    found.extend(of(&beside));
    found.extend(of(&headers.join("nvidia")));
    let is_missing = |file: &str| !found.iter().any(|dir| dir.join(file).is_file());
    let packages: Vec<&str> = HEADER_PACKAGES
        .iter()
        .filter(|(file, _)| is_missing(file))
        .map(|(_, package)| *package)
        .collect();
    if !packages.is_empty() {
        let python = Python::with_pip(pythons).with_context(|| {
            format!("no Python with pip to fetch the headers of {} with", packages.join(", "))
        })?;
        let options: Vec<&str> = ["--no-deps"].into_iter().chain(packages).collect();
        pip::run_pip(cache, python, folder, &headers, &options)?;
    }
    let stand_ins = folder.join("stand-ins");
    fs::create_dir_all(&stand_ins).with_context(|| format!("making {}", stand_ins.display()))?;
    for (name, text) in STAND_INS {
        fs::write(stand_ins.join(name), format!("#pragma once\n{text}\n"))
            .with_context(|| format!("writing {name} in {}", stand_ins.display()))?;
    }
    // Last, so that the real ones are taken where they are.
    found.push(stand_ins);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_library_is_built_anew_when_its_source_changed() {
        let folder = tempfile::tempdir().unwrap();
        let [source, library] = ["plugin.cpp", LIBRARY].map(|name| folder.path().join(name));
        fs::write(&source, "").unwrap();
        assert!(!is_newer(&library, &source));
        fs::write(&library, "").unwrap();
        assert!(is_newer(&library, &source));
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
        fs::File::options().write(true).open(&source).unwrap().set_modified(later).unwrap();
        assert!(!is_newer(&library, &source));
    }
}
