//! Training with several processes equals training with one. The processes are started with the
//! environment variables of a launcher.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use safetensors::SafeTensors;

use crate::support::{Ended, Trial, program, row};

const TOKEN: [&str; 2] = ["--loss-average", "token"];

/// A trial of 21 rows with captions of different lengths, so that the processes have different
/// numbers of tokens. The last batch of eight has five rows, of which four processes get 2, 1, 1
/// and 1.
pub fn trial() -> Trial {
    let trial = Trial::new();
    let rows: Vec<String> = (0..21)
        .map(|k| row(&format!("{}.png", k % 8), &"A circle beside a square. ".repeat(1 + k % 3)))
        .collect();
    trial.write_rows(&rows);
    trial
}

/// Starts one process per rank with the flags `more` of each.
pub fn start(trial: &Trial, out: &str, more: &[Vec<&str>]) -> Vec<Child> {
    let out_dir = trial.path(out);
    let out_dir = ["--out-dir", out_dir.to_str().unwrap()];
    start_all(more.iter().map(|more| trial.command(&[&out_dir[..], more].concat())).collect())
}

/// Starts the commands as the ranks of one group; a single command without the variables of a
/// group.
pub fn start_all(commands: Vec<Command>) -> Vec<Child> {
    let world_size = commands.len();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = free.local_addr().unwrap().port();
    drop(free);
    let launch = |(rank, mut command): (usize, Command)| {
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).env_remove("WORLD_SIZE");
        if world_size > 1 {
            for (name, value) in [
                ("RANK", rank.to_string()),
                ("LOCAL_RANK", rank.to_string()),
                ("WORLD_SIZE", world_size.to_string()),
                ("LOCAL_WORLD_SIZE", world_size.to_string()),
                ("MASTER_ADDR", "127.0.0.1".to_owned()),
                ("MASTER_PORT", port.to_string()),
                ("TORCHELASTIC_RUN_ID", format!("{}-{port}", std::process::id())),
            ] {
                command.env(name, value);
            }
        }
        command.spawn().unwrap()
    };
    commands.into_iter().enumerate().map(launch).collect()
}

/// Waits for the processes, and returns how each ended.
pub fn end(children: Vec<Child>) -> Vec<Ended> {
    let outputs: Vec<Output> =
        children.into_iter().map(|child| child.wait_with_output().unwrap()).collect();
    outputs.iter().map(Ended::of).collect()
}

/// The flags of each of `world_size` processes for global batches of eight rows.
pub fn shared_batches(world_size: usize, more: &[&str]) -> Vec<String> {
    let batch_size = (8 / world_size).to_string();
    let flags = ["--batch-size", &batch_size, "--num-threads", "1", "--num-workers", "1"];
    [&flags[..], &TOKEN, more].concat().into_iter().map(str::to_owned).collect()
}

/// Trains with `world_size` processes and global batches of eight rows.
pub fn train(trial: &Trial, world_size: usize, out: &str, more: &[&str]) {
    let flags = shared_batches(world_size, more);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    for ended in end(start(trial, out, &vec![flags; world_size])) {
        ended.assert_success();
    }
}

/// The lines of `metrics.jsonl` of a run.
pub fn metrics(trial: &Trial, out: &str) -> Vec<serde_json::Value> {
    crate::support::json_lines(&trial.path(&format!("{out}/metrics.jsonl")))
}

/// The largest difference between two weights of the same name.
fn largest_difference(one: &Path, other: &Path) -> f32 {
    let (one, other) = (fs::read(one).unwrap(), fs::read(other).unwrap());
    let (one, other) =
        (SafeTensors::deserialize(&one).unwrap(), SafeTensors::deserialize(&other).unwrap());
    assert_eq!(one.names().len(), other.names().len());
    let floats = |bytes: &[u8]| -> Vec<f32> {
        bytes.chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect()
    };
    let mut largest = 0f32;
    for (name, tensor) in one.tensors() {
        let (a, b) = (floats(tensor.data()), floats(other.tensor(&name).unwrap().data()));
        assert_eq!(a.len(), b.len(), "{name}");
        largest = a.iter().zip(&b).fold(largest, |most, (a, b)| most.max((a - b).abs()));
    }
    largest
}

/// The differences between two runs.
pub struct Difference {
    /// Number of steps with a loss.
    pub losses: usize,
    /// The largest difference between losses of a step.
    pub loss: f64,
    /// The largest difference between values of a weight.
    pub weight: f32,
}

