//! The program loads libtorch from a folder relative to itself, as packages have it, or else from
//! the folder that vlm-torch was built against: the search path does not propagate from the crate
//! that links it. The commit of the checkout is part of `vlm --version`.

/// Folders of libtorch relative to the folder of the program: of the torch package beside the
/// Python package that contains the program, and of a tarball.
const RELATIVE: [&str; 2] = ["$ORIGIN/../../torch/lib", "$ORIGIN/../libtorch/torch/lib"];

/// Set by `cargo xtask dist`: the program has no path of this machine.
const RELOCATABLE: &str = "VLM_RELOCATABLE";

fn main() {
    record_commit();
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed={RELOCATABLE}");
    if std::env::var_os(RELOCATABLE).is_some() {
        for folder in RELATIVE {
            println!("cargo:rustc-link-arg=-Wl,-rpath,{folder}");
        }
    } else if let Ok(lib) = std::env::var("DEP_VLM_TORCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}

/// Sets `VLM_COMMIT` for the program, except where there is no Git or no checkout.
fn record_commit() {
    let git = |args: &[&str]| {
        let output = std::process::Command::new("git").args(args).output().ok()?;
        let text = String::from_utf8(output.stdout).ok().filter(|_| output.status.success())?;
        Some(text.trim().to_owned())
    };
    // Git appends to this file whenever the checkout is at another commit.
    let Some(log) = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"]) else {
        return;
    };
    if std::path::Path::new(&log).exists() {
        println!("cargo:rerun-if-changed={log}");
    }
    if let Some(commit) = git(&["rev-parse", "--short=10", "HEAD"]) {
        println!("cargo:rustc-env=VLM_COMMIT={commit}");
    }
}
