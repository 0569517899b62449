//! The files that a run writes.

use std::fs;
use std::process::Command;

use crate::support::{Trial, vlm};

#[test]
fn metrics_and_summary_have_all_their_entries() {
    let trial = Trial::new();
    trial.pretrain(&["--epochs", "2"]).assert_success();
    let lines = trial.metrics();
    assert_eq!(lines.len(), 4);
    for (k, line) in lines.iter().enumerate() {
        assert_eq!(line["step"], k + 1);
        assert_eq!(line["update"], k + 1);
        assert_eq!(line["epoch"], k / 2);
        assert_eq!(line["samples"], 4 * (k + 1));
        for name in [
            "loss", "lr", "grad_norm", "samples_per_sec", "tokens_per_sec", "data_wait_ms",
            "step_ms",
        ] {
            assert!(line[name].is_number(), "{name} in {line}");
        }
        assert!(line["peak_memory_bytes"].as_u64().unwrap() > 1 << 20);
        assert!(line["tokens"].as_u64() > line["supervised_tokens"].as_u64());
    }
    let summary = trial.summary();
    assert_eq!(summary["status"], "finished");
    assert_eq!((summary["steps"].as_u64(), summary["samples"].as_u64()), (Some(4), Some(16)));
    assert_eq!(summary["final_loss"], lines[3]["loss"]);
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(trial.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["dim"], 32);
    assert_eq!(config["run"]["optim"]["epochs"], 2);
}

#[test]
fn both_weights_files_have_the_same_tensors_without_the_encoder() {
    let trial = Trial::new();
    trial.pretrain(&[]).assert_success();
    let listing = |name: &str| {
        let ended = vlm(&["inspect", "--json", trial.path(name).to_str().unwrap()]);
        ended.assert_success();
        let mut rows: Vec<String> = ended
            .stdout
            .lines()
            .map(|line| {
                let row: serde_json::Value = serde_json::from_str(line).unwrap();
                format!("{} {} {} {}", row["name"], row["shape"], row["dtype"], row["sum"])
            })
            .collect();
        rows.sort();
        rows
    };
    let pth = listing("out/pretrain_vlm_32.pth");
    assert_eq!(pth, listing("out/pretrain_vlm_32.safetensors"));
    assert!(pth.iter().any(|row| row.starts_with("\"output.weight\"")));
    assert!(pth.iter().any(|row| row.starts_with("\"vision_proj.vision_proj.0.weight\"")));
    assert!(!pth.iter().any(|row| row.contains("vision_model")));
}

#[test]
#[ignore = "needs a Python with torch (VLM_PYTHON)"]
fn python_loads_the_weights_with_weights_only() {
    let python = std::env::var("VLM_PYTHON").unwrap_or_else(|_| "python3".into());
    let trial = Trial::new();
    trial.pretrain(&[]).assert_success();
    let file = trial.path("out/pretrain_vlm_32.pth");
    let script = "import sys, json, torch\n\
        d = torch.load(sys.argv[1], weights_only=True)\n\
        for k, v in d.items(): print(json.dumps([k, list(v.shape), float(v.double().sum())]))\n\
        assert d['output.weight'].data_ptr() == d['tok_embeddings.weight'].data_ptr()\n";
    let output = Command::new(&python).args(["-c", script]).arg(&file).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let inspected = vlm(&["inspect", "--json", file.to_str().unwrap()]);
    let ours: Vec<serde_json::Value> =
        inspected.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let theirs = String::from_utf8(output.stdout).unwrap();
    assert_eq!(theirs.lines().count(), ours.len());
    for line in theirs.lines() {
        let theirs: serde_json::Value = serde_json::from_str(line).unwrap();
        let ours = ours.iter().find(|row| row["name"] == theirs[0]).expect("a tensor of that name");
        assert_eq!(ours["shape"], theirs[1]);
        let difference = ours["sum"].as_f64().unwrap() - theirs[2].as_f64().unwrap();
        assert!(difference.abs() < 1e-6, "{line} against {ours}");
    }
}

#[test]
fn a_run_can_start_from_the_weights_of_another() {
    let first = Trial::new();
    first.pretrain(&[]).assert_success();
    let weights = first.path("out/pretrain_vlm_32.pth");
    let second = Trial::new();
    // The shape is read from config.json beside the weights.
    let mut command = crate::support::program();
    command.arg("pretrain").arg("--lm").arg(&weights).arg("--epochs").arg("1");
    command.arg("--data-path").arg(second.path("rows.jsonl"));
    command.arg("--images-path").arg(second.path("images"));
    command.arg("--out-dir").arg(second.path("out"));
    command.arg("--tokenizer").arg(crate::support::demo_start(""));
    command.arg("--vision").arg(crate::support::golden("vision_tower"));
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(second.path("out/pretrain_vlm_32.pth").exists());
}
