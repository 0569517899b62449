//! `cargo xtask setup`: finds libtorch, links `.libtorch` to it and proves that it works. Every
//! command that builds against libtorch calls [`ensure`] first.

use std::env;
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};

use crate::cache::{Cache, cache_dir, libtorch_entry};
use crate::gpu;
use crate::libtorch::{Flavour, Libtorch, VERSION};
use crate::link_farm;
use crate::nccl;
use crate::pip;
use crate::proof;
use crate::python::Python;
use crate::workspace::{Workspace, usage_error};

/// What to set up; by default whatever serves this machine.
#[derive(Debug, Default)]
pub struct Request {
    /// A folder named by the user; stands above everything else.
    pub from: Option<PathBuf>,
    /// `--cpu` or `--cuda`.
    pub flavour: Option<Flavour>,
}

/// Sets up when `.libtorch` is missing or broken, or when an exported `LIBTORCH` names another
/// libtorch than the one that is linked.
pub fn ensure(workspace: &Workspace) -> Result<()> {
    let Ok(current) = linked(workspace) else {
        return run(workspace, &Request::default());
    };
    match exported_libtorch(workspace) {
        Some(folder) if !is_same_library(&folder, &current) => {
            run(workspace, &Request { from: Some(folder), flavour: None })
        }
        _ => {
            if let Some(complaint) = gpu::complaint(&current) {
                eprintln!("warning: {complaint}");
            }
            proof::prove(workspace, &current)
        }
    }
}

/// The libtorch that builds of this checkout use now.
/// # Errors
/// No link, or one that does not lead to a libtorch that can be linked.
pub fn linked(workspace: &Workspace) -> Result<Libtorch> {
    let libtorch = Libtorch::open(&workspace.libtorch_link().join("torch"))?;
    if !libtorch.can_be_linked() {
        bail!("{} cannot be linked as it is", libtorch.torch_dir.display());
    }
    Ok(libtorch)
}

/// Finds libtorch, links it into the checkout and proves it.
/// # Errors
/// Nothing usable was found or could be installed; the message says what to install or to set.
pub fn run(workspace: &Workspace, request: &Request) -> Result<()> {
    // Asked before a download that would be of no use without it.
    proof::cxx_version()?;
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
        // One GPU, and any number of processes on the CPU, do without.
        eprintln!("setup: several GPUs cannot be used together: {error:#}");
    }
    eprintln!(
        "setup: libtorch {} ({}), .libtorch -> {}",
        libtorch.version,
        libtorch.flavour().name(),
        fs::read_link(workspace.libtorch_link()).unwrap_or_default().display()
    );
    Ok(())
}

