//! Tests that a libtorch works on this machine: compiles a small program against it with the
//! system's C++ compiler and runs it. A checkout does this once for a libtorch.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Instant, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::cxx;
use crate::libtorch::Libtorch;
use crate::program::output_of;
use crate::workspace::Workspace;

/// The program. It calls `toString`, which returns a `std::string`, so that linking fails if
/// libtorch was built with the other C++ ABI.
const PROGRAM: &str = "\
#include <ATen/ATen.h>
#include <iostream>
int main() { auto t = at::ones({2, 3}).sum(); std::cout << t.toString() << ' ' << t.item<float>(); }
";
const EXPECTED_OUTPUT: &str = "CPUFloatType 6";

/// Compiles and runs the program, unless it has already succeeded with the same library.
///
/// # Errors
/// No compiler; a failure to compile or to run the program, with its messages.
pub fn run(workspace: &Workspace, libtorch: &Libtorch) -> Result<()> {
    let stamp_path = workspace.target_dir().join("libtorch-proof");
    let stamp = stamp_of(libtorch)?;
    if fs::read_to_string(&stamp_path).is_ok_and(|text| text == stamp) {
        return Ok(());
    }
    let start = Instant::now();
    eprintln!("setup: compiling and running a small program against {}", libtorch.version);
    compile_and_run(libtorch)?;
    eprintln!("setup: libtorch works ({:.0} s)", start.elapsed().as_secs_f64());

    let target = workspace.target_dir();
    fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
    fs::write(&stamp_path, stamp).with_context(|| format!("writing {}", stamp_path.display()))
}

fn compile_and_run(libtorch: &Libtorch) -> Result<()> {
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let source = folder.path().join("smoke_test.cpp");
    let binary = folder.path().join("smoke_test");
    fs::write(&source, PROGRAM).with_context(|| format!("writing {}", source.display()))?;

    let include = libtorch.torch_dir.join("include");
    let lib = libtorch.torch_dir.join("lib");
    let mut compiler = cxx::compiler();
    compiler
        .args(["-std=c++17", "-D_GLIBCXX_USE_CXX11_ABI=1", "-o"])
        .args([&binary, &source])
        .arg("-I")
        .arg(&include)
        .arg("-L")
        .arg(&lib)
        .args(["-ltorch_cpu", "-ltorch", "-lc10", "-lgomp"])
        .arg(format!("-Wl,-rpath,{}", lib.display()));
    output_of(&mut compiler, &format!("compiling against {}", libtorch.torch_dir.display()))?;

    let running = format!("running a program built against {}", lib.display());
    let printed = output_of(&mut Command::new(&binary), &running)?;
    if printed != EXPECTED_OUTPUT {
        bail!(
            "the program built against {} printed {printed:?}, expected {EXPECTED_OUTPUT:?}",
            lib.display()
        );
    }
    Ok(())
}

/// Text that identifies the library and the compiler; it differs if either has changed.
fn stamp_of(libtorch: &Libtorch) -> Result<String> {
    let resolve = |path: PathBuf| {
        fs::canonicalize(&path).with_context(|| format!("resolving {}", path.display()))
    };
    let torch_dir = resolve(libtorch.torch_dir.clone())?;
    let resolved = resolve(torch_dir.join("lib/libtorch_cpu.so"))?;
    let meta = fs::metadata(&resolved);
    let meta = meta.with_context(|| format!("reading {}", resolved.display()))?;
    let modified = meta.modified().ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
    Ok(format!(
        "{}\n{}\n{}\n{}\n{}\n",
        torch_dir.display(),
        resolved.display(),
        meta.len(),
        modified.map_or(0, |time| time.as_secs()),
        cxx::name(),
    ))
}
