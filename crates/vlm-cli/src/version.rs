//! `vlm --version`: the program, the commit that it was built from, libtorch, and the devices.

use vlm_display::count;

/// The commit that the program was built from, set by the build script where Git knows it.
const COMMIT: Option<&str> = option_env!("VLM_COMMIT");

/// Prints the version and ends the process.
pub fn print() -> ! {
    let cuda = match vlm_torch::load_cuda() {
        Err(error) => format!("CUDA cannot be used: {error}"),
        Ok(_) if !tch::Cuda::is_available() => "CPU".to_owned(),
        Ok(_) => format!("CPU, {}", count(tch::Cuda::device_count() as u64, "CUDA device")),
    };
    println!("{}", text(COMMIT, &cuda));
    std::process::exit(0)
}

fn text(commit: Option<&str>, devices: &str) -> String {
    let commit = commit.map_or(String::new(), |commit| format!(" (commit {commit})"));
    format!(
        "vlm {}{commit}\nlibtorch {}\ndevices: {devices}",
        env!("CARGO_PKG_VERSION"),
        vlm_torch::LIBTORCH_VERSION
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_names_program_commit_libtorch_and_devices() {
        let expected = format!(
            "vlm {} (commit abc)\nlibtorch {}\ndevices: CPU",
            env!("CARGO_PKG_VERSION"),
            vlm_torch::LIBTORCH_VERSION
        );
        assert_eq!(text(Some("abc"), "CPU"), expected);
        assert!(!text(None, "CPU").contains("commit"));
    }
}