impl Difference {
    /// Computes the differences, and checks that both runs have the same counters at every step and
    /// a loss at the same steps.
    pub fn between(trial: &Trial, one: &str, other: &str) -> Self {
        let (a, b) = (metrics(trial, one), metrics(trial, other));
        assert_eq!(a.len(), b.len());
        let (mut losses, mut loss) = (0, 0f64);
        for (a, b) in a.iter().zip(&b) {
            for key in ["step", "update", "epoch", "lr", "samples", "tokens", "supervised_tokens"] {
                assert_eq!(a[key], b[key], "{key} of step {}", a["step"]);
            }
            let [one, other] = [a, b].map(|line| line["loss"].as_f64());
            assert_eq!(one.is_some(), other.is_some(), "step {}", a["step"]);
            if let (Some(one), Some(other)) = (one, other) {
                assert!(one.is_finite() && other.is_finite(), "{one} and {other}: {}", a["step"]);
                losses += 1;
                loss = loss.max((one - other).abs());
            }
        }
        let weight = largest_difference(&weights(trial, one), &weights(trial, other));
        Self { losses, loss, weight }
    }

    /// Checks that the differences are at most 1e-5: sums are in another order, and Adam amplifies
    /// the rounding of small gradients.
    pub fn assert_small(&self) {
        assert!(self.loss <= 1e-5, "losses differ by {:e}", self.loss);
        assert!(self.weight <= 1e-5, "weights differ by {:e}", self.weight);
    }
}

/// The weights file of the last stage in a folder; `sft_…` sorts after `pretrain_…`.
fn weights(trial: &Trial, out: &str) -> PathBuf {
    let files = fs::read_dir(trial.path(out)).unwrap().flatten().map(|entry| entry.path());
    files.filter(|path| path.extension().is_some_and(|e| e == "safetensors")).max().unwrap()
}

/// Checks that two runs have the same counters, losses and weights.
fn assert_equal(trial: &Trial, one: &str, other: &str) {
    Difference::between(trial, one, other).assert_small();
}

#[test]
fn packed_training_equals_padded_training_on_one_and_two_processes() {
    let trial = trial();
    let epochs = ["--epochs", "6", "--train-lm"];
    for (k, more) in [&[][..], &["--accumulation-steps", "2"], &["--activation-checkpointing"]]
        .into_iter()
        .enumerate()
    {
        let flags = [&epochs[..], more].concat();
        let [plain, packed, shared] = ["plain", "packed", "shared"].map(|out| format!("{out}{k}"));
        train(&trial, 1, &plain, &flags);
        let flags = [&flags[..], &["--pack"]].concat();
        train(&trial, 1, &packed, &flags);
        assert_equal(&trial, &plain, &packed);
        if k < 2 {
            train(&trial, 2, &shared, &flags);
            assert_equal(&trial, &plain, &shared);
        }
    }
}

#[test]
fn two_and_four_processes_equal_one_with_the_same_global_batches() {
    let trial = trial();
    let flags = ["--epochs", "3", "--accumulation-steps", "2"];
    train(&trial, 1, "one", &flags);
    train(&trial, 2, "two", &flags);
    train(&trial, 4, "four", &flags);
    assert_equal(&trial, "one", "two");
    assert_equal(&trial, "one", "four");
    let summary = fs::read_to_string(trial.path("two/summary.json")).unwrap();
    let summary: serde_json::Value = serde_json::from_str(&summary).unwrap();
    assert_eq!(summary["world_size"], 2);
    // An update sends the float32 gradients of the trained parameters.
    let trained = summary["trainable_parameters"].as_u64().unwrap();
    assert_eq!(summary["gradient_bytes_per_update"], 4 * trained);
    let hidden = summary["communication_hidden_ms"].as_f64().unwrap();
    assert!(hidden <= summary["communication_ms"].as_f64().unwrap());
}

#[test]
fn load_balancing_of_experts_over_processes_equals_that_in_one() {
    let trial = trial();
    let flags = ["--use-moe", "--epochs", "2"];
    train(&trial, 1, "one", &flags);
    train(&trial, 4, "four", &flags);
    assert_equal(&trial, "one", "four");
}

