//! Language models and encoders of other families: training, generation and export.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::support::{Trial, golden, vlm};

/// Makes random weights of a language model for the demo's tokenizer with `vlm init`.
fn init(trial: &Trial, name: &str, more: &[&str]) -> PathBuf {
    let folder = trial.path(name);
    let mut args = vec!["init", "--out-dir", folder.to_str().unwrap(), "--vision", "none"];
    args.extend(["--dim", "32", "--n-layers", "2", "--n-heads", "4", "--vocab-size", "689"]);
    args.extend(more);
    vlm(&args).assert_success();
    folder
}

/// The small SigLIP of the golden files, with images of 30 pixels and 16 patches.
fn siglip(trial: &Trial) -> PathBuf {
    let folder = trial.path("siglip");
    fs::create_dir_all(&folder).unwrap();
    for name in ["config.json", "model.safetensors"] {
        fs::copy(golden("siglip").join(name), folder.join(name)).unwrap();
    }
    let preprocessor = json!({
        "image_processor_type": "SiglipImageProcessor",
        "size": {"height": 30, "width": 30},
    });
    fs::write(folder.join("preprocessor_config.json"), preprocessor.to_string()).unwrap();
    folder
}

/// Names of the tensors in a file, each with the name of the tensor whose memory it shares.
fn names(path: &Path) -> Vec<(String, Option<String>)> {
    let ended = vlm(&["inspect", "--json", path.to_str().unwrap()]);
    ended.assert_success();
    let rows = ended.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let text = |value: &Value| value.as_str().map(str::to_owned);
    rows.map(|row| (text(&row["name"]).unwrap(), text(&row["shared_with"]))).collect()
}

fn losses(trial: &Trial) -> Vec<f64> {
    trial.metrics().iter().map(|line| line["loss"].as_f64().unwrap()).collect()
}

/// Trains on the eight captions and returns the losses.
fn learn(trial: &Trial, lm: &Path, epochs: &str, more: &[&str]) -> Vec<f64> {
    let vision = siglip(trial);
    let mut args = vec!["--lm", lm.to_str().unwrap(), "--vision", vision.to_str().unwrap()];
    args.extend(["--batch-size", "8", "--train-lm", "--learning-rate", "5e-3"]);
    args.extend(["--epochs", epochs, "--log-interval", "5", "--save-interval", "1000"]);
    args.extend(more);
    trial.pretrain(&args).assert_success();
    losses(trial)
}

