//! Errors of users. Each test checks the message, the exit code (2 for a usage error, 1 for a
//! failure during the run), and that nothing is lost or overwritten.

use std::fs;
use std::path::Path;

use crate::support::{Trial, demo_start, json_lines, row, vlm};

#[test]
fn packing_with_padding_is_refused() {
    let trial = Trial::new();
    let ended = trial.pretrain(&["--pack", "--padding", "max"]);
    assert_eq!(ended.code, 2);
    assert!(ended.stderr.contains("--pack") && ended.stderr.contains("--padding max"));
    assert!(!trial.path("out").exists());
}

#[test]
fn a_missing_data_file_is_named() {
    let trial = Trial::new();
    let ended = trial.pretrain(&["--data-path", "/nowhere/rows.jsonl"]);
    ended.assert_error(2, &["/nowhere/rows.jsonl"]);
    assert!(!trial.path("out").exists(), "a run that cannot start must not create its out-dir");
}

#[test]
fn an_empty_data_file_is_named() {
    let trial = Trial::new();
    fs::write(trial.path("rows.jsonl"), "\n\n").unwrap();
    trial.pretrain(&[]).assert_error(2, &["rows.jsonl", "no rows"]);
    assert!(!trial.path("out").exists());
}

#[test]
fn a_tokenizer_without_a_chat_template_is_named() {
    let trial = Trial::new();
    let folder = trial.path("tokenizer");
    fs::create_dir(&folder).unwrap();
    fs::copy(demo_start("tokenizer.json"), folder.join("tokenizer.json")).unwrap();
    fs::write(folder.join("tokenizer_config.json"), "{\"eos_token\": \"</s>\"}").unwrap();
    let ended = trial.pretrain(&["--tokenizer", folder.to_str().unwrap()]);
    ended.assert_error(2, &["tokenizer_config.json", "chat_template"]);
}

#[test]
fn weights_of_another_shape_are_refused_with_both_shapes() {
    let trial = Trial::new();
    trial.pretrain(&[]).assert_success();
    let weights = trial.path("out/pretrain_vlm_32.pth");
    let other = Trial::new();
    let ended = other.pretrain(&["--lm", weights.to_str().unwrap(), "--dim", "64"]);
    ended.assert_error(2, &["pretrain_vlm_32.pth", "dim 32", "64", "--dim 32"]);
    assert!(!other.path("out").exists());
}

#[test]
fn a_file_that_is_not_a_weights_file_is_named() {
    let trial = Trial::new();
    fs::write(trial.path("lm.pth"), "not weights").unwrap();
    let ended = trial.pretrain(&["--lm", trial.path("lm.pth").to_str().unwrap()]);
    ended.assert_error(2, &["lm.pth"]);
}

#[test]
fn an_invalid_config_json_beside_the_weights_is_named() {
    let trial = Trial::new();
    let lm = trial.path("lm");
    fs::create_dir(&lm).unwrap();
    fs::write(lm.join("config.json"), "{\"hidden_size\": ").unwrap();
    fs::write(lm.join("model.safetensors"), "").unwrap();
    let ended = trial.pretrain(&["--lm", lm.to_str().unwrap()]);
    ended.assert_error(2, &["lm/config.json", "line 1"]);
    assert!(!trial.path("out").exists());
}

#[test]
fn an_out_dir_that_cannot_be_written_is_named() {
    let trial = Trial::new();
    fs::write(trial.path("file"), "").unwrap();
    let below = trial.path("file/out");
    trial
        .pretrain(&["--out-dir", below.to_str().unwrap()])
        .assert_error(2, &["file/out", "cannot be written"]);
}

#[test]
fn a_run_is_never_overwritten() {
    let trial = Trial::new();
    trial.pretrain(&[]).assert_success();
    let before = fs::read(trial.path("out/pretrain_vlm_32.pth")).unwrap();
    let log = fs::read(trial.path("out/metrics.jsonl")).unwrap();
    trial.pretrain(&["--seed", "2"]).assert_error(2, &["already holds a run", "--resume"]);
    assert!(fs::read(trial.path("out/pretrain_vlm_32.pth")).unwrap() == before);
    assert_eq!(fs::read(trial.path("out/metrics.jsonl")).unwrap(), log);
}

#[test]
fn invalid_flags_are_named() {
    let trial = Trial::new();
    trial.pretrain(&["--batch-size", "0"]).assert_error(2, &["--batch-size"]);
    trial.pretrain(&["--learning-rate", "-1"]).assert_error(2, &["--learning-rate"]);
    trial.pretrain(&["--device", "tpu"]).assert_error(2, &["--device", "tpu"]);
    let features = ["--features", "features", "--eval-data", "rows.jsonl"];
    trial.pretrain(&features).assert_error(2, &["--eval-data", "--features", "not loaded"]);
    trial.pretrain(&["--no-such-flag"]).assert_error(2, &["--no-such-flag"]);
    fs::write(trial.path("c.toml"), "batch-sizes = 3\n").unwrap();
    let config = trial.path("c.toml");
    trial
        .pretrain(&["--config", config.to_str().unwrap()])
        .assert_error(2, &["c.toml", "batch-sizes"]);
    assert!(!trial.path("out").exists());
}

