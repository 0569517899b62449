//! The kernels for each kind of CPU are tested on every CPU that can run them.

use std::env;
use std::process::Command;

/// The variable of libtorch that limits the instructions of its kernels, and of ours.
const CAPABILITY: &str = "ATEN_CPU_CAPABILITY";

/// Runs the tests of the kernels in another process, with those of the CPUs with AVX2 or with none.
fn run_tests_with(capability: &str) {
    let output = Command::new(env::current_exe().unwrap())
        .args(["pointwise::", "row_attention::", "the_limit_of_libtorch"])
        .env(CAPABILITY, capability)
        .output()
        .unwrap();
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{capability}: {stdout}");
    assert!(stdout.contains("row_attention::attention_within_rows_equals_its_definition ... ok"));
}

#[test]
fn kernels_for_avx2_equal_the_definitions() {
    run_tests_with("avx2");
}

#[test]
fn without_kernels_the_operations_are_libtorchs() {
    run_tests_with("default");
}

#[test]
fn the_limit_of_libtorch_is_that_of_the_kernels() {
    if env::var(CAPABILITY).is_ok_and(|capability| capability == "default") {
        assert!(!vlm_torch::has_row_attention(64));
    }
}
