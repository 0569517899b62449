//! Adds the folder of libtorch that vlm-torch was built against to the library search path of this
//! crate's tests and examples: the path does not propagate from the crate that links libtorch.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(lib) = std::env::var("DEP_VLM_TORCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
