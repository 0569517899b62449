//! The tokens that are learned and those that end an answer, under the templates of the common
//! families.

use std::fs;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokenizers::Tokenizer;
use vlm_data::{ChatTokenizer, ImagePlaceholder, Role, Row, RowImage, Turn};

use crate::templates::{FAMILIES, Family};
use crate::tiny::write_tokenizer_with;

fn written(family: &Family) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    let mut config = json!({ "eos_token": family.eos, "chat_template": family.template });
    if let Some(bos) = family.bos {
        config["bos_token"] = json!(bos);
    }
    write_tokenizer_with(folder.path(), family.added, &config);
    if !family.generation_eos.is_empty() {
        let id = |token: &&str| family.added.iter().position(|(added, _)| added == token).unwrap();
        let ids: Vec<usize> = family.generation_eos.iter().map(id).collect();
        let ids = if let [id] = ids[..] { json!(id) } else { json!(ids) };
        let text = json!({ "eos_token_id": ids }).to_string();
        fs::write(folder.path().join("generation_config.json"), text).unwrap();
    }
    folder
}

fn open(folder: &TempDir) -> ChatTokenizer {
    let spellings = ["<image>", "@"].map(ImagePlaceholder::new);
    ChatTokenizer::with_first_placeholder(folder.path(), &spellings).unwrap()
}

fn turns(contents: &[&str]) -> Vec<Turn> {
    let roles = [Role::User, Role::Assistant].into_iter().cycle();
    roles.zip(contents).map(|(role, &content)| Turn::new(role, content)).collect()
}

/// The learned tokens of each span as text, special tokens too.
fn supervised(folder: &TempDir, contents: &[&str]) -> Vec<String> {
    let row = Row { turns: turns(contents), images: Vec::new() };
    let encoded = open(folder).encode_row(&row, 2, usize::MAX).unwrap();
    let spans = encoded.supervised.into_iter();
    spans.map(|span| text(folder, &encoded.input_ids[span])).collect()
}

fn text(folder: &TempDir, ids: &[i64]) -> String {
    let tokenizer = Tokenizer::from_file(folder.path().join("tokenizer.json")).unwrap();
    let ids: Vec<u32> = ids.iter().map(|&id| id as u32).collect();
    tokenizer.decode(&ids, false).unwrap()
}

/// Of each family the learned tokens of a row of two questions, and what ends an answer.
const EXPECTED: &[(&str, [&str; 2], &[&str])] = &[
    ("SmolLM2", ["Paris.<|im_end|>\n", "Blue.<|im_end|>\n"], &["<|im_end|>"]),
    (
        "SmolLM2's template, eos <|endoftext|>",
        ["Paris.<|im_end|>\n", "Blue.<|im_end|>\n"],
        &["<|endoftext|>", "<|im_end|>"],
    ),
    ("Qwen2.5 base", ["Paris.<|im_end|>\n", "Blue.<|im_end|>\n"], &["<|endoftext|>", "<|im_end|>"]),
    (
        "Qwen2.5 instruct",
        ["Paris.<|im_end|>\n", "Blue.<|im_end|>\n"],
        &["<|im_end|>", "<|endoftext|>"],
    ),
    (
        "Qwen3 base",
        ["Paris.<|im_end|>\n", "<think>\n\n</think>\n\nBlue.<|im_end|>\n"],
        &["<|endoftext|>", "<|im_end|>"],
    ),
    (
        "Qwen3 instruct",
        ["Paris.<|im_end|>\n", "<think>\n\n</think>\n\nBlue.<|im_end|>\n"],
        &["<|im_end|>", "<|endoftext|>"],
    ),
    ("Llama 3", ["Paris.<|eot_id|>", "Blue.<|eot_id|>"], &["<|eot_id|>", "<|end_of_text|>"]),
    ("Gemma", ["Paris.<end_of_turn>\n", "Blue.<end_of_turn>\n"], &["<eos>", "<end_of_turn>"]),
    ("Phi-3", ["Paris.<|end|>\n", "Blue.<|end|>\n"], &["<|endoftext|>", "<|end|>", "<|user|>"]),
    (
        "ChatML, <|im_end|> not special",
        ["Paris.<|im_end|>\n", "Blue.<|im_end|>\n"],
        &["<|endoftext|>", "<|im_end|>"],
    ),
    (
        "ChatML, last turn differs",
        ["Paris.<|im_end|>\n", "Blue.<|endoftext|>"],
        &["<|endoftext|>", "<|im_end|>"],
    ),
    ("Mistral", [" Paris.</s>", " Blue.</s>"], &["</s>"]),
    ("Vicuna", [" Paris.</s>", " Blue.</s>"], &["</s>"]),
    ("GLM-4", ["Paris.<|user|>", "Blue."], &["<|endoftext|>", "<|user|>"]),
    ("plain text", ["Paris.\n", "Blue.\n"], &["</s>"]),
    (
        "SmolVLM",
        [" Paris.<end_of_utterance>\n", " Blue.<end_of_utterance>\n"],
        &["<end_of_utterance>"],
    ),
    ("MiniMind, April 2025", ["Paris.</s>\n", "Blue.</s>\n"], &["</s>"]),
    (
        "minimind-3",
        ["<think>\n\n</think>\n\nParis.<|im_end|>\n", "<think>\n\n</think>\n\nBlue.<|im_end|>\n"],
        &["<|im_end|>"],
    ),
];

