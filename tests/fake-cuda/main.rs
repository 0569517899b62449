//! `vlm` on a CUDA device without a GPU (README.md): placement of tensors, host waits, memory.

#[path = "../tests/support.rs"]
#[allow(dead_code)]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use support::{Ended, Trial, binary, xtask};

/// The flags of each training mode that is tested.
const MODES: [&[&str]; 6] = [
    &[],
    &["--pack"],
    &["--train-lm", "--train-vision"],
    &["--activation-checkpointing"],
    &["--use-moe", "--train-lm"],
    &["--use-moe", "--train-lm", "--activation-checkpointing", "--pack"],
];

/// The folder of the fake CUDA libraries.
fn fake_cuda_dir() -> PathBuf {
    let folder = std::env::var_os("VLM_FAKE_CUDA");
    PathBuf::from(folder.expect("VLM_FAKE_CUDA is not set: run `cargo xtask test --fake-cuda`"))
}

/// The training command on the device, which writes its counts to `report.json` of the trial.
fn on_device(trial: &Trial, more: &[&str]) -> Command {
    let mut command = trial.command(&[&["--device", "cuda"], more].concat());
    command
        .env("VLM_LIBTORCH_CUDA", fake_cuda_dir())
        .env("FAKE_CUDA_REPORT", trial.path("report.json"));
    command
}

fn run(trial: &Trial, more: &[&str]) -> Ended {
    Ended::of(&on_device(trial, more).output().unwrap())
}

