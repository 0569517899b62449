//! Build script of every crate whose binaries or tests load libtorch: the search path does not
//! propagate from the crate that links it.

fn main() {
    // Relative to the package that names this file as its build script.
    println!("cargo:rerun-if-changed=../vlm-torch/rpath.rs");
    if let Ok(lib) = std::env::var("DEP_VLM_TORCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
