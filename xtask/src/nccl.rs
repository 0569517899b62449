//! Compiles the library through which `vlm` uses NCCL. It is separate from `vlm`, which would
//! otherwise need CUDA. `vlm` loads it from `nccl/libvlm_nccl.so` beside its libtorch.
//!
//! Tested on a machine without a GPU: the library compiles against a CUDA build of torch, loads,
//! and reports that there is no GPU. Not tested on a GPU yet.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::cache::Cache;
use crate::cxx;
use crate::libtorch::Libtorch;
use crate::pip;
use crate::program::output_of;
use crate::python::Python;
use crate::workspace::Workspace;

const SOURCE: &str = "crates/vlm-torch/nccl/plugin.cpp";
const LIBRARY: &str = "libvlm_nccl.so";

/// Headers that torch does not include: the packages that have them, and where these install them.
struct Headers {
    /// The major version of CUDA.
    major: u32,
    /// A file of each package, by which it is found, and the package.
    packages: [(&'static str, String); 4],
    /// The include folders, below the folder `nvidia` of an installation.
    folders: &'static [&'static str],
}

impl Headers {
    /// The headers for a libtorch with the version `2.11.0+cu128`. If the version does not tell, they
    /// are those of CUDA 13, with which the released torch is built.
    fn of(libtorch: &str) -> Self {
        let cuda = libtorch.split_once("+cu").and_then(|(_, digits)| digits.parse::<u32>().ok());
        let (major, minor) = cuda.map_or((13, 0), |cuda| (cuda / 10, cuda % 10));
        if major >= 13 {
            let packages = [
                ("crt/host_config.h", "nvidia-cuda-crt==13.0.88".to_owned()),
                ("nv/target", "nvidia-cuda-cccl==13.0.85".to_owned()),
                ("nccl.h", "nvidia-nccl-cu13==2.28.9".to_owned()),
                ("cuda_runtime.h", "nvidia-cuda-runtime==13.0.96".to_owned()),
            ];
            return Self { major, packages, folders: &["nccl/include", "cu13/include"] };
        }
        let of_minor = |name: &str| format!("nvidia-cuda-{name}-cu{major}=={major}.{minor}.*");
        Self {
            major,
            packages: [
                ("crt/host_config.h", of_minor("nvcc")),
                ("nv/target", of_minor("cccl")),
                ("nccl.h", format!("nvidia-nccl-cu{major}==2.28.9")),
                ("cuda_runtime.h", of_minor("runtime")),
            ],
            folders: &[
                "nccl/include", "cuda_runtime/include", "cuda_nvcc/include", "cuda_cccl/include",
            ],
        }
    }
}

/// Minimal replacements of headers from which torch's headers use only some type names, for a torch
/// that was installed without its packages.
const STUB_HEADERS: [(&str, &str); 5] = [
    (
        "cusparse.h",
        "typedef struct cusparseContext* cusparseHandle_t; typedef int cusparseStatus_t;",
    ),
    ("cublas_v2.h", "typedef struct cublasContext* cublasHandle_t; typedef int cublasStatus_t;"),
    ("cublasLt.h", "typedef struct cublasLtContext* cublasLtHandle_t;"),
    ("cusolverDn.h", "typedef struct cusolverDnContext* cusolverDnHandle_t;"),
    ("cusolver_common.h", "typedef int cusolverStatus_t;"),
];

/// Compiles the plugin for `libtorch`, unless it exists and is newer than its source.
///
/// # Errors
/// No pip to install missing headers; a failure of the compiler, with its messages.
pub fn build(
    workspace: &Workspace,
    cache: &Cache,
    libtorch: &Libtorch,
    pythons: &[Python],
) -> Result<()> {
    let source = workspace.root().join(SOURCE);
    let Some(parent) = libtorch.torch_dir.parent() else {
        bail!("{} has no parent folder", libtorch.torch_dir.display());
    };
    let folder = parent.join("nccl");
    let library = folder.join(LIBRARY);
    if cxx::is_newer(&library, &source) {
        return Ok(());
    }
    let start = Instant::now();
    eprintln!("setup: compiling the NCCL plugin");
    fs::create_dir_all(&folder).with_context(|| format!("making {}", folder.display()))?;
    let includes = includes(cache, libtorch, pythons, &folder)?;
    // Another checkout may be loading the old library, so the new one is renamed into place.
    let partial = folder.join(format!("{LIBRARY}.partial-{}", std::process::id()));
    let mut compiler = cxx::compiler();
    compiler
        .args(["-shared", "-fPIC", "-std=c++17", "-O2", "-w"])
        .args(["-DUSE_DISTRIBUTED", "-DUSE_C10D_NCCL", "-D_GLIBCXX_USE_CXX11_ABI=1"])
        .args(includes.iter().flat_map(|dir| [Path::new("-I"), dir.as_path()]))
        .arg(&source)
        .arg("-o")
        .arg(&partial);
    output_of(&mut compiler, &format!("compiling {}", source.display()))?;
    fs::rename(&partial, &library).with_context(|| format!("writing {}", library.display()))?;
    eprintln!("setup: {} ({:.0} s)", library.display(), start.elapsed().as_secs_f64());
    Ok(())
}

/// The include folders: those of torch, of its packages, of the packages that are installed here
/// because they are missing, and of the stubs.
fn includes(
    cache: &Cache,
    libtorch: &Libtorch,
    pythons: &[Python],
    folder: &Path,
) -> Result<Vec<PathBuf>> {
    let torch = libtorch.torch_dir.join("include");
    let beside = libtorch.torch_dir.with_file_name("nvidia");
    let needed = Headers::of(&libtorch.version);
    let headers = folder.join(format!("headers-cuda-{}", needed.major));
    let of = |nvidia: &Path| -> Vec<PathBuf> {
        needed.folders.iter().map(|folder| nvidia.join(folder)).collect()
    };
    let mut found = vec![torch.clone(), torch.join("torch/csrc/api/include")];
    found.extend(of(&beside));
    found.extend(of(&headers.join("nvidia")));
    let is_missing = |file: &str| !found.iter().any(|dir| dir.join(file).is_file());
    let packages: Vec<&str> = needed
        .packages
        .iter()
        .filter(|(file, _)| is_missing(file))
        .map(|(_, package)| package.as_str())
        .collect();
    if !packages.is_empty() {
        let python = Python::with_pip(pythons).with_context(|| {
            format!(
                "no Python with pip was found to install the headers of {}",
                packages.join(", ")
            )
        })?;
        let options: Vec<&str> = ["--no-deps"].into_iter().chain(packages).collect();
        pip::run_pip(cache, python, folder, &headers, &options)?;
    }
    let stubs = folder.join("stubs");
    fs::create_dir_all(&stubs).with_context(|| format!("making {}", stubs.display()))?;
    for (name, text) in STUB_HEADERS {
        fs::write(stubs.join(name), format!("#pragma once\n{text}\n"))
            .with_context(|| format!("writing {name} in {}", stubs.display()))?;
    }
    // Last, so that real headers are preferred.
    found.push(stubs);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::Headers;

    #[test]
    fn the_headers_are_those_of_the_cuda_that_libtorch_was_built_with() {
        let runtime = |libtorch| Headers::of(libtorch).packages[3].1.clone();
        assert_eq!(runtime("2.11.0+cu130"), "nvidia-cuda-runtime==13.0.96");
        assert_eq!(runtime("2.11.0"), "nvidia-cuda-runtime==13.0.96");
        assert_eq!(runtime("2.11.0+cu128"), "nvidia-cuda-runtime-cu12==12.8.*");
        assert!(Headers::of("2.11.0+cu126").folders.contains(&"cuda_nvcc/include"));
    }
}
