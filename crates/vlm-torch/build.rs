fn main() {
    let lib = std::env::var("DEP_TCH_LIBTORCH_LIB").unwrap();
    println!("cargo:libtorch_lib={lib}");
    println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
}
