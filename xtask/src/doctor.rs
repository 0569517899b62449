//! `cargo xtask doctor`: reports what this machine has and whether training can run on it. It
//! changes nothing.

use std::fmt::Display;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};

use anyhow::Result;
use vlm_display::{Align, Table};

use crate::cache::{cache_dir, gigabytes, libtorch_entry};
use crate::cxx;
use crate::gpu;
use crate::libtorch::{Flavour, Libtorch, VERSION};
use crate::program::{first_line, output_of};
use crate::python::Python;
use crate::setup;
use crate::sys;
use crate::workspace::Workspace;

/// Memory that building and training the demo need, rounded up.
const MIN_MEMORY_BYTES: u64 = 3_000_000_000;

/// Disk space that the build needs. Set-up checks separately that an installation fits.
const MIN_DISK_BYTES: u64 = 3_000_000_000;

/// What was found, warnings, and problems that keep training from running.
struct Report {
    table: Table,
    warnings: Vec<String>,
    problems: Vec<String>,
}

/// Prints the report. The exit code is 1 if training cannot run.
pub fn run(workspace: &Workspace) -> Result<ExitCode> {
    let table = Table::new(&[Align::Left]);
    let mut report = Report { table, warnings: Vec::new(), problems: Vec::new() };
    report.toolchain(workspace);
    report.libtorch(workspace);
    report.gpus();
    report.machine(workspace);
    println!("{}", report.table);
    for warning in &report.warnings {
        println!("warning: {warning}");
    }
    if report.problems.is_empty() {
        println!("cargo xtask pretrain can run here.");
        return Ok(ExitCode::SUCCESS);
    }
    println!("cargo xtask pretrain cannot run here yet:");
    for problem in &report.problems {
        println!("- {problem}");
    }
    Ok(ExitCode::FAILURE)
}

impl Report {
    fn line(&mut self, what: &str, found: impl Display) {
        self.table.push(&[&what, &found]);
    }

    fn toolchain(&mut self, workspace: &Workspace) {
        let cargo = first_line(workspace.cargo().arg("--version"));
        let rustc = std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
        let rustc = first_line(Command::new(rustc).current_dir(workspace.root()).arg("--version"));
        self.line("rustc", rustc.unwrap_or_else(|| "not found".to_owned()));
        self.line("cargo", cargo.unwrap_or_else(|| "not found".to_owned()));
        match cxx::version() {
            Ok(version) => self.line("C++ compiler", version),
            Err(error) => {
                self.line("C++ compiler", "none");
                self.problems.push(error.to_string());
            }
        }
    }

    fn libtorch(&mut self, workspace: &Workspace) {
        let pythons = Python::find_all();
        self.line("Python", describe_pythons(&pythons));
        let exported = setup::exported_libtorch(workspace);
        let named = exported.as_deref().map(Libtorch::open);
        if let Some(folder) = &exported {
            self.line("LIBTORCH", folder.display().to_string());
        }
        match (named, setup::linked(workspace)) {
            (Some(Err(error)), _) => {
                self.line("libtorch", format!("{error:#}"));
                self.problems.push(format!(
                    "LIBTORCH is exported but cannot be used: {error:#}. Correct or unset it"
                ));
            }
            (Some(Ok(libtorch)), _) | (None, Ok(libtorch)) => {
                let folder = fs::canonicalize(&libtorch.torch_dir);
                let folder = folder.unwrap_or_else(|_| libtorch.torch_dir.clone());
                let flavour = libtorch.flavour().name();
                let text = format!("{} ({flavour}) in {}", libtorch.version, folder.display());
                self.line("libtorch", text);
                self.warnings.extend(gpu::warning(&libtorch));
            }
            (None, Err(_)) => self.missing_libtorch(&pythons),
        }
    }