#[test]
fn a_llama_with_a_siglip_is_trained_used_and_exported() {
    let trial = Trial::new();
    let lm = init(&trial, "llama", &["--family", "llama", "--n-kv-heads", "2"]);
    let losses = learn(&trial, &lm, "200", &[]);
    assert!(losses[0] > 4.0, "{losses:?}");
    // All prompts are equal, so the captions can be learned only from the images.
    assert!(losses.last().unwrap() < &0.1, "{losses:?}");

    let out = trial.path("out");
    let saved = names(&out.join("pretrain_vlm_32.pth"));
    let embeddings = Some("model.embed_tokens.weight".to_owned());
    assert!(saved.contains(&("lm_head.weight".into(), embeddings)), "{saved:?}");
    for name in ["model.layers.1.self_attn.q_proj.weight", "vision_proj.mlp.3.weight"] {
        assert!(saved.contains(&(name.into(), None)), "{name} in {saved:?}");
    }
    let config: Value =
        serde_json::from_slice(&fs::read(out.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["model_type"], &config["hidden_size"]), (&json!("llama"), &json!(32)));
    assert_eq!(config["projector"], json!({"kind": "mlp", "tokens_per_image": 16}));

    let hf = trial.path("exports/hf");
    vlm(&["convert", out.to_str().unwrap(), "--export-hf", hf.to_str().unwrap()]).assert_success();
    let mut files: Vec<_> = fs::read_dir(&hf)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    files.sort();
    assert_eq!(
        files,
        [
            "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json",
            "tokenizer_config.json", "vision",
        ]
    );
    let generated = |model: &Path| {
        let image = trial.path("images/3.png");
        let ended = vlm(&[
            "generate",
            "--model",
            model.to_str().unwrap(),
            "--image",
            image.to_str().unwrap(),
            "--prompt",
            "<image>\nDescribe the image.",
            "--device",
            "cpu",
        ]);
        ended.assert_success();
        ended.stdout
    };
    assert!(generated(&out).contains("A green circle."), "{}", generated(&out));
    // The exported folder does not need the original encoder.
    fs::rename(trial.path("siglip"), trial.path("elsewhere")).unwrap();
    assert!(generated(&hf).contains("A green circle."), "{}", generated(&hf));

    // A run that starts from the exported folder has all its parts and its trained weights.
    let next = Trial::new();
    let mut command = crate::support::program();
    command.args(["pretrain", "--lm", hf.to_str().unwrap(), "--device", "cpu"]);
    command.arg("--data-path").arg(next.path("rows.jsonl"));
    command.arg("--images-path").arg(next.path("images"));
    command.arg("--out-dir").arg(next.path("out"));
    command.args(["--batch-size", "8", "--max-steps", "1", "--log-interval", "1"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(self::losses(&next)[0] < 0.1, "{:?}", self::losses(&next));
}

#[test]
fn current_minimind_with_experts_is_trained_and_recognised_by_tensor_names() {
    let trial = Trial::new();
    let family = ["--family", "minimind3", "--n-kv-heads", "4", "--use-moe"];
    let lm = init(&trial, "minimind3", &family);
    fs::remove_file(lm.join("config.json")).unwrap();
    let losses = learn(&trial, &lm.join("lm_32_moe.pth"), "20", &[]);
    assert!(losses.last().unwrap() < &(losses[0] - 1.0), "{losses:?}");
    let saved = names(&trial.path("out/pretrain_vlm_32_moe.pth"));
    for name in [
        "model.layers.0.mlp.experts.3.gate_proj.weight",
        "model.layers.0.mlp.gate.weight",
        "model.layers.1.self_attn.q_norm.weight",
        "vision_proj.mlp.0.bias",
    ] {
        assert!(saved.contains(&(name.into(), None)), "{name} in {saved:?}");
    }
    let config: Value =
        serde_json::from_slice(&fs::read(trial.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["model_type"], "minimind-v");
    assert_eq!((&config["num_experts"], &config["use_moe"]), (&json!(4), &json!(true)));
    assert_eq!(
        (&config["image_token_len"], &config["image_hidden_size"]),
        (&json!(16), &json!(32))
    );
}

#[test]
fn a_trained_encoder_is_saved_resumed_and_used() {
    let lm_args = ["--family", "llama", "--n-kv-heads", "2"];
    let (whole, resumed) = (Trial::new(), Trial::new());
    let start = init(&whole, "llama", &lm_args);
    let options = ["--train-vision", "--save-interval", "2", "--log-interval", "1"];
    let run = |trial: &Trial, more: &[&str]| {
        let vision = siglip(trial);
        let mut args = vec!["--lm", start.to_str().unwrap(), "--vision", vision.to_str().unwrap()];
        args.extend(options);
        args.extend(["--epochs", "3"]);
        args.extend(more);
        trial.pretrain(&args).assert_success();
    };
    run(&whole, &[]);
    run(&resumed, &["--max-steps", "3"]);
    run(&resumed, &["--resume", "auto"]);
    assert_eq!(losses(&whole).len(), 6);
    assert_eq!(losses(&whole), losses(&resumed));
    let encoder = |trial: &Trial, folder: &str| {
        fs::read(trial.path(folder).join("model.safetensors")).unwrap()
    };
    assert_eq!(encoder(&whole, "out/vision"), encoder(&resumed, "out/vision"));
    let (own, original) = (names(&whole.path("out/vision")), names(&whole.path("siglip")));
    assert!(own.len() == 37 && own.iter().all(|name| original.contains(name)), "{own:?}");
    // Evaluation uses the trained encoder, not the original one.
    let evaluate = |more: &[&str]| {
        let (out, rows, images) =
            (whole.path("out"), whole.path("rows.jsonl"), whole.path("images"));
        let mut args = vec!["eval", "--json", "--device", "cpu", "--max-rows", "0"];
        args.extend(["--model", out.to_str().unwrap(), "--data-path", rows.to_str().unwrap()]);
        args.extend(["--images-path", images.to_str().unwrap()]);
        args.extend(more);
        let ended = vlm(&args);
        ended.assert_success();
        serde_json::from_str::<Value>(&ended.stdout).unwrap()["loss"].as_f64().unwrap()
    };
    let first = whole.path("siglip");
    let trained = whole.path("out/vision");
    assert_eq!(evaluate(&[]), evaluate(&["--vision", trained.to_str().unwrap()]));
    assert_ne!(evaluate(&[]), evaluate(&["--vision", first.to_str().unwrap()]));
}

#[test]
fn incompatible_models_are_refused_before_anything_is_written() {
    let trial = Trial::new();
    let lm = init(&trial, "llama", &["--family", "llama", "--n-kv-heads", "2"]);
    let refused = |more: &[&str], parts: &[&str]| {
        let mut args = vec!["--lm", lm.to_str().unwrap()];
        args.extend(more);
        trial.pretrain(&args).assert_error(2, parts);
        assert!(!trial.path("out").exists());
    };
    refused(&["--n-kv-heads", "4"], &["n-kv-heads 2", "pass --n-kv-heads 2"]);
    refused(&["--image-token", "two words"], &["\"two words\"", "single token"]);
    // 196 patches are not a multiple of 64.
    refused(&["--projector", "merged-mlp"], &["64 tokens", "196"]);
    let mut config: Value =
        serde_json::from_slice(&fs::read(lm.join("config.json")).unwrap()).unwrap();
    config["model_type"] = json!("gpt2");
    fs::write(lm.join("config.json"), config.to_string()).unwrap();
    refused(&[], &["config.json", "\"gpt2\"", "supported: llama"]);
}