#[test]
fn text_only_and_broken_rows_on_some_processes_give_the_same_training() {
    let trial = trial();
    let text = serde_json::json!({"conversations": [
        {"role": "user", "content": "What is round?"},
        {"role": "assistant", "content": "A circle."},
    ]})
    .to_string();
    // In the order of the file: images on rank 0 and text on rank 1; text on both; broken rows only
    // on rank 0, then on both; one row for two ranks.
    let image = row("1.png", "A circle.");
    let broken = row("none.png", "A circle.");
    let rows = [
        vec![&image; 4],
        vec![&text; 4],
        vec![&text; 8],
        vec![&broken; 4],
        vec![&image; 4],
        vec![&broken; 8],
        vec![&image; 9],
    ];
    trial.write_rows(&rows.concat().into_iter().cloned().collect::<Vec<_>>());
    let flags = ["--no-shuffle", "--max-rejected-fraction", "1"];
    for more in [vec![], vec!["--unfreeze-last-layers", "0"]] {
        let flags = [&flags[..], &more].concat();
        let outs = [format!("one{}", more.len()), format!("two{}", more.len())];
        train(&trial, 1, &outs[0], &flags);
        train(&trial, 2, &outs[1], &flags);
        assert_equal(&trial, &outs[0], &outs[1]);
        let rejected = |out: &str| -> Vec<u64> {
            let lines = crate::support::json_lines(&trial.path(&format!("{out}/rejected.jsonl")));
            let mut rows: Vec<_> = lines.iter().map(|l| l["row"].as_u64().unwrap()).collect();
            rows.sort_unstable();
            rows
        };
        let expected: Vec<u64> = (16..20).chain(24..32).collect();
        assert_eq!(rejected(&outs[0]), expected);
        assert_eq!(rejected(&outs[1]), expected, "each row is listed once, whichever rank had it");
        assert_eq!(metrics(&trial, &outs[1]).last().unwrap()["rejected_rows"], 12);
    }
}

#[test]
fn a_run_can_be_resumed_with_another_number_of_processes() {
    let trial = trial();
    let whole = ["--epochs", "2", "--save-interval", "2"];
    train(&trial, 1, "whole", &whole);
    // Three steps with four processes, two with one, the rest with two.
    let stop_at = |steps| [&whole[..], &["--resume", "auto", "--max-steps", steps]].concat();
    train(&trial, 4, "parts", &stop_at("3"));
    train(&trial, 1, "parts", &stop_at("5"));
    train(&trial, 2, "parts", &stop_at("6"));
    assert_equal(&trial, "whole", "parts");
}

/// Trains with global batches of six rows, which two and three processes can share.
fn train_on_sixes(trial: &Trial, world_size: usize, out: &str, more: &[&str]) {
    let batch_size = (6 / world_size).to_string();
    train(trial, world_size, out, &[&["--batch-size", &batch_size, "--train-lm"], more].concat());
}

#[test]
fn a_sharded_optimizer_gives_the_same_training() {
    let trial = trial();
    let text = serde_json::json!({"conversations": [
        {"role": "user", "content": "What is round?"},
        {"role": "assistant", "content": "A circle."},
    ]});
    // The projector has no gradient from the first batch, which must not change it.
    let images = (0..12).map(|k| row(&format!("{}.png", k % 8), "A circle."));
    let rows: Vec<String> = vec![text.to_string(); 6].into_iter().chain(images).collect();
    trial.write_rows(&rows);
    let flags = ["--no-shuffle", "--epochs", "2", "--ema-decay", "0.9"];
    let sharded = [&flags[..], &["--shard-optimizer"]].concat();
    for (world_size, more) in [(2, &[][..]), (3, &["--accumulation-steps", "2"])] {
        let [plain, shared] = ["plain", "shared"].map(|name| format!("{name}{world_size}"));
        train_on_sixes(&trial, world_size, &plain, &[&flags[..], more].concat());
        train_on_sixes(&trial, world_size, &shared, &[&sharded[..], more].concat());
        let difference = Difference::between(&trial, &plain, &shared);
        assert!(difference.loss <= 1e-6, "losses differ by {:e}", difference.loss);
        assert!(difference.weight <= 1e-6, "weights differ by {:e}", difference.weight);
        let averages = |out: &str| trial.path(&format!("{out}/pretrain_vlm_32_ema.safetensors"));
        assert!(largest_difference(&averages(&plain), &averages(&shared)) <= 1e-6);
    }
}

