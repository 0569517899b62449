//! `cargo xtask setup`: finds or installs libtorch, makes the link `.libtorch` to it, and tests
//! that it works. Every command that builds against libtorch calls [`ensure`] first.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::cache::{Cache, cache_dir, libtorch_entry};
use crate::cxx;
use crate::gpu;
use crate::libtorch::{Flavour, Libtorch, VERSION};
use crate::link_farm;
use crate::nccl;
use crate::pip;
use crate::python::Python;
use crate::smoke_test;
use crate::workspace::{Workspace, usage_error};

/// What to set up. The default is the libtorch that suits this machine.
#[derive(Debug, Default)]
pub struct Request {
    /// Folder that the user named with `--from`; it takes precedence over every other source.
    pub from: Option<PathBuf>,
    /// The flavour that the user chose with `--cpu` or `--cuda`.
    pub flavour: Option<Flavour>,
}

/// Sets up libtorch if the link `.libtorch` is missing or broken, or if the environment variable
/// `LIBTORCH` names another libtorch than the linked one.
///
/// # Errors
/// As [`run`].
pub fn ensure(workspace: &Workspace) -> Result<()> {
    let Ok(current) = linked(workspace) else {
        return run(workspace, &Request::default());
    };
    match exported_libtorch(workspace) {
        Some(folder) if !is_same_library(&folder, &current) => {
            run(workspace, &Request { from: Some(folder), flavour: None })
        }
        _ => {
            if let Some(warning) = gpu::warning(&current) {
                eprintln!("warning: {warning}");
            }
            smoke_test::run(workspace, &current)
        }
    }
}

/// The libtorch to which this checkout is linked.
///
/// # Errors
/// The link is missing, or it does not lead to a libtorch to which programs can be linked.
pub fn linked(workspace: &Workspace) -> Result<Libtorch> {
    let libtorch = Libtorch::open(&workspace.libtorch_link().join("torch"))?;
    if !libtorch.can_be_linked() {
        bail!("programs cannot be linked to {} directly", libtorch.torch_dir.display());
    }
    Ok(libtorch)
}

/// Finds or installs libtorch, links it into the checkout and tests it.
///
/// # Errors
/// No libtorch was found that can be used, and none could be installed.
pub fn run(workspace: &Workspace, request: &Request) -> Result<()> {
    // Checked first: without a compiler a download would be useless.
    cxx::version()?;
    let cache = Cache::lock()?;
    let named = request.from.clone().or_else(|| exported_libtorch(workspace));
    match named {
        Some(folder) => use_named(workspace, &cache, &folder, request.flavour)?,
        None => {
            let flavour = request.flavour.unwrap_or_else(gpu::flavour_of_this_machine);
            use_found(workspace, &cache, flavour)?;
        }
    }
    let libtorch = linked(workspace)?;
    if libtorch.flavour() == Flavour::Cuda
        && let Err(error) = nccl::build(workspace, &cache, &libtorch, &Python::find_all())
    {
        // NCCL is needed only for several GPUs.
        eprintln!("setup: training on several GPUs will not work: {error:#}");
    }
    eprintln!(
        "setup: libtorch {} ({}), .libtorch -> {}",
        libtorch.version,
        libtorch.flavour().name(),
        fs::read_link(workspace.libtorch_link()).unwrap_or_default().display()
    );
    Ok(())
}

/// Uses the folder that the user named. If that is not possible, it is an error: another libtorch
/// is never used instead.
fn use_named(
    workspace: &Workspace,
    cache: &Cache,
    folder: &Path,
    flavour: Option<Flavour>,
) -> Result<()> {
    let folder = fs::canonicalize(folder).map_err(|error| {
        usage_error(format!(
            "{}: {error}; --from or LIBTORCH must be the folder of libtorch {VERSION}",
            folder.display()
        ))
    })?;
    let libtorch = Libtorch::open(&folder).map_err(|e| usage_error(e.to_string()))?;
    if flavour == Some(Flavour::Cuda) && libtorch.flavour() == Flavour::Cpu {
        return Err(usage_error(format!(
            "{} has no lib/libtorch_cuda.so, which --cuda asks for",
            libtorch.torch_dir.display()
        )));
    }
    activate(workspace, cache, &libtorch)
}

/// Uses the first libtorch that is found in the cache or in the user's Python; otherwise installs
/// one with pip.
fn use_found(workspace: &Workspace, cache: &Cache, flavour: Flavour) -> Result<()> {
    let entry = libtorch_entry(flavour)?;
    if let Ok(libtorch) = Libtorch::open(&entry) {
        return activate(workspace, cache, &libtorch);
    }
    let pythons = Python::find_all();
    for torch_dir in pythons.iter().filter_map(|python| python.torch_dir.as_deref()) {
        match use_python_torch(workspace, cache, torch_dir, flavour) {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("setup: Python's torch cannot be used: {error:#}"),
        }
    }
    let python = Python::with_pip(&pythons).ok_or_else(|| missing_pip(&pythons))?;
    pip::install(cache, python, flavour).with_context(|| match flavour {
        Flavour::Cpu => "setting up libtorch for the CPU".to_owned(),
        Flavour::Cuda => "setting up libtorch for CUDA (`cargo xtask setup --cpu` needs a tenth \
                          of the download)"
            .to_owned(),
    })?;
    activate(workspace, cache, &Libtorch::open(&entry)?)
}

