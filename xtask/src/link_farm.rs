//! A folder of symbolic links (a "link farm") to a libtorch to which programs cannot be linked
//! directly: a full CUDA installation, Python's torch, an unpacked archive.
//!
//! Programs are linked to the CPU libraries and load `libtorch_cuda.so` when they start, because
//! the linker's `--as-needed` would drop `-ltorch_cuda`. torch-sys links that library if it finds
//! it, so the farm's `torch/lib` leaves it out, and `cuda` points at the folder that has it:
//!
//! ```text
//! FARM/torch/{include,version.py}, torch/lib/*.so   links; libtorch.so is a linker script
//! FARM/nvidia                                       libtorch_cpu looks in ../../nvidia for cudart
//! FARM/cuda                                         the original lib folder, with libtorch_cuda.so
//! ```
//! Tested on a machine without a GPU: programs link and run with it, and `libtorch_cuda.so` can be
//! loaded from `cuda`. Not tested on a GPU yet.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use crate::libtorch::Libtorch;

/// Content of `libtorch.so`: a linker script, which rust-lld, GNU ld and gold can read.
pub const LINKER_SCRIPT: &str = "INPUT(-ltorch_cpu)\n";

/// Libraries without a link in the farm: Python bindings, GPU libraries, and `libtorch.so`, which
/// the linker script replaces.
const EXCLUDED: [&str; 4] = ["libtorch_cuda", "libtorch_hip", "libtorch_python", "libtorch.so"];

/// Fills the folder `farm` with links to `source`. If `source` lies within `farm`, the links are
/// relative, so that the farm can be moved.
pub fn build(source: &Libtorch, farm: &Path) -> Result<()> {
    let torch_dir = resolve(&source.torch_dir)?;
    fs::create_dir_all(farm.join("torch/lib"))
        .with_context(|| format!("making {}", farm.display()))?;
    let farm = &resolve(farm)?;
    let link = |target: &Path, at: &str| link(farm, target, at);
    let torch = farm.join("torch");
    let lib = torch.join("lib");

    link(&torch_dir.join("include"), "torch/include")?;
    let version_module = format!("__version__ = '{}'\n", source.version);
    write(&torch.join("version.py"), &version_module)?;
    write(&lib.join("libtorch.so"), LINKER_SCRIPT)?;

    let source_lib = torch_dir.join("lib");
    let entries =
        fs::read_dir(&source_lib).with_context(|| format!("reading {}", source_lib.display()))?;
    for entry in entries {
        let entry = entry.with_context(|| format!("reading {}", source_lib.display()))?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if is_wanted(&name) {
            link(&entry.path(), &format!("torch/lib/{name}"))?;
        }
    }
    if let Some(nvidia) = torch_dir.parent().map(|dir| dir.join("nvidia"))
        && nvidia.is_dir()
    {
        link(&nvidia, "nvidia")?;
    }
    if let Some(dir) = &source.cuda_lib_dir {
        link(&resolve(dir)?, "cuda")?;
    }
    Ok(())
}

fn is_wanted(name: &str) -> bool {
    let is_library = name.ends_with(".so") || name.contains(".so.");
    is_library && !EXCLUDED.iter().any(|prefix| name.starts_with(prefix))
}

/// Makes the link `farm/at` to `target`, relative if `target` lies within `farm`. `farm` and
/// `target` are canonical paths.
fn link(farm: &Path, target: &Path, at: &str) -> Result<()> {
    let target = match target.strip_prefix(farm) {
        Ok(inside) => Path::new(&"../".repeat(at.matches('/').count())).join(inside),
        Err(_) => target.to_path_buf(),
    };
    symlink(&target, farm.join(at))
        .with_context(|| format!("linking {at} in {} to {}", farm.display(), target.display()))
}

fn resolve(path: &Path) -> Result<PathBuf> {
    fs::canonicalize(path).with_context(|| format!("resolving {}", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("writing {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fake_installation(root: &Path) -> Libtorch {
        let torch = root.join("torch");
        fs::create_dir_all(torch.join("include/ATen")).unwrap();
        fs::create_dir_all(torch.join("lib")).unwrap();
        fs::create_dir_all(root.join("nvidia/cu13/lib")).unwrap();
        fs::write(torch.join("include/ATen/ATen.h"), "").unwrap();
        fs::write(torch.join("version.py"), "__version__ = '2.11.0+cu130'\n").unwrap();
        for name in
            ["libc10.so", "libtorch_cpu.so", "libtorch.so", "libtorch_cuda.so", "libgomp.so.1"]
        {
            fs::write(torch.join("lib").join(name), name).unwrap();
        }
        Libtorch::open(root).unwrap()
    }

    #[test]
    fn farm_of_a_cuda_installation_can_be_linked_and_has_its_cuda_library() {
        let folder = tempfile::tempdir().unwrap();
        let source = fake_installation(&folder.path().join("site-packages"));
        assert!(!source.can_be_linked());

        let farm = folder.path().join("farm");
        build(&source, &farm).unwrap();
        let farmed = Libtorch::open(&farm).unwrap();
        assert!(farmed.can_be_linked());
        assert_eq!(farmed.version, "2.11.0+cu130");
        assert!(farmed.cuda_lib_dir.is_some());
        assert!(farm.join("torch/lib/libgomp.so.1").is_file());
        assert!(farm.join("torch/lib/../../nvidia/cu13/lib").is_dir());
        assert_eq!(fs::read_to_string(farm.join("torch/lib/libtorch.so")).unwrap(), LINKER_SCRIPT);
    }

    #[test]
    fn farm_that_contains_its_source_can_be_moved() {
        let folder = tempfile::tempdir().unwrap();
        let (partial, whole) = (folder.path().join("a.partial"), folder.path().join("a"));
        let source = fake_installation(&partial.join("wheels"));
        build(&source, &partial).unwrap();
        fs::rename(&partial, &whole).unwrap();
        let farmed = Libtorch::open(&whole).unwrap();
        assert!(farmed.can_be_linked() && farmed.cuda_lib_dir.is_some());
        assert!(whole.join("nvidia/cu13/lib").is_dir());
    }

    #[test]
    fn only_libraries_that_programs_link_to_are_included() {
        assert!(is_wanted("libtorch_cpu.so") && is_wanted("libcudart.so.13"));
        assert!(!is_wanted("libtorch_cuda.so") && !is_wanted("libtorch_cuda_linalg.so"));
        assert!(!is_wanted("libtorch.so") && !is_wanted("libprotobuf.a"));
    }
}
