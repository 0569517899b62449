//! A model learns where its answers end, also if the chat template ends them with a token other
//! than `eos_token` of the tokenizer.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Trial, demo_start, json_lines, vlm};

const TEMPLATE: &str = "{% for m in messages %}\
    {{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}\
    {% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}";

/// Writes the demo's tokenizer with the template of a chat model and the `eos_token` of a base
/// model. Returns the id of the token that ends a turn.
fn write_tokenizer(trial: &Trial) -> u64 {
    let folder = trial.path("tokenizer");
    fs::create_dir(&folder).unwrap();
    let text = fs::read_to_string(demo_start("tokenizer.json")).unwrap();
    let mut tokenizer: Value = serde_json::from_str(&text).unwrap();
    let added = tokenizer["added_tokens"].as_array_mut().unwrap();
    let first = 1 + added.iter().map(|token| token["id"].as_u64().unwrap()).max().unwrap();
    for (id, content) in (first..).zip(["<|im_start|>", "<|im_end|>"]) {
        added.push(json!({ "id": id, "content": content, "single_word": false, "lstrip": false,
                           "rstrip": false, "normalized": false, "special": true }));
    }
    fs::write(folder.join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let config = json!({ "eos_token": "</s>", "pad_token": "<unk>", "chat_template": TEMPLATE });
    fs::write(folder.join("tokenizer_config.json"), config.to_string()).unwrap();
    first + 1
}

#[test]
fn overfitted_model_ends_its_answers() {
    let trial = Trial::new();
    let end = write_tokenizer(&trial);
    let colours = ["red", "orange", "yellow", "green", "cyan"];
    let rows: Vec<String> = colours
        .iter()
        .enumerate()
        .map(|(k, colour)| {
            json!({
                "conversations": [
                    { "role": "user", "content": "<image>\nDescribe the image." },
                    { "role": "assistant", "content": format!("A {colour} circle.") },
                    { "role": "user", "content": "What shape?" },
                    { "role": "assistant", "content": "A circle." },
                ],
                "image": format!("{k}.png"),
            })
            .to_string()
        })
        .collect();
    trial.write_rows(&rows);
    let tokenizer = trial.path("tokenizer");
    trial
        .pretrain(&[
            "--tokenizer",
            tokenizer.to_str().unwrap(),
            "--batch-size",
            "5",
            "--epochs",
            "160",
            "--learning-rate",
            "1e-2",
            "--train-lm",
            "--log-interval",
            "40",
            "--save-interval",
            "1000",
        ])
        .assert_success();
    // The loss is over "A red circle." and "A circle." of each row, each with its end token and the
    // line break after it.
    let metrics = trial.metrics();
    assert!(metrics.last().unwrap()["loss"].as_f64().unwrap() < 0.05, "{metrics:?}");

    let output = trial.path("answers.jsonl");
    vlm(&[
        "generate",
        "--device",
        "cpu",
        "--model",
        trial.path("out").to_str().unwrap(),
        "--data-path",
        trial.path("rows.jsonl").to_str().unwrap(),
        "--images-path",
        trial.path("images").to_str().unwrap(),
        "--max-new-tokens",
        "60",
        "--output",
        output.to_str().unwrap(),
    ])
    .assert_success();
    let answers = json_lines(&output);
    assert_eq!(answers.len(), 5);
    for answer in &answers {
        // Tokens after the end would be part of the text.
        assert_eq!(answer["answer"], answer["expected"], "{answer}");
    }

    // The config.json of the run, from which models are exported, names both tokens.
    let written: Value =
        serde_json::from_str(&fs::read_to_string(trial.path("out/config.json")).unwrap()).unwrap();
    assert_eq!(written["eos_token_id"], json!([2, end]));
}
