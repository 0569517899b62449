//! Generation with a trained model, and its evaluation.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::support::{Ended, Trial, binary, json_lines, row, vlm};

const PROMPT: &str = "Describe the image.";

/// A trial with a model that is overfitted to the eight images.
pub fn trained() -> &'static Trial {
    static TRAINED: OnceLock<Trial> = OnceLock::new();
    TRAINED.get_or_init(|| {
        let trial = Trial::new();
        trial
            .pretrain(&[
                "--batch-size", "8", "--epochs", "150", "--learning-rate", "1e-2", "--train-lm",
                "--log-interval", "50", "--save-interval", "1000",
            ])
            .assert_success();
        trial
    })
}

/// Runs a command of `vlm` on the trained model.
fn with_model(command: &str, args: &[&str]) -> Ended {
    let model = trained().path("out");
    let mut all = vec![command, "--model", model.to_str().unwrap(), "--device", "cpu"];
    all.extend(args);
    vlm(&all)
}

fn image(k: usize) -> String {
    trained().path(&format!("images/{k}.png")).to_str().unwrap().to_owned()
}

fn rows() -> String {
    trained().path("rows.jsonl").to_str().unwrap().to_owned()
}

fn images() -> String {
    trained().path("images").to_str().unwrap().to_owned()
}

#[test]
fn learned_captions_are_generated_from_every_kind_of_input() {
    let ended = with_model("generate", &["--image", &image(3), "--prompt", PROMPT]);
    ended.assert_success();
    assert_eq!(ended.stdout, "A green circle.\n");

    let output = trained().path("answers.jsonl");
    let asked = ["--data-path", &rows(), "--images-path", &images(), "--batch-size", "3"];
    let to_file = ["--output", output.to_str().unwrap()];
    with_model("generate", &[&asked[..], &to_file].concat()).assert_success();
    let lines = json_lines(&output);
    assert_eq!(lines.len(), 8);
    for line in &lines {
        assert_eq!(line["answer"], line["expected"], "{line}");
    }
    assert_eq!(lines[2]["row"], "rows.jsonl:3");

    let prompts = trained().path("prompts.txt");
    // Two prompts of different length in one batch; the first is the learned one.
    std::fs::write(&prompts, format!("{PROMPT}\nWhat?\n")).unwrap();
    let ended = with_model(
        "generate",
        &["--image", &image(5), "--prompts-file", prompts.to_str().unwrap()],
    );
    ended.assert_success();
    let first: serde_json::Value =
        serde_json::from_str(ended.stdout.lines().next().unwrap()).unwrap();
    assert_eq!((&first["prompt"], &first["answer"]), (&PROMPT.into(), &"A blue circle.".into()));
    assert_eq!(ended.stdout.lines().count(), 2);
}

