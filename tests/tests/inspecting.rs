//! `vlm inspect ROWS --row N`: what the model sees of a row.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use serde_json::{Value, json};
use vlm_data::{
    ChatTokenizer, ImageLimits, ImageProcessor, ImageStore, PrepareSettings, RowOptions,
    open_source, prepare,
};

use crate::support::{Ended, Trial, demo_start, golden, row, vlm};

/// Runs `vlm inspect DATA --row N` with the tokenizer and the encoder of the trials.
fn inspect(trial: &Trial, data: &str, row: usize, more: &[&str]) -> Ended {
    let (data, images) = (trial.path(data), trial.path("images"));
    let (tokenizer, vision) = (demo_start(""), golden("vision_tower"));
    let row = row.to_string();
    let text = |path: &Path| path.to_str().unwrap().to_owned();
    let (data, images, tokenizer, vision) =
        (text(&data), text(&images), text(&tokenizer), text(&vision));
    let mut args = vec!["inspect", &data, "--row", &row, "--images-path", &images];
    args.extend(["--tokenizer", &tokenizer, "--vision", &vision]);
    args.extend(more);
    vlm(&args)
}

fn inspected(trial: &Trial, data: &str, row: usize, more: &[&str]) -> Value {
    let ended = inspect(trial, data, row, &[more, &["--json"]].concat());
    ended.assert_success();
    serde_json::from_str(&ended.stdout).unwrap()
}

/// Writes the rows of the trial in other forms.
fn write_forms(trial: &Trial) {
    let rows = fs::read_to_string(trial.path("rows.jsonl")).unwrap();
    let list: Vec<&str> = rows.lines().collect();
    fs::write(trial.path("list.json"), format!("[{}]", list.join(",\n"))).unwrap();
    let settings = PrepareSettings {
        row_options: RowOptions::default(),
        input_files: Vec::new(),
        tokenizer: Arc::new(ChatTokenizer::from_dir(&demo_start("")).unwrap()),
        tokens_per_image: 196,
        max_seq_len: 640,
        image_store: ImageStore::Original,
        limits: ImageLimits::default(),
        rows_per_shard: 5,
        max_rejected_fraction: 1.0,
        num_workers: 1,
        output: trial.path("shards"),
    };
    let source = open_source(&trial.path("rows.jsonl"), Some(&trial.path("images"))).unwrap();
    prepare(&source, &settings, &mut |_, _| ()).unwrap();
}

#[test]
fn a_row_is_shown_with_its_tokens_its_answer_and_its_image() {
    let trial = Trial::new();
    write_forms(&trial);
    let shown = inspected(&trial, "rows.jsonl", 3, &[]);
    assert_eq!((&shown["row"], &shown["location"]), (&json!(3), &json!("rows.jsonl:4")));
    let array = |key: &str| shown[key].as_array().unwrap().clone();
    let (ids, tokens, mask) = (array("input_ids"), array("tokens"), array("supervised"));
    assert_eq!((ids.len(), ids.len()), (tokens.len(), mask.len()));
    let learned: Vec<i64> = ids
        .iter()
        .zip(&mask)
        .filter(|(_, mask)| mask.as_bool().unwrap())
        .map(|(id, _)| id.as_i64().unwrap())
        .collect();
    let tokenizer = ChatTokenizer::from_dir(&demo_start("")).unwrap();
    assert_eq!(tokenizer.decode(&learned).trim(), "A green circle.");
    assert_eq!(shown["num_supervised"], learned.len());
    assert!(shown["text"].as_str().unwrap().contains("Describe the image."), "{shown}");
    let image = &shown["images"][0];
    assert_eq!(
        (&image["name"], &image["width"], &image["height"]),
        (&json!("3.png"), &json!(64), &json!(48))
    );
    let first = image["first_token"].as_u64().unwrap() as usize;
    assert_eq!(ids[first..first + 196], vec![json!(tokenizer.image_token_id()); 196]);
    assert_eq!((&shown["tokens_per_image"], &shown["truncated"]), (&json!(196), &json!(false)));

    // The same row in another form has the same tokens.
    for data in ["list.json", "shards"] {
        let other = inspected(&trial, data, 3, &[]);
        for key in ["input_ids", "supervised", "text", "num_tokens_before_truncation"] {
            assert_eq!(other[key], shown[key], "{data}: {key}");
        }
    }
    let limit = (ids.len() - 2).to_string();
    let cut = inspected(&trial, "rows.jsonl", 3, &["--max-seq-len", &limit]);
    assert_eq!((&cut["truncated"], &cut["num_tokens"]), (&json!(true), &json!(ids.len() - 2)));
    assert_eq!(cut["num_tokens_before_truncation"], ids.len());
}