    /// Reports where set-up would get libtorch from, or why it would fail.
    fn missing_libtorch(&mut self, pythons: &[Python]) {
        let flavour = gpu::flavour_of_this_machine();
        let cached = libtorch_entry(flavour).and_then(|entry| Libtorch::open(&entry));
        let in_python = pythons
            .iter()
            .filter_map(|python| python.torch_dir.as_deref())
            .find_map(|folder| Libtorch::open(folder).ok())
            .filter(|torch| flavour == Flavour::Cpu || torch.flavour() == flavour);
        let source = match (cached, in_python, Python::with_pip(pythons)) {
            (Ok(cached), _, _) => format!("from the cache at {}", cached.torch_dir.display()),
            (_, Some(torch), _) => format!("from Python's torch in {}", torch.torch_dir.display()),
            (_, _, Some(python)) => format!("with {} -m pip", python.program),
            _ => {
                self.problems.push(format!(
                    "libtorch {VERSION} was not found, and there is no Python 3 with pip to \
                     install it: install python3-pip, or set LIBTORCH to a libtorch {VERSION}"
                ));
                return self.line("libtorch", "not set up");
            }
        };
        let text = format!("not set up; `cargo xtask setup` will install {VERSION} {source}");
        self.line("libtorch", text);
    }

    fn gpus(&mut self) {
        let Some(gpu_file) = gpu::detect(Path::new("/")) else {
            return self.line("NVIDIA driver", "none; training uses the CPU");
        };
        let version = gpu::driver().map(|(_, version)| version);
        self.line(
            "NVIDIA driver",
            version.unwrap_or_else(|| format!("{gpu_file}, version unknown")),
        );
        let query = ["--query-gpu=name,memory.total", "--format=csv,noheader"];
        match output_of(Command::new("nvidia-smi").args(query), "listing GPUs") {
            Ok(gpus) => gpus.lines().for_each(|gpu| self.line("GPU", gpu)),
            Err(_) => self.line("GPU", "unknown: nvidia-smi failed"),
        }
    }

    fn machine(&mut self, workspace: &Workspace) {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        self.line("cores", cores.to_string());
        match fs::read_to_string("/proc/meminfo").ok().as_deref().and_then(available_memory) {
            Some(bytes) => {
                self.line("memory", format!("{} available", gigabytes(bytes)));
                if bytes < MIN_MEMORY_BYTES {
                    self.problems.push(format!(
                        "{} of memory is available, {} is needed: close other programs",
                        gigabytes(bytes),
                        gigabytes(MIN_MEMORY_BYTES)
                    ));
                }
            }
            None => self.line("memory", "unknown: not in /proc/meminfo"),
        }
        self.disk("disk, checkout", workspace.root());
        if let Some(cache) = cache_dir().ok().as_deref().and_then(first_existing) {
            self.disk("disk, cache", cache);
        }
    }

    fn disk(&mut self, what: &'static str, path: &Path) {
        match sys::free_bytes(path) {
            Ok(bytes) => {
                self.line(what, format!("{} free at {}", gigabytes(bytes), path.display()));
                if bytes < MIN_DISK_BYTES {
                    self.problems.push(format!(
                        "{} is free at {}, {} is needed",
                        gigabytes(bytes),
                        path.display(),
                        gigabytes(MIN_DISK_BYTES)
                    ));
                }
            }
            Err(error) => self.line(what, format!("{}: {error}", path.display())),
        }
    }
}

fn describe_pythons(pythons: &[Python]) -> String {
    let Some(python) = Python::with_pip(pythons).or(pythons.first()) else {
        return "not found".to_owned();
    };
    let pip = if python.has_pip { "with pip" } else { "without pip" };
    let torch = match &python.torch_dir {
        None => "no torch".to_owned(),
        Some(dir) => match Libtorch::open(dir) {
            Ok(torch) => format!("torch {} in {}", torch.version, dir.display()),
            Err(error) => format!("{error:#}"),
        },
    };
    format!("{} {} {pip}, {torch}", python.program, python.version_text())
}

/// The value of `MemAvailable` in the text of `/proc/meminfo`, in bytes.
fn available_memory(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

fn first_existing(path: &Path) -> Option<&Path> {
    path.ancestors().find(|ancestor| ancestor.exists())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn available_memory_is_read_in_bytes() {
        let meminfo = "MemTotal:       24601868 kB\nMemAvailable:   1024 kB\n";
        assert_eq!(available_memory(meminfo), Some(1_048_576));
        assert_eq!(available_memory("MemTotal: 5 kB\n"), None);
    }
}