/// A folder the user named is used or it is an error: never silently another one.
fn use_named(
    workspace: &Workspace,
    cache: &Cache,
    folder: &Path,
    flavour: Option<Flavour>,
) -> Result<()> {
    let folder = fs::canonicalize(folder).map_err(|error| {
        usage_error(format!(
            "{}: {error}; expected the folder of libtorch {VERSION} (from --from or LIBTORCH)",
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
    adopt(workspace, cache, &libtorch)
}

/// The cache, then the user's Python, then pip.
fn use_found(workspace: &Workspace, cache: &Cache, flavour: Flavour) -> Result<()> {
    let entry = libtorch_entry(flavour)?;
    if let Ok(libtorch) = Libtorch::open(&entry) {
        return adopt(workspace, cache, &libtorch);
    }
    let pythons = Python::find_all();
    for torch_dir in pythons.iter().filter_map(|python| python.torch_dir.as_deref()) {
        match use_python_torch(workspace, cache, torch_dir, flavour) {
            Ok(()) => return Ok(()),
            Err(error) => eprintln!("setup: not using the Python's torch: {error:#}"),
        }
    }
    let python = Python::with_pip(&pythons).ok_or_else(|| missing_pip(&pythons))?;
    pip::install(cache, python, flavour).with_context(|| match flavour {
        Flavour::Cpu => "setting up libtorch for the CPU".to_owned(),
        Flavour::Cuda => "setting up libtorch for CUDA (`cargo xtask setup --cpu` needs a tenth \
                          of the download)"
            .to_owned(),
    })?;
    adopt(workspace, cache, &Libtorch::open(&entry)?)
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
    adopt(workspace, cache, &libtorch)
}

fn missing_pip(pythons: &[Python]) -> anyhow::Error {
    let found = match pythons.first() {
        None => "no Python 3".to_owned(),
        Some(python) => format!("{} {} without pip", python.program, python.version_text()),
    };
    anyhow!(
        "libtorch {VERSION} is not here yet and there is {found} to install it with. Install \
         Python 3 with pip (`apt install python3-pip`, `dnf install python3-pip`), or put libtorch \
         {VERSION} on this machine yourself and set LIBTORCH to its folder"
    )
}

/// Points `.libtorch` at `libtorch`, through a farm of links where it cannot be linked as it is,
/// and proves it. The old link stays when the proof fails.
fn adopt(workspace: &Workspace, cache: &Cache, libtorch: &Libtorch) -> Result<()> {
    let folder = match libtorch.torch_dir.parent() {
        Some(parent) if libtorch.can_be_linked() => parent.to_path_buf(),
        _ => {
            let farm = farm_of(&libtorch.torch_dir)?;
            // Another checkout may be building through it: a farm that serves is left alone.
            let serves = Libtorch::open(&farm)
                .is_ok_and(|old| old.can_be_linked() && is_same_library(&libtorch.torch_dir, &old));
            if !serves {
                cache.put(&farm, |partial| link_farm::build(libtorch, partial))?;
            }
            farm
        }
    };
    proof::prove(workspace, &Libtorch::open(&folder.join("torch"))?)?;
    replace_link(&workspace.libtorch_link(), &folder)
}

/// One farm for a source, whichever checkout asks.
fn farm_of(torch_dir: &Path) -> Result<PathBuf> {
    let mut hasher = DefaultHasher::new();
    torch_dir.hash(&mut hasher);
    Ok(cache_dir()?.join(format!("libtorch-{VERSION}-links-{:016x}", hasher.finish())))
}

/// The link appears whole: builds that run now see the old one or the new one.
fn replace_link(link: &Path, folder: &Path) -> Result<()> {
    if fs::read_link(link).is_ok_and(|target| target == folder) {
        return Ok(());
    }
    if link.is_dir() && !link.is_symlink() {
        bail!("{} is a folder, expected a link: move it away", link.display());
    }
    let fresh = link.with_extension("new");
    let _ = fs::remove_file(&fresh);
    symlink(folder, &fresh)
        .and_then(|()| fs::rename(&fresh, link))
        .with_context(|| format!("linking {} to {}", link.display(), folder.display()))
}

/// `LIBTORCH` as the user exported it; cargo sets it to our own link when they did not.
pub fn exported_libtorch(workspace: &Workspace) -> Option<PathBuf> {
    let folder = PathBuf::from(env::var_os("LIBTORCH").filter(|value| !value.is_empty())?);
    (folder != workspace.libtorch_link().join("torch")).then_some(folder)
}

/// Whether `folder` holds the very file that builds link now, farm or not.
fn is_same_library(folder: &Path, linked: &Libtorch) -> bool {
    let library = |torch_dir: &Path| fs::canonicalize(torch_dir.join("lib/libtorch_cpu.so")).ok();
    let named = library(folder).or_else(|| library(&folder.join("torch")));
    named.is_some() && named == library(&linked.torch_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_is_replaced_and_a_real_folder_is_not() {
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
    fn one_source_has_one_farm_and_another_source_another() {
        let farm = |path: &str| farm_of(Path::new(path)).unwrap();
        assert_eq!(farm("a/torch"), farm("a/torch"));
        assert_ne!(farm("a/torch"), farm("b/torch"));
    }
}
