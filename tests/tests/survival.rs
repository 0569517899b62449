//! Failures: full disks, closed pipes, damaged checkpoints, two runs in one folder, a removed
//! folder.

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::{
    Ended, Trial, binary, demo_start, golden, row, signal, vlm, wait_for_lines, xtask,
};

const LONG: [&str; 4] = ["--epochs", "400", "--save-interval", "5"];

fn checkpoints(trial: &Trial) -> Vec<String> {
    let entries = fs::read_dir(trial.path("out/checkpoints")).unwrap();
    let mut names: Vec<String> =
        entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_damaged_newest_checkpoint_is_renamed_and_does_not_change_the_result() {
    let whole = Trial::new();
    whole.pretrain(&["--epochs", "4"]).assert_success();
    let trial = Trial::new();
    let flags = ["--epochs", "4", "--save-interval", "2"];
    trial.pretrain(&[&flags[..], &["--max-steps", "6"]].concat()).assert_success();
    fs::write(trial.path("out/checkpoints/step-00000006/state.json"), "{").unwrap();
    let ended = trial.pretrain(&[&flags[..], &["--resume", "auto"]].concat());
    ended.assert_success();
    assert!(ended.stderr.contains("step-00000006.damaged"), "{}", ended.stderr);
    assert_eq!(checkpoints(&trial), ["step-00000006", "step-00000006.damaged", "step-00000008"]);
    let weights = |trial: &Trial| fs::read(trial.path("out/pretrain_vlm_32.safetensors")).unwrap();
    assert!(weights(&whole) == weights(&trial), "the weights differ");
}

#[test]
fn resuming_without_a_usable_checkpoint_is_refused_and_changes_nothing() {
    let trial = Trial::new();
    let flags = ["--epochs", "4", "--save-interval", "2"];
    trial.pretrain(&flags).assert_success();
    let resume = [&flags[..], &["--resume", "auto"]].concat();
    let metrics = || fs::read(trial.path("out/metrics.jsonl")).unwrap();
    let before = metrics();
    for name in checkpoints(&trial) {
        fs::write(trial.path("out/checkpoints").join(name).join("state.json"), "").unwrap();
    }
    let refused = trial.pretrain(&resume);
    refused.assert_error(2, &["--resume auto", "step-00000008", "another --out-dir"]);
    fs::remove_dir_all(trial.path("out/checkpoints")).unwrap();
    trial.pretrain(&resume).assert_error(2, &["metrics.jsonl has lines up to step 8"]);
    assert!(metrics() == before);
    // Without any checkpoint nothing can be lost.
    fs::remove_dir_all(trial.path("out")).unwrap();
    fs::create_dir(trial.path("out")).unwrap();
    fs::write(trial.path("out/metrics.jsonl"), "{\"step\":1}\n").unwrap();
    trial.pretrain(&resume).assert_success();
}

#[test]
fn a_second_run_in_the_same_folder_is_refused_and_a_killed_run_can_be_resumed() {
    let trial = Trial::new();
    let mut child =
        trial.command(&LONG).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
    wait_for_lines(&trial, "out", 6);
    let pid = format!("process {} on ", child.id());
    for more in [&["--resume", "auto"][..], &[]] {
        let second = trial.pretrain(&[&LONG[..], more].concat());
        assert_eq!(second.code, 2, "{}", second.stderr);
        if !more.is_empty() {
            second.assert_error(2, &["another run is writing", &pid]);
        }
    }
    signal(&child, "KILL");
    child.wait().unwrap();
    let more = ["--resume", "auto", "--max-steps", "12"];
    trial.pretrain(&[&LONG[..], &more].concat()).assert_success();
}

#[test]
fn partial_files_of_a_killed_run_are_removed_by_the_next_one() {
    let trial = Trial::new();
    trial.pretrain(&["--epochs", "2", "--max-steps", "2"]).assert_success();
    fs::write(trial.path("out/.pretrain_vlm_32.pth.tmp-77"), "half").unwrap();
    fs::create_dir_all(trial.path("out/checkpoints/.step-00000099.tmp")).unwrap();
    trial.pretrain(&["--epochs", "2", "--resume", "auto"]).assert_success();
    assert!(!trial.path("out/.pretrain_vlm_32.pth.tmp-77").exists());
    assert!(!checkpoints(&trial).iter().any(|name| name.starts_with('.')));
}

#[test]
fn an_out_dir_that_is_removed_during_the_run_is_an_error() {
    let trial = Trial::new();
    let child = trial.command(&LONG).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    wait_for_lines(&trial, "out", 6);
    fs::rename(trial.path("out"), trial.path("gone")).unwrap();
    fs::remove_dir_all(trial.path("gone")).unwrap();
    let ended = Ended::of(&child.wait_with_output().unwrap());
    ended.assert_error(1, &["removed"]);
    assert!(!trial.path("out").exists(), "the folder must not be created again");
}

/// Runs a program whose files are limited to `blocks` of 512 bytes. A write beyond the limit fails,
/// as on a full disk.
fn with_limited_files(blocks: u32, command: &Command) -> Ended {
    let mut limited = Command::new("sh");
    limited.args(["-c", "trap '' XFSZ; ulimit -f \"$0\"; exec \"$@\""]);
    limited.arg(blocks.to_string()).arg(command.get_program()).args(command.get_args());
    limited.env("OMP_NUM_THREADS", "1");
    Ended::of(&limited.output().unwrap())
}

#[test]
fn a_full_disk_at_any_time_of_a_run_is_not_a_usage_error() {
    // The disk is full at the test file, at config.json, and at the checkpoint.
    for blocks in [0, 1, 16] {
        let trial = Trial::new();
        let ended = with_limited_files(blocks, &trial.command(&[]));
        ended.assert_error(1, &["error: "]);
        assert!(!ended.stderr.contains("internal error"), "{}", ended.stderr);
    }
}

#[test]
fn a_full_disk_is_a_failure_of_caching_preparation_and_conversion() {
    let trial = Trial::new();
    let path = |name: &str| trial.path(name).display().to_string();
    let mut cache = Command::new(binary());
    cache.args(["cache-features", "--data-path", &path("rows.jsonl"), "--device", "cpu"]);
    cache.args(["--images-path", &path("images"), "--output", &path("features")]);
    cache.arg("--vision").arg(golden("vision_tower"));
    let mut prepare = Command::new(xtask());
    prepare.args(["prepare-data", "--input", &path("rows.jsonl"), "--output", &path("shards")]);
    prepare.args(["--images-path", &path("images"), "--tokens-per-image", "196", "--tokenizer"]);
    prepare.arg(demo_start(""));
    let mut convert = Command::new(binary());
    convert.arg("convert").arg(golden("dense/lm_vlm.pth")).arg(path("converted.safetensors"));
    for (name, command) in [("cache", cache), ("prepare", prepare), ("convert", convert)] {
        for blocks in [0, 2] {
            let ended = with_limited_files(blocks, &command);
            assert_eq!(ended.code, 1, "{name}, {blocks} blocks: {}", ended.stderr);
            // Remove incomplete output, so that the next command starts from nothing.
            for left in ["features", "shards"].map(|name| trial.path(name)) {
                _ = fs::remove_dir_all(left);
            }
        }
    }
}

#[test]
fn standard_output_on_a_full_disk_is_a_failure() {
    let full = fs::File::options().write(true).open("/dev/full").unwrap();
    let mut command = Command::new(binary());
    command.arg("inspect").arg(golden("dense/lm_vlm.pth")).stdout(full);
    let ended = Ended::of(&command.stderr(Stdio::piped()).output().unwrap());
    ended.assert_error(1, &["standard output cannot be written"]);
}

/// Starts a command whose output pipes are closed, and returns its exit code.
fn run_with_closed_pipes(command: &mut Command) -> Option<i32> {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop((child.stdout.take(), child.stderr.take()));
    child.wait().unwrap().code()
}

#[test]
fn commands_finish_with_closed_output_pipes() {
    let trial = Trial::new();
    assert_eq!(run_with_closed_pipes(&mut trial.command(&["--epochs", "3"])), Some(0));
    assert_eq!(trial.summary()["steps"], 6);
    let mut inspect = Command::new(binary());
    inspect.arg("inspect").arg(golden("dense/lm_vlm.pth"));
    assert_eq!(run_with_closed_pipes(&mut inspect), Some(0));
    assert_eq!(run_with_closed_pipes(Command::new(xtask()).args(["launch", "--help"])), Some(0));
    // The exit code of an error is the same.
    assert_eq!(run_with_closed_pipes(&mut trial.command(&["--epochs", "0"])), Some(2));
}

#[test]
fn a_run_with_too_many_rejected_rows_fails_with_the_reasons() {
    let trial = Trial::new();
    let bad = |k: usize| row(&format!("none-{k}.png"), "A circle.");
    let good = |k: usize| row(&format!("{}.png", k % 8), "A circle.");
    trial.write_rows(&[bad(0), bad(1)]);
    let ended = trial.pretrain(&["--max-rejected-fraction", "1"]);
    ended.assert_error(1, &["2 of 2 rows cannot be used (2 missing-image)", "none-0.png"]);
    assert!(!trial.path("out/pretrain_vlm_32.pth").exists());

    let run = |rows: &[String], out: &str, more: &[&str]| {
        trial.write_rows(rows);
        let out = trial.path(out);
        trial.pretrain(&[&["--out-dir", out.to_str().unwrap()], more].concat())
    };
    let mixed: Vec<String> = (0..9).map(good).chain((0..8).map(bad)).collect();
    run(&mixed, "mixed", &[]).assert_error(1, &["8 of 17 rows", "the limit is 5%"]);
    let one: Vec<String> = (0..23).map(good).chain([bad(0)]).collect();
    run(&one, "none", &["--max-rejected-fraction", "0"]).assert_error(1, &["the limit is 0"]);
    let ended = run(&one, "one", &[]);
    ended.assert_success();
    let message = "1 rejected row (1 missing-image): ";
    assert!(
        ended.stdout.contains(message) && ended.stdout.contains("rejected.jsonl"),
        "{}",
        ended.stdout
    );
}

#[test]
fn a_run_without_a_usable_row_fails_with_the_reasons() {
    let trial = Trial::new();
    let rows: Vec<String> = (0..8).map(|k| row(&format!("none-{k}.png"), "A circle.")).collect();
    trial.write_rows(&rows);
    let ended = trial.pretrain(&["--max-steps", "1", "--max-rejected-fraction", "1"]);
    ended.assert_error(1, &["4 of 4 rows cannot be used"]);
}

#[test]
fn prepare_data_with_too_many_rejected_rows_fails_unless_they_are_allowed() {
    let trial = Trial::new();
    let good = (0..5).map(|k| row(&format!("{k}.png"), "A circle."));
    trial.write_rows(&good.chain([row("none.png", "A circle.")]).collect::<Vec<_>>());
    let prepare = |more: &[&str]| {
        let mut command = Command::new(xtask());
        command.arg("prepare-data").arg("--input").arg(trial.path("rows.jsonl"));
        command.arg("--images-path").arg(trial.path("images"));
        command.arg("--output").arg(trial.path("shards")).arg("--tokenizer").arg(demo_start(""));
        command.args(["--tokens-per-image", "196"]).args(more);
        Ended::of(&command.output().unwrap())
    };
    let refused = prepare(&[]);
    let message = ["1 of 6 rows cannot be used (1 missing-image)", "none.png", "--images-path"];
    refused.assert_error(1, &message);
    assert!(!trial.path("shards/manifest.json").exists());
    let listed = fs::read_to_string(trial.path("shards/rejected.jsonl")).unwrap();
    assert!(listed.contains("none.png"), "{listed}");
    prepare(&["--max-rejected-fraction", "0.2"]).assert_success();
    assert!(trial.path("shards/manifest.json").exists());
    prepare(&[]).assert_error(1, &["1 of 6 rows"]);
}

#[test]
fn evaluation_with_too_many_rejected_rows_fails_with_examples() {
    let trial = Trial::new();
    trial.pretrain(&[]).assert_success();
    trial.write_rows(&[row("0.png", "A circle."), row("none.png", "A circle.")]);
    let evaluate = |more: &[&str]| {
        let path = |name: &str| trial.path(name).display().to_string();
        let (model, rows, images) = (path("out"), path("rows.jsonl"), path("images"));
        let flags = ["eval", "--model", &model, "--data-path", &rows, "--images-path", &images];
        vlm(&[&flags[..], more].concat())
    };
    evaluate(&[]).assert_error(1, &["1 of 2 rows cannot be used (1 missing-image)", "none.png"]);
    evaluate(&["--max-rejected-fraction", "0.5"]).assert_success();
}

#[test]
fn long_configuration_values_are_shortened_in_messages() {
    let trial = Trial::new();
    let value = "x".repeat(5000);
    let config = trial.path("run.toml");
    fs::write(&config, format!("padding = \"{value}\"\n")).unwrap();
    let given = trial.pretrain(&["--config", config.to_str().unwrap()]);
    given.assert_error(2, &["run.toml", "characters)"]);
    assert!(given.stderr.len() < 2000, "{}", given.stderr);
    let given = trial.pretrain(&["--device", &value]);
    given.assert_error(2, &["--device", "characters)"]);
    assert!(given.stderr.len() < 2000, "{}", given.stderr);
}

#[test]
fn a_diverged_run_names_its_last_healthy_checkpoint() {
    let trial = Trial::new();
    let flags = ["--epochs", "9", "--learning-rate", "1e30", "--save-interval", "1"];
    let more = ["--max-skipped-updates", "4", "--grad-clip", "0"];
    let ended = trial.pretrain(&[&flags[..], &more].concat());
    assert_eq!(ended.code, 1, "{}", ended.stderr);
    let last = trial.path("out/checkpoints").join(checkpoints(&trial).last().unwrap());
    assert!(Path::new(&last).is_dir());
    ended.assert_error(1, &["The last healthy checkpoint is", last.to_str().unwrap()]);
}
