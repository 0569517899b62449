//! The proof that a libtorch works here: a small program compiled against it with the system's
//! C++ compiler, and run. Done once for a folder and a checkout.

use std::env;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::{Instant, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

use crate::libtorch::Libtorch;
use crate::workspace::Workspace;

/// `toString` returns a `std::string`, so that a libtorch of the other C++ ABI fails to link.
const PROGRAM: &str = "\
#include <ATen/ATen.h>
#include <iostream>
int main() { auto t = at::ones({2, 3}).sum(); std::cout << t.toString() << ' ' << t.item<float>(); }
";
const EXPECTED_OUTPUT: &str = "CPUFloatType 6";

/// The compiler that the build of the bindings will use as well.
pub fn cxx_compiler() -> String {
    env::var("CXX").ok().filter(|name| !name.is_empty()).unwrap_or_else(|| "c++".to_owned())
}

/// Compiles and runs the program unless that was done before for the same libraries.
/// # Errors
/// No compiler, or the compiler's or the loader's own words.
pub fn prove(workspace: &Workspace, libtorch: &Libtorch) -> Result<()> {
    let stamp_path = workspace.target_dir().join("libtorch-proof");
    let stamp = stamp_of(libtorch)?;
    if fs::read_to_string(&stamp_path).is_ok_and(|text| text == stamp) {
        return Ok(());
    }
    let start = Instant::now();
    eprintln!("setup: compiling and running a small program against {}", libtorch.version);
    compile_and_run(libtorch)?;
    eprintln!("setup: it works ({:.0} s)", start.elapsed().as_secs_f64());

    let target = workspace.target_dir();
    fs::create_dir_all(&target).with_context(|| format!("making {}", target.display()))?;
    fs::write(&stamp_path, stamp).with_context(|| format!("writing {}", stamp_path.display()))
}

fn compile_and_run(libtorch: &Libtorch) -> Result<()> {
    let folder = tempfile::tempdir().context("making a temporary folder")?;
    let source = folder.path().join("proof.cpp");
    let binary = folder.path().join("proof");
    fs::write(&source, PROGRAM).with_context(|| format!("writing {}", source.display()))?;

    let compiler = cxx_compiler();
    let include = libtorch.torch_dir.join("include");
    let lib = libtorch.torch_dir.join("lib");
    // CXX may carry arguments, as in `ccache g++`.
    let mut words = compiler.split_whitespace();
    let compiled = Command::new(words.next().unwrap_or("c++"))
        .args(words)
        .args(["-std=c++17", "-D_GLIBCXX_USE_CXX11_ABI=1", "-o"])
        .args([&binary, &source])
        .arg("-I")
        .arg(&include)
        .arg("-L")
        .arg(&lib)
        .args(["-ltorch_cpu", "-ltorch", "-lc10", "-lgomp"])
        .arg(format!("-Wl,-rpath,{}", lib.display()))
        .output();
    let compiled = compiled.with_context(|| format!("starting the C++ compiler {compiler}"))?;
    require_success(&compiled, &format!("compiling against {}", libtorch.torch_dir.display()))?;

    let ran = Command::new(&binary).output().context("starting the compiled program")?;
    require_success(&ran, &format!("running a program built against {}", lib.display()))?;
    let said = String::from_utf8_lossy(&ran.stdout);
    if said != EXPECTED_OUTPUT {
        bail!(
            "the program built against {} said {said:?}, expected {EXPECTED_OUTPUT:?}",
            lib.display()
        );
    }
    Ok(())
}

/// An error with the end of what a failed program said.
pub fn require_success(output: &Output, doing: &str) -> Result<()> {
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    let lines: Vec<&str> = stderr.lines().collect();
    let tail = &lines[lines.len().saturating_sub(20)..];
    bail!("{doing} failed ({}):\n{}", output.status, tail.join("\n"))
}

/// Changes when the link points elsewhere or the library behind it is another file.
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
        cxx_compiler(),
    ))
}

/// What the C++ compiler calls itself.
/// # Errors
/// It does not start; the message says what to install.
pub fn cxx_version() -> Result<String> {
    let compiler = cxx_compiler();
    let mut words = compiler.split_whitespace();
    let output = Command::new(words.next().unwrap_or("c++")).args(words).arg("--version").output();
    match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout);
            Ok(text.lines().next().unwrap_or(&compiler).to_owned())
        }
        _ => bail!(
            "the C++ compiler {compiler} does not start: install one (`build-essential` on Debian \
             and Ubuntu, `gcc-c++` on Fedora), or set CXX"
        ),
    }
}
