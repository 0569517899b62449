//! Sets the search path of libtorch for binaries and tests of this crate to the folder that
//! vlm-torch was built against. Cargo does not propagate it from the crate that links libtorch.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    if let Ok(lib) = std::env::var("DEP_VLM_TORCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