#[test]
fn a_sharded_run_can_be_resumed_with_any_number_of_processes_with_and_without_shards() {
    let trial = trial();
    let whole = ["--epochs", "2", "--save-interval", "2"];
    train_on_sixes(&trial, 1, "whole", &whole);
    let until = |steps, more: &[&'static str]| {
        [&whole[..], &["--resume", "auto", "--max-steps", steps], more].concat()
    };
    train_on_sixes(&trial, 3, "parts", &until("2", &["--shard-optimizer"]));
    train_on_sixes(&trial, 2, "parts", &until("4", &["--shard-optimizer"]));
    train_on_sixes(&trial, 1, "parts", &until("6", &["--shard-optimizer"]));
    train_on_sixes(&trial, 2, "parts", &until("7", &[]));
    train_on_sixes(&trial, 3, "parts", &until("8", &["--shard-optimizer"]));
    assert_equal(&trial, "whole", "parts");
}

#[test]
fn limit_on_rejected_rows_is_for_all_ranks_together() {
    let trial = trial();
    let (image, broken) = (row("1.png", "A circle."), row("none.png", "A circle."));
    // Twelve of 48 rows are broken, all on rank 1, whose rows they are half of.
    let mut rows = vec![image.clone(); 24];
    for _ in 0..3 {
        rows.extend(vec![image.clone(); 4]);
        rows.extend(vec![broken.clone(); 4]);
    }
    trial.write_rows(&rows);
    train(&trial, 2, "few", &["--no-shuffle", "--max-rejected-fraction", "0.3"]);
    let flags = ["--no-shuffle", "--max-rejected-fraction", "0.2", "--batch-size", "4"];
    for ended in end(start(&trial, "many", &vec![flags.to_vec(); 2])) {
        ended.assert_error(1, &["12 of 48 rows cannot be used (12 missing-image)"]);
    }
}

#[test]
fn float16_with_dropout_keeps_ranks_equal() {
    let trial = trial();
    let more = ["--dtype", "float16", "--dropout", "0.1", "--epochs", "4"];
    let mut flags = vec!["--batch-size", "4", "--num-threads", "1", "--learning-rate", "1e-3"];
    flags.extend(more);
    for ended in end(start(&trial, "out", &vec![flags; 2])) {
        ended.assert_success();
        assert!(!ended.stderr.contains("no longer those of rank 0"), "{}", ended.stderr);
    }
    let losses: Vec<f64> =
        metrics(&trial, "out").iter().filter_map(|line| line["loss"].as_f64()).collect();
    assert!(losses.last().unwrap() < &losses[0], "{losses:?}");
}

fn losses(trial: &Trial, out: &str) -> Vec<f64> {
    metrics(trial, out).iter().filter_map(|line| line["loss"].as_f64()).collect()
}

/// Checks that all ranks succeeded without a warning: at every save rank 0 compares the weights of
/// the ranks bit by bit and warns of differences.
fn assert_ranks_agree(ended: &[Ended]) {
    for ended in ended {
        ended.assert_success();
        assert!(!ended.stderr.contains("no longer those of rank 0"), "{}", ended.stderr);
    }
}

#[test]
fn sft_on_two_processes_equals_sft_on_one() {
    let trial = trial();
    for (out, world_size) in [("one", 1), ("two", 2)] {
        train(&trial, 1, out, &[]);
        let flags = shared_batches(world_size, &["--epochs", "3", "--log-interval", "1"]);
        let command = |_| {
            let mut command = program();
            command.args(["sft", "--device", "cpu", "--max-seq-len", "288"]).args(&flags);
            command.arg("--data-path").arg(trial.path("rows.jsonl"));
            command.arg("--images-path").arg(trial.path("images"));
            command.arg("--out-dir").arg(trial.path(out));
            command
        };
        assert_ranks_agree(&end(start_all((0..world_size).map(command).collect())));
        assert!(weights(&trial, out).ends_with("sft_vlm_32.safetensors"));
        assert!(losses(&trial, out).len() == 9, "{:?}", losses(&trial, out));
    }
    assert_equal(&trial, "one", "two");
}

#[test]
fn bfloat16_losses_on_two_processes_are_close_to_those_on_one() {
    let trial = trial();
    let more = ["--dtype", "bfloat16", "--epochs", "6", "--train-lm", "--learning-rate", "1e-3"];
    train(&trial, 1, "one", &more);
    let flags = shared_batches(2, &more);
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    assert_ranks_agree(&end(start(&trial, "two", &vec![flags; 2])));
    let (one, two) = (losses(&trial, "one"), losses(&trial, "two"));
    assert_eq!((one.len(), two.len()), (18, 18));
    assert!(two[17] < 0.9 * two[0], "nothing was learned: {two:?}");
    for (step, (a, b)) in one.iter().zip(&two).enumerate() {
        assert!((a - b).abs() <= 0.01 * a, "step {}: {a} and {b}", step + 1);
    }
}
