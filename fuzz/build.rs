//! Binaries and tests of this crate load libtorch from the folder that vlm-torch was built against:
//! the search path does not propagate from the crate that links it.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(lib) = std::env::var("DEP_VLM_TORCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
