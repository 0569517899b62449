//! Compiles the C++ shim against the libtorch that torch-sys found, and passes its folder on to the
//! build scripts of dependent crates.

use std::path::PathBuf;

/// The shim: `all.cpp` includes the other files, so that libtorch's headers are parsed once.
const SOURCE: &str = "cpp/all.cpp";
/// Kernels for kinds of CPUs, without libtorch's headers, and the instructions of each.
const KERNELS: [(&str, &[&str]); 2] = [
    ("cpp/kernels/avx512.cpp", &["-mavx512f", "-mavx512bw", "-mavx512vl", "-mfma"]),
    ("cpp/kernels/avx2.cpp", &["-mavx2", "-mfma"]),
];

/// Environment variable with the sanitizer that the shim is compiled with: `address` or `thread`.
/// `docs/contributing.md` has the command.
const SANITIZER: &str = "VLM_SANITIZER";

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
    println!("cargo:rerun-if-env-changed={SANITIZER}");
    let mut shim = cc::Build::new();
    if let Ok(sanitizer) = std::env::var(SANITIZER) {
        instrument(&mut shim, &sanitizer);
    }
    shim.cpp(true)
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
    let is_x86 = std::env::var("CARGO_CFG_TARGET_ARCH").is_ok_and(|arch| arch == "x86_64");
    for (index, (source, flags)) in KERNELS.iter().enumerate() {
        let mut kernels = cc::Build::new();
        if is_x86 {
            kernels.flags(*flags);
        }
        kernels
            .cpp(true)
            .std("c++17")
            // GCC 12 warns of its own headers.
            .warnings(false)
            .opt_level(3)
            .file(source)
            .compile(&format!("vlm_torch_kernels_{index}"));
    }
    println!("cargo:libtorch_lib={}", lib.display());
    println!("cargo:rustc-env=VLM_LIBTORCH_LIB={}", lib.display());
    println!("cargo:rustc-link-arg=-Wl,-rpath,{}", lib.display());
}

/// Compiles the shim with a sanitizer of GCC and links its runtime, which must be preloaded when a
/// program is started.
fn instrument(shim: &mut cc::Build, sanitizer: &str) {
    let runtime = match sanitizer {
        "address" => "asan",
        "thread" => "tsan",
        other => panic!("{SANITIZER} is {other:?}; expected \"address\" or \"thread\""),
    };
    shim.flag(format!("-fsanitize={sanitizer}"));
    shim.flags(["-fno-omit-frame-pointer", "-g1"]);
    let library = format!("lib{runtime}.so");
    let printed = shim
        .clone()
        .cpp(true)
        .get_compiler()
        .to_command()
        .arg(format!("-print-file-name={library}"))
        .output();
    let printed = printed.unwrap_or_else(|e| panic!("cannot start the C++ compiler: {e}"));
    let path = PathBuf::from(String::from_utf8_lossy(&printed.stdout).trim());
    // GCC prints the bare name of a library that it does not have.
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else {
        panic!("the C++ compiler has no {library}; install it, or use GCC");
    };
    println!("cargo:rustc-link-search=native={}", folder.display());
    println!("cargo:rustc-link-lib=dylib={runtime}");
}
