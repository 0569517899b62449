//! Compiles the C++ shim against the libtorch that torch-sys found, and passes its folder on to the
//! build scripts of dependent crates.

use std::path::PathBuf;

/// The shim: `all.cpp` includes the other files, so that libtorch's headers are parsed once.
const SOURCE: &str = "cpp/all.cpp";

fn main() {
    let lib = PathBuf::from(std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap_or_else(|_| {
        panic!("torch-sys did not find libtorch: run `cargo xtask setup`, or set LIBTORCH")
    }));
    let include = lib.with_file_name("include");
    if !include.join("ATen/ATen.h").is_file() {
        panic!(
            "{} has no ATen/ATen.h, so this libtorch has no headers: run `cargo xtask setup`, \
             or set LIBTORCH to a complete libtorch 2.11.0",
            include.display()
        );
    }
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=cpp");
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    cc::Build::new()
        .cpp(true)
        .std("c++17")
        .warnings(false)
        .include(&include)
        .include(include.join("torch/csrc/api/include"))
        // Declarations for headers that the wheel lacks; see cpp/gloo/README.md.
        .include("cpp/gloo")
        .define("USE_DISTRIBUTED", None)
        .define("USE_C10D_GLOO", None)
        .define("_GLIBCXX_USE_CXX11_ABI", "1")
        .file(SOURCE)
        .compile("vlm_torch_shim");
    println!("cargo:libtorch_lib={}", lib.display());
    println!("cargo:rustc-env=VLM_LIBTORCH_LIB={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}
