//! Compares the counts of `cargo xtask plan` with runs.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::parallel;
use crate::support::{Trial, vlm, xtask};

/// The planned value and the value in a finished run of the quantity `what`.
fn compared(out_dir: &Path, what: &str) -> (Value, Value) {
    let mut plan = Command::new(xtask());
    let output = plan.args(["plan", "--json", "--from-run"]).arg(out_dir).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let found: Value = serde_json::from_slice(&output.stdout).unwrap();
    let rows = found["rows"].as_array().unwrap();
    let row = rows.iter().find(|row| row["what"] == what).unwrap();
    (row["planned"].clone(), row["found"].clone())
}

#[test]
fn planned_parameters_and_checkpoint_sizes_equal_those_of_a_run() {
    for more in [&["--epochs", "1"][..], &["--use-moe", "--unfreeze-first-layers", "1"]] {
        let trial = Trial::new();
        trial.pretrain(more).assert_success();
        for what in
            ["trained parameters", "model.safetensors, bytes", "optimizer.safetensors, bytes"]
        {
            let (planned, found) = compared(&trial.path("out"), what);
            assert!(planned.as_u64().unwrap() > 0);
            assert_eq!(planned, found, "{what} with {more:?}");
        }
    }
}

#[test]
fn planned_sizes_of_hugging_face_models_equal_those_of_a_run() {
    for (family, more) in [
        ("llama", &[][..]),
        ("minimind3", &["--train-lm"]),
        ("minimind3", &["--use-moe", "--unfreeze-last-layers", "2"]),
    ] {
        let trial = Trial::new();
        let lm = trial.path("lm");
        let mut init = vec!["init", "--out-dir", lm.to_str().unwrap(), "--vision", "none"];
        init.extend(["--family", family, "--dim", "32", "--n-layers", "3", "--n-heads", "4"]);
        init.extend(["--n-kv-heads", "2", "--vocab-size", "689"]);
        init.extend(more.iter().filter(|flag| **flag == "--use-moe"));
        vlm(&init).assert_success();
        let lm = ["--lm", lm.to_str().unwrap(), "--n-layers", "3", "--n-kv-heads", "2"];
        trial.pretrain(&[&lm[..], more].concat()).assert_success();
        for what in
            ["trained parameters", "model.safetensors, bytes", "optimizer.safetensors, bytes"]
        {
            let (planned, found) = compared(&trial.path("out"), what);
            assert!(planned.as_u64().unwrap() > 0);
            assert_eq!(planned, found, "{what} with {family} {more:?}");
        }
    }
}

#[test]
fn a_finished_run_can_be_planned_for_another_gpu() {
    let trial = Trial::new();
    trial.pretrain(&[]).assert_success();
    let plan = |more: &[&str]| {
        let mut plan = Command::new(xtask());
        let plan = plan.args(["plan", "--json", "--from-run"]).arg(trial.path("out")).args(more);
        let output = plan.output().unwrap();
        let found = serde_json::from_slice::<Value>(&output.stdout).unwrap_or_default();
        (output.status.code(), found, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (gpu, source) in [("b200", "NVIDIA DGX B200 data sheet"), ("3090", "Ampere GA102")] {
        let (_, found, stderr) = plan(&["--gpu", gpu]);
        let rests_on = found["plan"]["rests_on"].as_str().unwrap_or(&stderr);
        assert!(rests_on.contains(source), "{rests_on}");
        assert!(found["plan"]["step_ms"].as_f64().unwrap() > 0.0);
    }
    assert!(plan(&[]).1["plan"].is_null());
    let (code, _, stderr) = plan(&["--dim", "768"]);
    assert_eq!(code, Some(2));
    assert!(stderr.contains("--dim together with --from-run"), "{stderr}");
}

#[test]
fn evaluations_during_training_do_not_change_the_count_of_operations() {
    let trial = Trial::new();
    let flops = |more: &[&str]| {
        let out = trial.path(&format!("out{}", more.len()));
        trial.pretrain(&[&["--out-dir", out.to_str().unwrap()], more].concat()).assert_success();
        let mut plan = Command::new(xtask());
        let output = plan.args(["plan", "--json", "--from-run"]).arg(&out).output().unwrap();
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        found["reached_gflops"].as_f64().unwrap() * found["step_ms"].as_f64().unwrap()
    };
    let rows = trial.path("rows.jsonl");
    let (without, with) = (flops(&[]), flops(&["--eval-data", rows.to_str().unwrap()]));
    assert!(without > 0.0 && (with / without - 1.0).abs() < 1e-9, "{without} and {with}");
}

#[test]
fn planned_gradient_bytes_equal_those_of_two_processes() {
    for more in [&[][..], &["--use-moe", "--train-lm"], &["--dtype", "bfloat16"]] {
        let trial = parallel::trial();
        parallel::train(&trial, 2, "out", more);
        let (planned, found) = compared(&trial.path("out"), "gradient bytes per update");
        assert_eq!(found, trial.summary()["gradient_bytes_per_update"]);
        assert!(found.as_u64().unwrap() > 0);
        assert_eq!(planned, found, "{more:?}");
    }
}

#[test]
fn plan_from_a_folder_without_a_run_is_a_usage_error() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = Command::new(xtask());
    let output = plan.args(["plan", "--from-run"]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("out-dir of a finished run"), "{stderr}");
}