#[test]
fn conversation_is_read_from_standard_input() {
    let mut child = Command::new(binary())
        .args(["generate", "--device", "cpu", "--model"])
        .arg(trained().path("out"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let input = format!(
        "/image {}\n{PROMPT}\n/reset\n/image {}\n{PROMPT}\nAnd now?\n/nonsense\n/help\n/exit\nnot asked\n",
        image(0),
        image(6)
    );
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let ended = Ended::of(&child.wait_with_output().unwrap());
    ended.assert_success();
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert_eq!(lines[..2], ["A red circle.", "A purple circle."]);
    assert!(ended.stderr.contains("/nonsense is not a command"), "{}", ended.stderr);
    assert_eq!(ended.stderr.matches("/help shows this").count(), 2, "{}", ended.stderr);
}

/// The `GOMP_SPINCOUNT` of a conversation that is started with these variables.
fn spin_count(variables: &[(&str, &str)]) -> Option<String> {
    let mut child = Command::new(binary())
        .args(["generate", "--device", "cpu", "--model"])
        .arg(trained().path("out"))
        .env_remove("OMP_NUM_THREADS")
        .env_remove("OMP_WAIT_POLICY")
        .env_remove("GOMP_SPINCOUNT")
        .envs(variables.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    writeln!(input, "{PROMPT}").unwrap();
    // After its first answer its environment no longer changes.
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut String::new()).unwrap();
    let environment = std::fs::read(format!("/proc/{}/environ", child.id())).unwrap();
    drop(input);
    assert!(child.wait().unwrap().success());
    let environment = String::from_utf8(environment).unwrap();
    let count = |entry: &str| entry.strip_prefix("GOMP_SPINCOUNT=").map(str::to_owned);
    environment.split('\0').find_map(count)
}

#[test]
fn openmp_threads_spin_less_unless_the_user_configures_openmp() {
    assert_eq!(spin_count(&[]).as_deref(), Some("10000"));
    assert_eq!(spin_count(&[("GOMP_SPINCOUNT", "77")]).as_deref(), Some("77"));
    assert_eq!(spin_count(&[("OMP_WAIT_POLICY", "active")]), None);
    assert_eq!(spin_count(&[("OMP_NUM_THREADS", "1")]), None);
}

#[test]
fn sampling_is_determined_by_the_seed() {
    let generate = |seed: &str| {
        let ended = with_model(
            "generate",
            &[
                "--image",
                &image(1),
                "--prompt",
                "What?",
                "--temperature",
                "8",
                "--max-new-tokens",
                "12",
                "--seed",
                seed,
            ],
        );
        ended.assert_success();
        ended.stdout
    };
    assert_eq!(generate("1"), generate("1"));
    assert_ne!(generate("1"), generate("2"));
}

#[test]
fn invalid_requests_are_usage_errors() {
    with_model("generate", &["--prompt", "x", "--image", "none.png"])
        .assert_error(2, &["none.png"]);
    let text = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&text, "not an image").unwrap();
    let path = text.path().to_str().unwrap();
    with_model("generate", &["--prompt", "x", "--image", path])
        .assert_error(2, &[&format!("--image {path}"), "unreadable-image"]);
    with_model("generate", &["--prompt", "<image> and <image>", "--image", &image(0)])
        .assert_error(2, &["1 image, but 2 <image>"]);
    with_model("generate", &["--prompt", "x", "--top-p", "1.5"])
        .assert_error(2, &["`top_p` is 1.5"]);
    with_model("generate", &["--prompt", "x", "--output", "y"]).assert_error(2, &["--output"]);
    with_model("generate", &["--prompt", "x", "--no-follow-links"])
        .assert_error(2, &["--no-follow-links has no effect", "--data-path"]);
    with_model("eval", &["--data-path", "none.jsonl"]).assert_error(2, &["none.jsonl"]);
    vlm(&["generate", "--model", "no-such-folder", "--prompt", "x"])
        .assert_error(2, &["--model no-such-folder"]);
    let empty = tempfile::tempdir().unwrap();
    vlm(&["generate", "--model", empty.path().to_str().unwrap(), "--prompt", "x"])
        .assert_error(2, &["has no weights"]);
}

#[test]
fn evaluation_of_an_overfitted_model_is_perfect() {
    let ended = with_model("eval", &["--data-path", &rows(), "--images-path", &images(), "--json"]);
    ended.assert_success();
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&report["rows"], &report["captions"]), (&8.into(), &8.into()));
    assert_eq!((&report["exact"], &report["token_f1"]), (&1.0.into(), &1.0.into()));
    let (loss, perplexity) =
        (report["loss"].as_f64().unwrap(), report["perplexity"].as_f64().unwrap());
    assert!(loss < 0.1 && (loss.exp() - perplexity).abs() < 1e-9, "{report}");

    let table = with_model("eval", &["--data-path", &rows(), "--images-path", &images()]);
    table.assert_success();
    assert!(table.stdout.contains("exact matches"), "{}", table.stdout);
    assert!(table.stdout.contains("100.0%"), "{}", table.stdout);
}

