//! The tarball: the program with the libtorch that it was built with, for machines without Python.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

use super::package::{Package, VERSION, add_files, require_linux_x86_64};

/// Folders of a libtorch that the program needs at run time.
const LIBRARY_FOLDERS: [&str; 2] = ["torch/lib", "nvidia"];

/// The first thing to read after unpacking.
const README: &str = include_str!("README.txt");

/// Folder with the licences of libtorch.
const LICENSES: &str = "licenses";

/// Writes the tarball to `out_dir` and returns its path.
///
/// # Errors
/// A libtorch with CUDA, or without its licences; a failure of the file system.
pub(super) fn write(package: &Package, out_dir: &Path) -> Result<PathBuf> {
    require_linux_x86_64()?;
    let libtorch = fs::canonicalize(package.workspace.libtorch_link())?;
    if libtorch.join("torch/lib/libtorch_cuda.so").exists() {
        bail!(
            "{} is a libtorch with CUDA, which takes gigabytes; run `cargo xtask setup --cpu` \
             first",
            libtorch.display()
        );
    }
    if !libtorch.join(LICENSES).is_dir() {
        bail!(
            "{} has no licences of libtorch, which must be passed on with it; remove this folder \
             and run `cargo xtask setup`",
            libtorch.display()
        );
    }
    let name = format!("vlm-{VERSION}-linux-x86_64-glibc2.{}", package.glibc_minor);
    let path = out_dir.join(format!("{name}.tar.gz"));
    let file = File::create(&path).with_context(|| format!("writing {}", path.display()))?;
    let mut tar = Builder::new(GzEncoder::new(file, Compression::default()));
    let mut add = |from: &Path, to: PathBuf, mode: u32| {
        append(&mut tar, from, &Path::new(&name).join(to), mode)
            .with_context(|| format!("packing {}", from.display()))
    };
    let scratch = tempfile::tempdir().context("making a folder for the README")?;
    let readme = scratch.path().join("README.txt");
    fs::write(&readme, README).with_context(|| format!("writing {}", readme.display()))?;
    add(&readme, "README.txt".into(), 0o644)?;
    add(&package.program, "bin/vlm".into(), 0o755)?;
    for (from, relative) in package.data_files()? {
        add(&from, Path::new("data").join(relative), 0o644)?;
    }
    for (from, license) in package.licenses() {
        add(&from, license.into(), 0o644)?;
    }
    let mut files = Vec::new();
    for folder in LIBRARY_FOLDERS.iter().chain([&LICENSES]) {
        add_files(&libtorch, Path::new(folder), &mut files)?;
    }
    for (from, relative) in files {
        add(&from, Path::new("libtorch").join(relative), 0o644)?;
    }
    tar.into_inner()?.finish()?.sync_all()?;
    Ok(path)
}

/// Appends a file without its time and owner, so that the same files make the same archive.
fn append(
    tar: &mut Builder<GzEncoder<File>>,
    from: &Path,
    to: &Path,
    mode: u32,
) -> std::io::Result<()> {
    let file = File::open(from)?;
    let mut header = Header::new_gnu();
    header.set_size(file.metadata()?.len());
    header.set_mode(mode);
    header.set_mtime(0);
    tar.append_data(&mut header, to, file)
}
