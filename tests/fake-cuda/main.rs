//! `vlm` on a CUDA device without a GPU (README.md): placement of tensors, host waits, streams, memory,
//! and ranks that fail.

#[path = "../tests/support.rs"]
#[allow(dead_code)]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

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

/// The counts of a run that has ended.
fn report(trial: &Trial) -> Value {
    serde_json::from_slice(&fs::read(trial.path("report.json")).unwrap()).unwrap()
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
        // With the order of operations on streams, which changes no result.
        let output = on_device(&on_cuda, &flags).env("FAKE_CUDA_ASYNC", "1").output().unwrap();
        let ended = Ended::of(&output);
        ended.assert_success();
        for wrong in ["Warning", "WARN", "fake CUDA"] {
            assert!(!ended.stderr.contains(wrong), "{mode:?}: {}", ended.stderr);
        }
        assert_eq!(report(&on_cuda)["stream_errors"], 0, "{mode:?}");
        assert_equal_losses(&losses(&on_cuda), &losses(&on_cpu), &format!("{mode:?}"));
    }
}

#[test]
fn the_fake_device_finds_missing_waits() {
    let mut checks = Command::new(fake_cuda_dir().join("checks"));
    checks.arg(fake_cuda_dir().join("libtorch_cuda.so")).env("FAKE_CUDA_ASYNC", "1");
    let output = checks.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success() && text.contains("ok: "), "{text}");
}

/// Every mode without a host wait within a step. Experts are not among them: the host reads how many
/// tokens each expert has.
#[test]
fn a_step_does_not_wait_for_the_device() {
    for mode in &MODES[..4] {
        let trial = Trial::new();
        let flags = [&["--epochs", "3", "--log-interval", "4"], *mode].concat();
        let output = on_device(&trial, &flags).env("VLM_FORBID_HOST_WAITS", "1").output().unwrap();
        Ended::of(&output).assert_success();
    }
    let trial = Trial::new();
    let output = on_device(&trial, &[&["--epochs", "3"], MODES[4]].concat())
        .env("VLM_FORBID_HOST_WAITS", "1")
        .output()
        .unwrap();
    Ended::of(&output).assert_error(1, &["called a synchronizing CUDA operation"]);
}

#[test]
fn updates_are_counted_and_skipped_as_on_the_cpu_although_their_norms_are_read_later() {
    // The learning rate makes the weights infinite, so that later updates are skipped.
    let flags =
        ["--dtype", "float32", "--epochs", "5", "--learning-rate", "1e30", "--grad-clip", "0"];
    let flags = [&flags[..], &["--log-interval", "5", "--max-skipped-updates", "20"]].concat();
    let (on_cpu, on_cuda) = (Trial::new(), Trial::new());
    on_cpu.pretrain(&flags).assert_success();
    run(&on_cuda, &flags).assert_success();
    let counts = |trial: &Trial| -> Vec<(Value, Value)> {
        let line = |line: Value| (line["update"].clone(), line["skipped_updates"].clone());
        trial.metrics().into_iter().map(line).collect()
    };
    assert_eq!(counts(&on_cuda), counts(&on_cpu));
    assert!(on_cuda.summary()["skipped_updates"].as_u64().unwrap() > 2);
    let flags = [&flags[..], &["--max-skipped-updates", "3"]].concat();
    run(&Trial::new(), &flags).assert_error(1, &["skipped 3 consecutive updates"]);
}

#[test]
fn memory_in_use_does_not_grow_with_the_steps() {
    let peak_of = |steps: &str| {
        let trial = Trial::new();
        run(&trial, &["--epochs", "9", "--max-steps", steps]).assert_success();
        let report = report(&trial);
        (report["live_bytes"].as_i64().unwrap(), report["peak_bytes"].as_i64().unwrap())
    };
    assert_eq!(peak_of("5"), peak_of("10"));
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
        let report = report(&trial);
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
        (MODES[0], 0.0, 442.0),
        (MODES[1], 0.0, 474.0),
        (MODES[2], 0.0, 630.0),
        (MODES[3], 0.0, 588.0),
        (MODES[4], 2.0, 851.0),
        (MODES[5], 4.0, 1231.0),
    ];
    let mut too_many = Vec::new();
    for (mode, max_waits, max_launches) in limits {
        let (waits, launches) = (counts_per_step("waits", mode), counts_per_step("launches", mode));
        let sum =
            |counts: &BTreeMap<String, f64>| counts.values().fold(0.0, |sum, count| sum + count);
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
    let sharded = ["--train-lm", "--shard-optimizer"];
    for mode in MODES.iter().chain(&[&sharded[..]]) {
        let flags = [&["--dtype", "float32", "--epochs", "2"], *mode].concat();
        let (alone, together) = (Trial::new(), Trial::new());
        alone.pretrain(&flags).assert_success();
        let ended = run_on_two(&together, &flags, &[("FAKE_CUDA_ASYNC", "1")]);
        ended.assert_success();
        assert!(!ended.stderr.contains("fake CUDA"), "{mode:?}: {}", ended.stderr);
        assert_equal_losses(&losses(&together), &losses(&alone), &format!("{mode:?}"));
    }
}