#[test]
fn an_answer_ends_as_its_template_says_and_never_in_the_next_header() {
    assert_eq!(FAMILIES.len(), EXPECTED.len());
    for (family, (name, expected, ends)) in FAMILIES.iter().zip(EXPECTED) {
        assert_eq!(family.name, *name);
        let folder = written(family);
        let contents = ["Where?", "Paris.", "Which colour?", "Blue."];
        let found = supervised(&folder, &contents);
        let tokenizer = open(&folder);
        let stops: Vec<_> =
            tokenizer.stop_token_ids().iter().map(|&id| text(&folder, &[id])).collect();
        println!("{name:40} {found:?} stops at {stops:?}");
        assert_eq!(found, expected, "{name}");
        assert_eq!(stops, *ends, "{name}");
        // What a row of the first question alone teaches is what the last answer of two does.
        let alone = supervised(&folder, &["Which colour?", "Blue."]);
        assert_eq!(alone, expected[1..], "{name}");
        // White space around the texts moves no end.
        let spaced = supervised(&folder, &["Where? ", " Paris.\n", "Which colour?", "Blue. "]);
        for (spaced, expected) in spaced.iter().zip(expected) {
            let without = |text: &str| text.replace([' ', '\n'], "");
            assert_eq!(without(spaced), without(expected), "{name}");
        }
    }
}

#[test]
fn a_prompt_ends_where_its_answer_begins() {
    for (family, (name, expected, _)) in FAMILIES.iter().zip(EXPECTED) {
        // What it writes behind a turn depends on whether it is the last one so far.
        if *name == "ChatML, last turn differs" {
            continue;
        }
        let folder = written(family);
        let tokenizer = open(&folder);
        let whole = turns(&["Where?", "Paris.", "Which colour?", "Blue."]);
        let (ids, _) = tokenizer.encode_prompt(&whole[..3], 0, 2).unwrap();
        let prompt = text(&folder, &ids);
        let encoded =
            tokenizer.encode_row(&Row { turns: whole, images: Vec::new() }, 2, 9999).unwrap();
        let row = text(&folder, &encoded.input_ids);
        // minimind-3's prompt writes the empty thinking block that is learned.
        let written = prompt.strip_suffix("<think>\n\n</think>\n\n").unwrap_or(&prompt);
        let answer = row.strip_prefix(written).unwrap_or_else(|| panic!("{name}: {prompt}"));
        assert!(answer.starts_with(expected[1]), "{name}: {answer}");
    }
}

#[test]
fn reasoning_that_a_template_drops_is_not_learned() {
    let thought = |answer: &str| format!("<think>\nhm\n</think>\n\n{answer}");
    let (first, last) = (thought("Paris."), thought("Blue."));
    for (name, expected) in [
        ("Qwen3 instruct", ["Paris.<|im_end|>\n", "<think>\nhm\n</think>\n\nBlue.<|im_end|>\n"]),
        (
            "minimind-3",
            [
                "<think>\nhm\n</think>\n\nParis.<|im_end|>\n",
                "<think>\nhm\n</think>\n\nBlue.<|im_end|>\n",
            ],
        ),
    ] {
        let family = FAMILIES.iter().find(|family| family.name == name).unwrap();
        let folder = written(family);
        let contents = ["Where?", first.as_str(), "Which <think> colour?", last.as_str()];
        assert_eq!(supervised(&folder, &contents), expected, "{name}");
    }
}

#[test]
fn images_are_given_as_parts_where_the_template_wants_them() {
    let family = FAMILIES.iter().find(|family| family.name == "SmolVLM").unwrap();
    let folder = written(family);
    let tokenizer = open(&folder);
    let row = Row {
        turns: turns(&["<image>Where?", "Paris.", "And <image>?", "Blue."]),
        images: vec![RowImage::named("a.png"), RowImage::named("b.png")],
    };
    let encoded = tokenizer.encode_row(&row, 2, 9999).unwrap();
    assert_eq!(
        text(&folder, &encoded.input_ids),
        "<|im_start|>User:<image><image>Where?<end_of_utterance>\nAssistant: \
         Paris.<end_of_utterance>\nUser: And <image><image>?<end_of_utterance>\nAssistant: \
         Blue.<end_of_utterance>\n"
    );
    for &start in &encoded.image_starts {
        assert_eq!(encoded.input_ids[start..start + 2], [2, 2]);
    }
    assert_eq!(encoded.image_starts.len(), 2);
    let (ids, starts) = tokenizer.encode_prompt(&row.turns[..1], 1, 2).unwrap();
    assert_eq!(
        text(&folder, &ids),
        "<|im_start|>User:<image><image>Where?<end_of_utterance>\nAssistant:"
    );
    assert_eq!(starts, encoded.image_starts[..1]);
}

