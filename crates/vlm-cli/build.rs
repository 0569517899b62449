//! The program loads libtorch from a folder relative to itself, as packages have it, or else from
//! the folder that vlm-torch was built against: the search path does not propagate from the crate
//! that links it.

/// Folders of libtorch relative to the folder of the program: of the torch package beside the
/// Python package that contains the program, and of a tarball.
const RELATIVE: [&str; 2] = ["$ORIGIN/../../torch/lib", "$ORIGIN/../libtorch/torch/lib"];

/// Set by `cargo xtask dist`: the program has no path of this machine.
const RELOCATABLE: &str = "VLM_RELOCATABLE";

fn main() {
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