/// Eight good rows and some broken ones; `rejected.jsonl` must list each of these.
#[test]
fn broken_rows_are_rejected_and_the_run_continues() {
    let trial = Trial::new();
    let mut rows: Vec<String> = (0..8).map(|k| row(&format!("{k}.png"), "A circle.")).collect();
    let images = trial.path("images");
    let write_image = |name: &str, bytes: &[u8]| fs::write(images.join(name), bytes).unwrap();
    let whole = fs::read(images.join("3.png")).unwrap();
    write_image("truncated.png", &whole[..whole.len() / 2]);
    write_image("html.jpg", b"<html><body>not found</body></html>");
    write_image("empty.png", b"");
    write_image("huge.png", &huge_png());
    fs::write(trial.path("secret.png"), &whole).unwrap();
    let broken = [
        ("{\"conversations\": [", "rows.jsonl:9"),
        (&row("missing.png", "A circle."), "missing.png"),
        (&row("../secret.png", "A circle."), "../secret.png"),
        (&row("/etc/hostname", "A circle."), "/etc/hostname"),
        (&row("truncated.png", "A circle."), "truncated.png"),
        (&row("html.jpg", "A circle."), "html.jpg"),
        (&row("empty.png", "A circle."), "empty.png"),
        (&row("huge.png", "A circle."), "20000"),
    ];
    rows.extend(broken.iter().map(|(row, _)| row.to_string()));
    trial.write_rows(&rows);
    let ended = trial.pretrain(&["--max-rejected-fraction", "1", "--epochs", "2"]);
    ended.assert_success();
    let rejected = json_lines(&trial.path("out/rejected.jsonl"));
    assert_eq!(rejected.len(), broken.len(), "each row is listed once in two epochs");
    for (_, name) in &broken {
        let found = rejected.iter().any(|line| line.to_string().contains(name));
        assert!(found, "{name} is not in {rejected:?}");
    }
    assert_eq!(trial.summary()["rejected_rows"], broken.len());
    assert_eq!(trial.summary()["samples"], 16);
}

#[test]
fn an_image_with_a_wrong_extension_is_read_by_its_content() {
    let trial = Trial::new();
    let images = trial.path("images");
    fs::copy(images.join("3.png"), images.join("really-png.jpg")).unwrap();
    trial.write_rows(&[row("really-png.jpg", "A circle.")]);
    trial.pretrain(&[]).assert_success();
    assert_eq!(trial.summary()["rejected_rows"], 0);
}

#[test]
fn an_image_of_one_pixel_is_used_or_rejected_by_name() {
    let trial = Trial::new();
    image::RgbImage::new(1, 1).save(trial.path("images/dot.png")).unwrap();
    trial.write_rows(&[row("0.png", "A circle."), row("dot.png", "A dot.")]);
    trial.pretrain(&["--max-rejected-fraction", "1"]).assert_success();
    let rejected = fs::read_to_string(trial.path("out/rejected.jsonl")).unwrap_or_default();
    let used = trial.summary()["samples"] == 2;
    assert!(used || rejected.contains("dot.png"), "{rejected}");
}

#[test]
fn too_many_rejected_rows_stop_the_run() {
    let trial = Trial::new();
    let mut rows: Vec<String> = (0..8).map(|k| row(&format!("{k}.png"), "A circle.")).collect();
    rows.extend((0..12).map(|k| row(&format!("missing-{k}.png"), "A circle.")));
    trial.write_rows(&rows);
    let ended = trial.pretrain(&["--epochs", "50"]);
    ended.assert_error(1, &["missing-", "rows"]);
    assert!(!trial.path("out/summary.json").exists());
}

#[test]
fn a_damaged_checkpoint_is_skipped() {
    let trial = Trial::new();
    let flags = ["--epochs", "3", "--save-interval", "2"];
    trial.pretrain(&[&flags[..], &["--max-steps", "4"]].concat()).assert_success();
    let damaged = trial.path("out/checkpoints/step-00000004/model.safetensors");
    let mut bytes = fs::read(&damaged).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&damaged, bytes).unwrap();
    let ended = trial.pretrain(&[&flags[..], &["--resume", "auto"]].concat());
    ended.assert_success();
    assert!(ended.stderr.contains("model.safetensors"), "{}", ended.stderr);
    assert_eq!(trial.summary()["steps"], 6);
}

#[test]
fn a_missing_file_to_inspect_is_named() {
    vlm(&["inspect", "/nowhere/weights.pth"]).assert_error(2, &["/nowhere/weights.pth"]);
    assert!(!Path::new("/nowhere").exists());
}

/// A PNG whose header declares 20000 × 20000 pixels, with two bytes of data.
fn huge_png() -> Vec<u8> {
    let mut header = Vec::new();
    header.extend(20_000u32.to_be_bytes());
    header.extend(20_000u32.to_be_bytes());
    header.extend([8, 2, 0, 0, 0]);
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    for (kind, data) in [(b"IHDR", header.as_slice()), (b"IDAT", &[0x78, 0x9c]), (b"IEND", &[])] {
        let chunk = [kind.as_slice(), data].concat();
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(&chunk);
        png.extend(crc32(&chunk).to_be_bytes());
    }
    png
}

/// CRC-32 as in PNG (ISO 3309).
fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            if crc & 1 == 1 { (crc >> 1) ^ 0xEDB8_8320 } else { crc >> 1 }
        })
    })
}