fn losses(trial: &Trial) -> Vec<f64> {
    trial.metrics().iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

fn assert_equal_losses(found: &[f64], expected: &[f64], what: &str) {
    assert_eq!(found.len(), expected.len(), "{what}");
    for (found, expected) in found.iter().zip(expected) {
        // Only the order of sums differs, with the alignment of the memory.
        assert!((found / expected - 1.0).abs() < 1e-5, "{what}: {found} and {expected}");
    }
}

#[test]
fn losses_equal_those_on_the_cpu_in_every_mode() {
    for mode in MODES {
        let flags = [&["--dtype", "float32", "--epochs", "2"], mode].concat();
        let (on_cpu, on_cuda) = (Trial::new(), Trial::new());
        on_cpu.pretrain(&flags).assert_success();
        let ended = run(&on_cuda, &flags);
        ended.assert_success();
        assert!(!ended.stderr.contains("Warning"), "{mode:?}: {}", ended.stderr);
        assert_equal_losses(&losses(&on_cuda), &losses(&on_cpu), &format!("{mode:?}"));
    }
}

#[test]
fn sixteen_bit_training_places_all_tensors_on_the_device() {
    for dtype in ["bfloat16", "float16"] {
        let trial = Trial::new();
        run(&trial, &["--dtype", dtype, "--epochs", "2"]).assert_success();
        assert!(losses(&trial).iter().all(|loss| loss.is_finite()));
    }
}

#[test]
fn a_run_is_resumed_evaluated_and_used_for_generation_on_the_device() {
    let trial = Trial::new();
    let rows = trial.path("rows.jsonl");
    let evaluated = ["--epochs", "2", "--eval-data", rows.to_str().unwrap()];
    run(&trial, &[&evaluated[..], &["--max-steps", "2"]].concat()).assert_success();
    run(&trial, &[&evaluated[..], &["--resume", "auto"]].concat()).assert_success();
    assert_eq!(trial.summary()["steps"], 4);
    let ended = Ended::of(
        &Command::new(binary())
            .args(["generate", "--device", "cuda", "--prompt", "<image>\nDescribe the image."])
            .args(["--max-new-tokens", "4", "--model"])
            .arg(trial.path("out"))
            .arg("--image")
            .arg(trial.path("images/3.png"))
            .env("VLM_LIBTORCH_CUDA", fake_cuda_dir())
            .output()
            .unwrap(),
    );
    ended.assert_success();
}

/// Counts of a kind per step: the difference between runs of 14 and of 4 steps, divided by 10.
fn counts_per_step(kind: &str, mode: &[&str]) -> BTreeMap<String, f64> {
    let of_run = |steps: &str| -> BTreeMap<String, f64> {
        let trial = Trial::new();
        let flags = ["--epochs", "7", "--max-steps", steps, "--log-interval", "1000"];
        run(&trial, &[&flags[..], &["--save-interval", "1000"], mode].concat()).assert_success();
        let report: Value =
            serde_json::from_slice(&fs::read(trial.path("report.json")).unwrap()).unwrap();
        let counts = report[kind].as_object().unwrap();
        counts.iter().map(|(name, count)| (name.clone(), count.as_f64().unwrap())).collect()
    };
    let (long, short) = (of_run("14"), of_run("4"));
    let per_step = |(name, count): (String, f64)| {
        let before = short.get(&name).copied().unwrap_or(0.0);
        (name, (count - before) / 10.0)
    };
    long.into_iter().map(per_step).filter(|(_, count)| *count != 0.0).collect()
}

/// Largest number of host waits and kernel launches per step in each mode: the current numbers.
/// Lower them after a change that reduces them.
#[test]
fn waits_and_launches_per_step_stay_within_their_limits() {
    let limits: [(&[&str], f64, f64); 6] = [
        (MODES[0], 1.0, 510.0),
        (MODES[1], 1.0, 540.0),
        (MODES[2], 1.0, 815.0),
        (MODES[3], 1.0, 665.0),
        (MODES[4], 7.0, 1010.0),
        (MODES[5], 13.0, 1390.0),
    ];
    let mut too_many = Vec::new();
    for (mode, max_waits, max_launches) in limits {
        let (waits, launches) = (counts_per_step("waits", mode), counts_per_step("launches", mode));
        let sum = |counts: &BTreeMap<String, f64>| counts.values().sum::<f64>();
        println!("{mode:?}: {} waits {waits:?}, {} launches", sum(&waits), sum(&launches));
        if sum(&waits) > max_waits || sum(&launches) > max_launches {
            too_many.push(format!("{mode:?}: waits {waits:?}, launches {}", sum(&launches)));
        }
    }
    assert!(too_many.is_empty(), "{}", too_many.join("\n"));
}

/// Trains with two processes on two devices through the launcher.
fn run_on_two(trial: &Trial, more: &[&str], env: &[(&str, &str)]) -> Ended {
    let flags = [&["--device", "cuda", "--ddp", "--batch-size", "2"], more].concat();
    let training = trial.command(&flags);
    let mut launch = Command::new(xtask());
    launch.args(["launch", "--nproc-per-node", "2"]).arg(training.get_program());
    launch.args(training.get_args()).env("OMP_NUM_THREADS", "1");
    launch.env("VLM_LIBTORCH_CUDA", fake_cuda_dir()).env("FAKE_CUDA_DEVICES", "2");
    launch.env("VLM_NCCL_PLUGIN", fake_cuda_dir().join("libvlm_nccl.so"));
    Ended::of(&launch.envs(env.iter().copied()).output().unwrap())
}

#[test]
fn two_ranks_on_two_devices_have_the_losses_of_one_process() {
    for mode in [MODES[0], MODES[4]] {
        let flags = [&["--dtype", "float32", "--epochs", "2"], mode].concat();
        let (alone, together) = (Trial::new(), Trial::new());
        alone.pretrain(&flags).assert_success();
        run_on_two(&together, &flags, &[]).assert_success();
        assert_equal_losses(&losses(&together), &losses(&alone), &format!("{mode:?}"));
    }
}

#[test]
fn ranks_that_share_a_gpu_are_refused_with_its_address() {
    let trial = Trial::new();
    // Preloaded, because otherwise the CUDA runtime of libtorch would be called.
    let library = fake_cuda_dir().join("libtorch_cuda.so");
    let preload = ("LD_PRELOAD", library.to_str().unwrap());
    let ended = run_on_two(&trial, &[], &[("FAKE_CUDA_DEVICES", "1"), preload]);
    assert_ne!(ended.code, 0);
    assert!(ended.stderr.contains("both use GPU 0000:00:00.0"), "{}", ended.stderr);
}

#[test]
fn out_of_memory_error_names_the_batch_size() {
    for megabytes in [1_u64, 2, 4, 8, 12, 16, 20, 24, 28, 32] {
        let trial = Trial::new();
        let bytes = (megabytes << 20).to_string();
        let output =
            on_device(&trial, &["--epochs", "1"]).env("FAKE_CUDA_MEMORY", &bytes).output().unwrap();
        let ended = Ended::of(&output);
        if ended.code == 0 {
            continue;
        }
        ended.assert_error(1, &["out of memory", "--batch-size"]);
        assert!(!ended.stderr.contains("report this"), "{megabytes} MiB: {}", ended.stderr);
        assert!(!ended.stderr.contains("frame #"), "{megabytes} MiB: {}", ended.stderr);
    }
}
