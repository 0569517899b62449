//! What a run says about its speed: utilisation, profile, and `cargo xtask bench train`.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Ended, Trial, binary, demo_start, xtask};

fn json(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn utilisation_is_the_needed_operations_over_the_matrix_rate() {
    let trial = Trial::new();
    trial.pretrain(&["--pack"]).assert_success();
    let rate = trial.summary()["matrix_flops_per_sec"].as_f64().unwrap();
    assert_eq!(trial.summary()["matrix_flops_source"], "measured");
    for line in trial.metrics() {
        let (flops, mfu) = (line["flops_per_sec"].as_f64().unwrap(), line["mfu"].as_f64().unwrap());
        assert!((mfu / (flops / rate) - 1.0).abs() < 1e-9, "{line}");
        assert!(mfu > 0.0 && mfu < 1.0, "{line}");
    }
    // With cached features the steps need fewer operations, and the loss is the same.
    let features = trial.path("features");
    let mut cache = Command::new(binary());
    cache.args(["cache-features", "--device", "cpu", "--data-path"]);
    cache.arg(trial.path("rows.jsonl")).arg("--images-path").arg(trial.path("images"));
    cache.arg("--vision").arg(crate::support::golden("vision_tower"));
    let cached = cache.arg("--output").arg(&features).output().unwrap();
    Ended::of(&cached).assert_success();
    let flops_per_step = |trial: &Trial| {
        let line = &trial.metrics()[1];
        line["flops_per_sec"].as_f64().unwrap() * line["step_ms"].as_f64().unwrap()
    };
    let with_encoder = flops_per_step(&trial);
    let out = trial.path("out");
    fs::remove_dir_all(&out).unwrap();
    trial.pretrain(&["--pack", "--features", features.to_str().unwrap()]).assert_success();
    assert!(flops_per_step(&trial) < with_encoder);
}

#[test]
fn a_profile_has_a_trace_and_a_table_of_all_parts_of_a_step() {
    let trial = Trial::new();
    trial.pretrain(&["--profile", "2", "--epochs", "3"]).assert_success();
    let trace = json(&trial.path("out/trace.json"));
    let events = trace["traceEvents"].as_array().unwrap();
    let table = fs::read_to_string(trial.path("out/profile.txt")).unwrap();
    for part in [
        "waiting for data", "step synchronisation", "copy to the device", "vision encoder",
        "projector", "language model", "logits and loss", "backward pass", "update",
        "collecting the log",
    ] {
        // Six steps; the first three are left out.
        let spans = events.iter().filter(|event| event["name"] == part && event["ph"] == "X");
        assert_eq!(spans.count() % 2, 0, "{part}");
        assert!(events.iter().any(|event| event["name"] == part), "{part} is not in the trace");
        assert!(table.contains(part), "{part} is not in: {table}");
    }
    assert!(table.starts_with("2 steps") && table.contains("whole step"), "{table}");
    let products = events.iter().filter(|event| event["name"] == "aten::addmm");
    assert!(products.count() > 10);
    // A run without the flag writes neither, and the weights are the same.
    let weights = || fs::read(trial.path("out/pretrain_vlm_32.safetensors")).unwrap();
    let profiled = weights();
    fs::remove_dir_all(trial.path("out")).unwrap();
    trial.pretrain(&["--epochs", "3"]).assert_success();
    assert!(!trial.path("out/trace.json").exists() && !trial.path("out/profile.txt").exists());
    assert!(profiled == weights());
}

#[test]
fn bench_train_measures_ours_alone_and_refuses_a_folder_that_is_no_reference() {
    let folder = tempfile::tempdir().unwrap();
    let bench = |more: &[&str]| {
        let mut command = Command::new(xtask());
        command.args(["bench", "train", "--batch-size", "1", "--steps", "1", "--rounds", "1"]);
        command.arg("--tokenizer").arg(demo_start("")).args(more);
        Ended::of(&command.output().unwrap())
    };
    let empty = folder.path().to_str().unwrap();
    bench(&["--reference", empty]).assert_error(2, &["--reference", "train_pretrain_vlm.py"]);
    bench(&["--images", empty]).assert_error(2, &["no .jpg files"]);
    bench(&["--rounds", "0"]).assert_error(2, &["--rounds", "at least 1"]);

    // One small image, whose features take little time.
    let images = folder.path().join("images");
    fs::create_dir(&images).unwrap();
    image::RgbImage::from_pixel(64, 48, image::Rgb([9, 99, 200]))
        .save(images.join("a.jpg"))
        .unwrap();
    let (results, picture) = (folder.path().join("results.json"), folder.path().join("bench.svg"));
    let [images, json_file, svg_file] = [&images, &results, &picture].map(|p| p.to_str().unwrap());
    let ended = bench(&["--images", images, "--json", json_file, "--svg", svg_file]);
    ended.assert_success();
    for part in ["ours in the loop", "ours cached", "rows/s", "matrix rate"] {
        assert!(ended.stdout.contains(part), "{part:?} is not in: {}", ended.stdout);
    }
    let results = json(&results);
    for side in ["ours", "ours_cached"] {
        let side = &results[side];
        assert!(side["rows_per_sec"].as_f64().unwrap() > 0.0, "{side}");
        let share = side["share_of_matrix_rate"].as_f64().unwrap();
        assert!(share > 0.0 && share < 1.5, "{side}");
    }
    let flops = |side: &str| results[side]["flops_per_step"].as_f64().unwrap();
    assert!(flops("ours") > flops("ours_cached"));
    assert_eq!(results["reference"], Value::Null);
    assert!(fs::read_to_string(&picture).unwrap().starts_with("<svg"));
}