fn use_python_torch(
    workspace: &Workspace,
    cache: &Cache,
    torch_dir: &Path,
    flavour: Flavour,
) -> Result<()> {
    let libtorch = Libtorch::open(torch_dir)?;
    if flavour == Flavour::Cuda && libtorch.flavour() == Flavour::Cpu {
        bail!("{} is a build without CUDA", torch_dir.display());
    }
    activate(workspace, cache, &libtorch)
}

fn missing_pip(pythons: &[Python]) -> anyhow::Error {
    let found = match pythons.first() {
        None => "no Python 3".to_owned(),
        Some(python) => format!("{} {} without pip", python.program, python.version_text()),
    };
    anyhow!(
        "libtorch {VERSION} was not found, and it cannot be installed: found {found}. Install \
         Python 3 with pip (`apt install python3-pip`, `dnf install python3-pip`), or install \
         libtorch {VERSION} yourself and set LIBTORCH to its folder"
    )
}

/// Tests `libtorch` and points the link `.libtorch` at it, through a link farm if programs cannot
/// be linked to it directly. If the test fails, the old link is kept.
fn activate(workspace: &Workspace, cache: &Cache, libtorch: &Libtorch) -> Result<()> {
    let folder = match libtorch.torch_dir.parent() {
        Some(parent) if libtorch.can_be_linked() => parent.to_path_buf(),
        _ => {
            let farm = farm_of(&libtorch.torch_dir)?;
            // Another checkout may be building with the farm, so a valid one is not replaced.
            let is_valid = Libtorch::open(&farm)
                .is_ok_and(|old| old.can_be_linked() && is_same_library(&libtorch.torch_dir, &old));
            if !is_valid {
                cache.put(&farm, |partial| link_farm::build(libtorch, partial))?;
            }
            farm
        }
    };
    smoke_test::run(workspace, &Libtorch::open(&folder.join("torch"))?)?;
    replace_link(&workspace.libtorch_link(), &folder)
}

/// The folder of the link farm for a torch folder; the same for all checkouts.
fn farm_of(torch_dir: &Path) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    torch_dir.hash(&mut hasher);
    Ok(cache_dir()?.join(format!("libtorch-{VERSION}-links-{:016x}", hasher.finish())))
}

/// Replaces the link atomically: builds that are running see either the old or the new one.
fn replace_link(link: &Path, folder: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|target| target == folder) {
        return Ok(());
    }
    if link.is_dir() && !link.is_symlink() {
        bail!("{} is a folder, but must be a link: move it away", link.display());
    }
    let fresh = link.with_extension("new");
    let _ = fs::remove_file(&fresh);
    symlink(folder, &fresh)
        .and_then(|()| fs::rename(&fresh, link))
        .with_context(|| format!("linking {} to {}", link.display(), folder.display()))
}

/// The folder in the environment variable `LIBTORCH`. `None` if it is not set, or if it is the link
/// of this checkout, which cargo sets by default.
pub fn exported_libtorch(workspace: &Workspace) -> Option<PathBuf> {
    let folder = PathBuf::from(env::var_os("LIBTORCH").filter(|value| !value.is_empty())?);
    (folder != workspace.libtorch_link().join("torch")).then_some(folder)
}

/// Whether `folder` holds the same library file as `linked`, also if `linked` is a link farm.
fn is_same_library(folder: &Path, linked: &Libtorch) -> bool {
    let library = |torch_dir: &Path| fs::canonicalize(torch_dir.join("lib/libtorch_cpu.so")).ok();
    let named = library(folder).or_else(|| library(&folder.join("torch")));
    named.is_some() && named == library(&linked.torch_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_is_replaced_but_a_real_folder_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let link = folder.path().join(".libtorch");
        replace_link(&link, Path::new("one")).unwrap();
        replace_link(&link, Path::new("two")).unwrap();
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("two"));

        fs::remove_file(&link).unwrap();
        fs::create_dir(&link).unwrap();
        let error = replace_link(&link, Path::new("three")).unwrap_err();
        assert!(error.to_string().contains("move it away"), "{error}");
    }

    #[test]
    fn every_source_has_a_farm_of_its_own() {
        let farm = |path: &str| farm_of(Path::new(path)).unwrap();
        assert_eq!(farm("a/torch"), farm("a/torch"));
        assert_ne!(farm("a/torch"), farm("b/torch"));
    }
}