/// Starts two ranks without a launcher, which would end the other rank when one fails.
fn ranks_with_fault(trial: &Trial, fault: &str) -> Vec<Ended> {
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port().to_string();
    drop(free);
    let start = |rank: usize| {
        let flags = ["--device", "cuda", "--batch-size", "2", "--timeout-secs", "8"];
        let mut command = trial.command(&flags);
        command.env("VLM_LIBTORCH_CUDA", fake_cuda_dir()).env("FAKE_CUDA_DEVICES", "2");
        command.env("VLM_NCCL_PLUGIN", fake_cuda_dir().join("libvlm_nccl.so"));
        let rank = rank.to_string();
        command.env("FAKE_NCCL_FAULT", fault);
        command.envs([("RANK", rank.as_str()), ("LOCAL_RANK", &rank), ("MASTER_PORT", &port)]);
        command.envs([
            ("WORLD_SIZE", "2"),
            ("LOCAL_WORLD_SIZE", "2"),
            ("MASTER_ADDR", "127.0.0.1"),
        ]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let wait = |child: Child| {
        let output = child.wait_with_output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        // A rank that was killed has no exit code.
        Ended { code: output.status.code().unwrap_or(-1), stdout: String::new(), stderr }
    };
    [0, 1].map(start).map(wait).into()
}

/// A rank that waits on its GPU for another one ends with an explanation that names the other.
#[test]
fn a_rank_that_fails_in_nccl_ends_the_others_with_its_name() {
    // The first operation connects the GPUs; later ones are within a step.
    for (fault, expected) in [
        ("hangs:1:1", "this rank made no progress within the timeout"),
        ("hangs:1:9", "this rank made no progress within the timeout"),
        ("dies:1:9", "rank 1 does not respond"),
        ("fails:1:9", "rank 1 ended: step "),
        ("dies:0:9", "the store"),
    ] {
        let trial = Trial::new();
        let ended = ranks_with_fault(&trial, fault);
        let other = if fault.contains(":0:") { &ended[1] } else { &ended[0] };
        assert_eq!(other.code, 1, "{fault}: {}", other.stderr);
        for part in [expected, "Other ranks: "] {
            assert!(other.stderr.contains(part), "{fault}: {part:?} is not in: {}", other.stderr);
        }
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

/// Sizes of the memory: it ends before the start, while the model is created, during a step, and not
/// at all.
const KILOBYTES: [u64; 10] =
    [256, 1 << 10, 2 << 10, 4 << 10, 8 << 10, 12 << 10, 16 << 10, 20 << 10, 24 << 10, 32 << 10];

#[test]
fn out_of_memory_error_names_the_batch_size() {
    let mut codes = Vec::new();
    for kilobytes in KILOBYTES {
        let trial = Trial::new();
        let bytes = (kilobytes << 10).to_string();
        let output =
            on_device(&trial, &["--epochs", "1"]).env("FAKE_CUDA_MEMORY", &bytes).output().unwrap();
        let ended = Ended::of(&output);
        codes.push(ended.code);
        match ended.code {
            0 => continue,
            2 => ended.assert_error(2, &["does not fit into the memory", "--unfreeze-last-layers"]),
            _ => ended.assert_error(1, &["out of memory", "--batch-size", "MiB of weights"]),
        }
        assert!(!ended.stderr.contains("report this"), "{kilobytes} KiB: {}", ended.stderr);
        assert!(!ended.stderr.contains("frame #"), "{kilobytes} KiB: {}", ended.stderr);
    }
    assert!(codes.starts_with(&[2]) && codes.contains(&1), "{codes:?}");
}

#[test]
fn ranks_without_memory_end_with_the_remedy() {
    for kilobytes in KILOBYTES {
        let trial = Trial::new();
        let bytes = (kilobytes << 10).to_string();
        let env = [("FAKE_CUDA_MEMORY", bytes.as_str())];
        let ended = run_on_two(&trial, &["--epochs", "1", "--timeout-secs", "8"], &env);
        if ended.code != 0 {
            let remedies = ["--batch-size", "--unfreeze-last-layers"];
            let has_remedy = remedies.iter().any(|remedy| ended.stderr.contains(remedy));
            assert!(has_remedy, "{kilobytes} KiB: {}", ended.stderr);
        }
    }
}

#[test]
fn micro_batches_are_made_smaller_until_they_fit() {
    let flags = ["--dtype", "float32", "--loss-average", "token", "--train-lm", "--epochs", "2"];
    let with_memory = |trial: &Trial, more: &[&str]| {
        let mut command = on_device(trial, &[&flags[..], more].concat());
        Ended::of(&command.env("FAKE_CUDA_MEMORY", (12 << 20).to_string()).output().unwrap())
    };
    with_memory(&Trial::new(), &[]).assert_error(1, &["out of memory", "--batch-size"]);
    let whole = Trial::new();
    run(&whole, &flags).assert_success();

    let divided = Trial::new();
    let ended = with_memory(&divided, &["--auto-batch-size", "--max-steps", "2"]);
    ended.assert_success();
    assert!(ended.stderr.contains("(--batch-size is 4)"), "{}", ended.stderr);
    with_memory(&divided, &["--auto-batch-size", "--resume", "auto"]).assert_success();
    let config: Value =
        serde_json::from_slice(&fs::read(divided.path("out/config.json")).unwrap()).unwrap();
    let optim = |name: &str| config["run"]["optim"][name].as_u64().unwrap();
    assert!(optim("batch_size") < 4, "{config}");
    assert_eq!(optim("batch_size") * optim("accumulation_steps"), 4);
    assert_eq!(
        divided.metrics().last().unwrap()["update"],
        whole.metrics().last().unwrap()["update"]
    );
    let weights =
        |trial: &Trial| fs::metadata(trial.path("out/pretrain_vlm_32.pth")).unwrap().len();
    assert_eq!(weights(&divided), weights(&whole));
    // Without a GPU there is no limit to find.
    Trial::new().pretrain(&["--auto-batch-size"]).assert_error(2, &["needs a GPU"]);
}

#[test]
fn gpu_check_passes_on_the_device_and_writes_its_results() {
    let folder = tempfile::tempdir().unwrap();
    let results = folder.path().join("results.json");
    let mut check = Command::new(xtask());
    check.args(["gpu-check", "--small", "--gpus", "2", "--binary"]).arg(binary());
    check.arg("--output").arg(&results).env("OMP_NUM_THREADS", "1");
    check.env("VLM_LIBTORCH_CUDA", fake_cuda_dir()).env("FAKE_CUDA_DEVICES", "2");
    check.env("VLM_NCCL_PLUGIN", fake_cuda_dir().join("libvlm_nccl.so"));
    let ended = Ended::of(&check.output().unwrap());
    let results: Value = serde_json::from_slice(&fs::read(&results).unwrap()).unwrap();
    let checks = results["checks"].as_array().unwrap();
    assert_eq!(checks.len(), 8, "{}", ended.stdout);
    for check in checks {
        // The times of a busy machine are not those of a GPU.
        let is_timed = check["name"] == "a new length does not slow a step";
        assert!(is_timed || check["passed"] == true, "{check:#}");
    }
    assert!(ended.stdout.contains("results.json"), "{}", ended.stdout);
}

#[test]
fn gpu_check_says_that_there_is_no_gpu() {
    if Path::new("/dev/nvidiactl").exists() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut check = Command::new(xtask());
    check.arg("gpu-check").current_dir(folder.path()).env_remove("VLM_LIBTORCH_CUDA");
    Ended::of(&check.output().unwrap()).assert_error(1, &["no GPU: ", "nothing was checked"]);
    assert!(!folder.path().join("gpu-check.json").exists());
}