#[test]
fn supervised_text_is_marked_without_escape_sequences_where_there_is_no_terminal() {
    let trial = Trial::new();
    trial.write_rows(&[row("0.png", "A \u{1b}[2Jred circle.")]);
    let ended = inspect(&trial, "rows.jsonl", 0, &[]);
    ended.assert_success();
    let text = &ended.stdout;
    assert!(!text.contains('\u{1b}'), "{text:?}");
    assert!(text.contains("⟦A \\u{1b}[2Jred circle."), "{text}");
    assert!(text.contains("[image 0: 196 × @]") && text.contains("64 × 48 pixels"), "{text}");
}

#[test]
fn the_image_that_the_encoder_sees_is_written() {
    let trial = Trial::new();
    let output = trial.path("seen.png");
    inspect(&trial, "rows.jsonl", 5, &["--image-out", output.to_str().unwrap()]).assert_success();
    let seen = image::open(&output).unwrap().into_rgb8();
    let processor = golden("vision_tower/preprocessor_config.json");
    let processor = ImageProcessor::from_file(&processor).unwrap();
    let bytes = fs::read(trial.path("images/5.png")).unwrap();
    assert_eq!(seen.dimensions(), (224, 224));
    assert!(seen.into_raw() == processor.crop_u8(&bytes).unwrap());

    let folder = trial.path("seen");
    inspect(&trial, "rows.jsonl", 5, &["--image-out", folder.to_str().unwrap()]).assert_success();
    assert!(folder.join("row-5-image-0.png").is_file());
}

#[test]
fn a_rejected_row_is_an_error_with_its_location_and_reason() {
    let trial = Trial::new();
    trial.write_rows(&[row("0.png", "A red circle."), row("none.png", "A circle.")]);
    inspect(&trial, "rows.jsonl", 1, &[])
        .assert_error(1, &["row 1", "rows.jsonl:2", "missing-image", "none.png"]);
    inspect(&trial, "rows.jsonl", 0, &["--max-seq-len", "100"])
        .assert_error(1, &["rows.jsonl:1", "cut-through-image", "--max-seq-len 100"]);
    inspect(&trial, "rows.jsonl", 2, &[]).assert_error(2, &["--row 2", "2 rows", "0 to 1"]);
    let rows = trial.path("rows.jsonl");
    vlm(&["inspect", rows.to_str().unwrap(), "--row", "0"])
        .assert_error(2, &["--tokenizer", "--model"]);
    vlm(&["inspect", rows.to_str().unwrap(), "--max-seq-len", "9"]).assert_error(2, &["--row"]);
}

#[test]
fn the_settings_of_a_run_are_used() {
    let trial = Trial::new();
    trial.pretrain(&["--max-steps", "1"]).assert_success();
    let (rows, images) = (trial.path("rows.jsonl"), trial.path("images"));
    let out = trial.path("out");
    let args = ["inspect", rows.to_str().unwrap(), "--row", "0", "--json", "--images-path"];
    let model = [images.to_str().unwrap(), "--model", out.to_str().unwrap()];
    let ended = vlm(&[&args[..], &model].concat());
    ended.assert_success();
    let shown: Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((&shown["max_seq_len"], &shown["tokens_per_image"]), (&json!(288), &json!(196)));
    assert_eq!(shown["input_ids"], inspected(&trial, "rows.jsonl", 0, &[])["input_ids"]);
}
