//! What `cargo xtask plan` counts, against a run.

use std::process::Command;

use crate::support::{Trial, xtask};

#[test]
fn plan_counts_parameters_and_checkpoint_bytes_as_a_run_writes_them() {
    for more in [&["--epochs", "1"][..], &["--use-moe", "--unfreeze-first-layers", "1"]] {
        let trial = Trial::new();
        trial.pretrain(more).assert_success();
        let out_dir = trial.path("out");
        let mut plan = Command::new(xtask());
        let output = plan.args(["plan", "--json", "--from-run"]).arg(&out_dir).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        let rows = found["rows"].as_array().unwrap();
        for what in
            ["trained parameters", "model.safetensors, bytes", "optimizer.safetensors, bytes"]
        {
            let row = rows.iter().find(|row| row["what"] == what).unwrap();
            assert!(row["planned"].as_u64().unwrap() > 0);
            assert_eq!(row["planned"], row["found"], "{what} with {more:?}");
        }
    }
}

#[test]
fn plan_from_a_folder_without_a_run_says_what_it_expected() {
    let folder = tempfile::tempdir().unwrap();
    let mut plan = Command::new(xtask());
    let output = plan.args(["plan", "--from-run"]).arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(stderr.contains("out-dir of a finished run"), "{stderr}");
}