#[test]
fn special_tokens_are_read_from_the_other_files_where_the_configuration_lacks_them() {
    let family = FAMILIES.iter().find(|family| family.name == "Mistral").unwrap();
    let folder = written(family);
    let path = |name: &str| folder.path().join(name);
    let config = json!({ "chat_template": family.template, "eos_token": null });
    fs::write(path("tokenizer_config.json"), config.to_string()).unwrap();
    let rendered = || {
        let tokenizer = ChatTokenizer::from_dir(folder.path()).map_err(|e| e.to_string())?;
        tokenizer.render(&turns(&["q", "a"]), false).map_err(|e| e.to_string())
    };
    fs::remove_file(path("generation_config.json")).unwrap();
    let error = rendered().unwrap_err();
    assert!(error.contains("special_tokens_map.json") && error.contains("eos_token"), "{error}");
    let generation = json!({ "bos_token_id": 0, "eos_token_id": [1, 0] });
    fs::write(path("generation_config.json"), generation.to_string()).unwrap();
    assert_eq!(rendered().unwrap(), "<s> [INST] q [/INST] a</s>");
    let map = json!({ "bos_token": { "content": "</s>" }, "eos_token": "<s>" });
    fs::write(path("special_tokens_map.json"), map.to_string()).unwrap();
    assert_eq!(rendered().unwrap(), "</s> [INST] q [/INST] a<s>");
    fs::remove_file(path("generation_config.json")).unwrap();
    let no_bos = json!({ "eos_token": "</s>" });
    fs::write(path("special_tokens_map.json"), no_bos.to_string()).unwrap();
    assert_eq!(rendered().unwrap(), " [INST] q [/INST] a</s>");
}

#[test]
fn an_image_tag_in_an_answer_to_a_question_is_text() {
    let family = FAMILIES.iter().find(|family| family.name == "Mistral").unwrap();
    let folder = written(family);
    let tokenizer = open(&folder);
    let row = |contents: &[&str], num_images: usize| Row {
        turns: turns(contents),
        images: (0..num_images).map(|k| RowImage::named(k.to_string())).collect(),
    };
    let encoded =
        tokenizer.encode_row(&row(&["<image> read", "![](<image>) x"], 1), 2, 999).unwrap();
    assert_eq!(text(&folder, &encoded.input_ids), "<s> [INST] @@ read [/INST] ![](<image>) x</s>");
    assert_eq!(encoded.image_starts.len(), 1);
    let encoded = tokenizer.encode_row(&row(&["draw", "<image> x"], 0), 2, 999).unwrap();
    assert_eq!(text(&folder, &encoded.input_ids), "<s> [INST] draw [/INST] <image> x</s>");
    for (contents, num_images, said) in [
        (["draw", "<image> x"], 1, "1 image, but 0 <image>"),
        (["<image>", "<image>"], 3, "3 images, but 1 <image>"),
    ] {
        let reject = tokenizer.encode_row(&row(&contents, num_images), 2, 999).unwrap_err();
        assert!(reject.detail.contains(said), "{}", reject.detail);
    }
}

#[test]
fn rows_prepared_under_the_first_rule_keep_their_hash_and_others_do_not() {
    // By eos alone the spans of these two are what they were.
    for (name, is_first_rule) in [
        ("MiniMind, April 2025", true),
        ("SmolLM2", true),
        ("Qwen2.5 base", false),
        ("Llama 3", false),
    ] {
        let family = FAMILIES.iter().find(|family| family.name == name).unwrap();
        let folder = written(family);
        let read = |file: &str| fs::read_to_string(folder.path().join(file)).unwrap();
        let mut tokenizer: Value = serde_json::from_str(&read("tokenizer.json")).unwrap();
        tokenizer["truncation"] = Value::Null;
        tokenizer["post_processor"]["trim_offsets"] = json!(false);
        let mut hasher = blake3::Hasher::new();
        let parts = [
            tokenizer.to_string(),
            family.template.to_owned(),
            family.bos.unwrap_or_default().to_owned(),
            family.eos.to_owned(),
            String::new(),
        ];
        for part in parts {
            hasher.update(&(part.len() as u64).to_le_bytes());
            hasher.update(part.as_bytes());
        }
        let first = hasher.finalize().to_hex().to_string();
        assert_eq!(open(&folder).hash() == first, is_first_rule, "{name}");
    }
}