#[test]
fn losses_of_rows_average_to_the_loss_of_the_evaluation() {
    let trial = trained();
    let with_bad_row = trial.path("with_bad_row.jsonl");
    let lines = std::fs::read_to_string(rows()).unwrap();
    std::fs::write(&with_bad_row, lines + &row("none.png", "A grey circle.")).unwrap();
    let output = trial.path("losses.jsonl");
    let data = ["--data-path", with_bad_row.to_str().unwrap(), "--images-path", &images()];
    let to_file = ["--per-row", output.to_str().unwrap(), "--max-rows", "0", "--batch-size", "3"];
    let flags = [&data[..], &to_file, &["--max-rejected-fraction", "1"]].concat();
    let ended = with_model("eval", &[&flags[..], &["--json"]].concat());
    ended.assert_success();
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();

    let losses = json_lines(&output);
    let found: Vec<_> = losses.iter().map(|line| line["row"].as_u64().unwrap()).collect();
    assert_eq!(found, (0..9).collect::<Vec<_>>());
    assert_eq!(losses[2]["location"], "with_bad_row.jsonl:3");
    assert_eq!(losses[2]["images"], serde_json::json!(["2.png"]));
    assert!(losses[8]["loss"].is_null(), "{}", losses[8]);
    assert!(losses[8]["rejected"].as_str().unwrap().starts_with("missing-image"));
    let tokens = |line: &serde_json::Value| line["supervised_tokens"].as_f64().unwrap();
    let sum: f64 = losses[..8].iter().map(|l| l["loss"].as_f64().unwrap() * tokens(l)).sum();
    let mean = sum / losses.iter().map(tokens).sum::<f64>();
    let loss = report["loss"].as_f64().unwrap();
    // The loss of a batch is summed in float32.
    assert!((mean - loss).abs() <= 1e-6 * loss.max(1.0), "{mean} and {loss}");

    let highest = report["highest_losses"].as_array().unwrap();
    let highest: Vec<f64> = highest.iter().map(|row| row["loss"].as_f64().unwrap()).collect();
    assert!(highest.len() == 5 && highest.is_sorted_by(|a, b| a >= b), "{highest:?}");
    let table = with_model("eval", &flags);
    table.assert_success();
    for part in ["losses.jsonl", "rows with the highest loss", "with_bad_row.jsonl:"] {
        assert!(table.stdout.contains(part), "{part}: {}", table.stdout);
    }
    with_model("eval", &[&data[..], &["--per-row", "/nowhere/losses.jsonl"]].concat())
        .assert_error(2, &["--per-row /nowhere/losses.jsonl"]);
}

#[test]
fn a_model_that_sees_has_an_image_gain_and_one_that_does_not_is_reported() {
    let eval = |trial: &Trial, rows: &str| {
        let (out, images) = (trial.path("out"), trial.path("images"));
        let ended = vlm(&[
            "eval",
            "--json",
            "--device",
            "cpu",
            "--max-rows",
            "0",
            "--batch-size",
            "3",
            "--model",
            out.to_str().unwrap(),
            "--data-path",
            trial.path(rows).to_str().unwrap(),
            "--images-path",
            images.to_str().unwrap(),
        ]);
        ended.assert_success();
        (serde_json::from_str::<serde_json::Value>(&ended.stdout).unwrap(), ended.stderr)
    };
    let (report, warnings) = eval(trained(), "rows.jsonl");
    assert!(report["image_gain"].as_f64().unwrap() > 0.5, "{report}");
    assert_eq!(report["image_gain_rows"], 8);
    assert!(!warnings.contains("image_gain"), "{warnings}");

    // Random weights do not know what the images mean.
    let untrained = Trial::new();
    untrained.pretrain(&["--learning-rate", "1e-30", "--max-steps", "1"]).assert_success();
    let (report, warnings) = eval(&untrained, "rows.jsonl");
    assert!(report["image_gain"].as_f64().unwrap() < 0.01, "{report}");
    assert!(warnings.contains("image_gain: with the images of other rows"), "{warnings}");

    let same = [row("0.png", "A red circle."), row("0.png", "A circle.")];
    std::fs::write(untrained.path("same.jsonl"), same.join("\n")).unwrap();
    let (report, warnings) = eval(&untrained, "same.jsonl");
    assert!(report.get("image_gain").is_none() && report["image_gain_rows"] == 0, "{report}");
    assert!(!warnings.contains("image_gain"), "{warnings}");
}

#[test]
fn evaluated_loss_equals_the_training_loss() {
    let trial = Trial::new();
    // With this learning rate the weights do not change, so the loss of the step is that of the
    // saved model.
    trial.pretrain(&["--batch-size", "8", "--learning-rate", "1e-30"]).assert_success();
    let out = trial.path("out");
    let ended = vlm(&[
        "eval",
        "--device",
        "cpu",
        "--json",
        "--batch-size",
        "3",
        "--max-rows",
        "0",
        "--model",
        out.to_str().unwrap(),
        "--data-path",
        trial.path("rows.jsonl").to_str().unwrap(),
        "--images-path",
        trial.path("images").to_str().unwrap(),
    ]);
    ended.assert_success();
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    let (evaluated, trained) =
        (report["loss"].as_f64().unwrap(), trial.metrics()[0]["loss"].as_f64().unwrap());
    assert!((evaluated - trained).abs() < 1e-5, "{evaluated} and {trained}");
    assert_eq!(report["supervised_tokens"], trial.metrics()[0]["supervised_tokens"]);
    assert!(report["exact"].is_null() && report["captions"] == 0, "{report}");
}
