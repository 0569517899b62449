//! Ids, labels and random draws compared with those of current MiniMind-V's loader.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use vlm_data::{
    Batch, ChatChanges, ChatDraws, ChatTokenizer, ImageLimits, ImagePlaceholder, ImageReading,
    ImageStore, Loader, LoaderConfig, PrepareSettings, RejectReason, Role, Row, RowOptions,
    RowSource, open_source, prepare,
};

use crate::golden;

const TOKENS_PER_IMAGE: usize = 64;

#[derive(Deserialize)]
struct Expected {
    system_prompts: Vec<String>,
    max_seq_len: usize,
    cases: Vec<Case>,
    runs: Runs,
}

#[derive(Deserialize)]
struct Case {
    row: usize,
    system_prompt: Option<usize>,
    empty_think: String,
    input_ids: Vec<i64>,
    label_spans: Vec<(usize, usize)>,
}

#[derive(Deserialize)]
struct Runs {
    pretrain: Run,
}

/// Epochs and rows in which a draw of the reference changed something.
#[derive(Deserialize)]
struct Run {
    system_prompt_added: Vec<(u64, usize)>,
    empty_think_kept: Vec<(u64, usize)>,
}

fn expected() -> Expected {
    let text = std::fs::read_to_string(golden("minimind3v/expected.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn tokenizer() -> Arc<ChatTokenizer> {
    let placeholder = ImagePlaceholder::new("<|image_pad|>");
    Arc::new(ChatTokenizer::with_placeholder(&golden("minimind3v"), placeholder).unwrap())
}

fn rows() -> Arc<dyn RowSource> {
    open_source(&golden("minimind3v/rows.parquet"), None).unwrap()
}

#[test]
fn ids_and_labels_equal_those_of_the_reference_with_and_without_system_prompt_and_empty_think() {
    let (expected, tokenizer, rows) = (expected(), tokenizer(), rows());
    assert_eq!(expected.cases.len(), 51);
    for case in &expected.cases {
        let changes = ChatChanges {
            system_prompt: case.system_prompt.map(|k| expected.system_prompts[k].as_str()),
            drops_empty_think: case.empty_think == "dropped",
        };
        let row = rows.row(case.row).unwrap();
        let encoded = tokenizer
            .encode_changed_row(&row, changes, TOKENS_PER_IMAGE, expected.max_seq_len)
            .unwrap();
        let name = format!("row {} with {changes:?}", case.row);
        assert_eq!(encoded.input_ids, case.input_ids, "{name}");
        let spans: Vec<_> = encoded.supervised.iter().map(|s| (s.start, s.end)).collect();
        assert_eq!(spans, case.label_spans, "{name}");
        let whole = tokenizer.num_changed_tokens(&row.turns, changes, TOKENS_PER_IMAGE).unwrap();
        assert_eq!(whole.min(expected.max_seq_len), case.input_ids.len(), "{name}");
    }
}

fn draws(expected: &Expected) -> ChatDraws {
    ChatDraws {
        empty_think_ratio: 0.2,
        add_system_ratio: 0.2,
        system_prompts: expected.system_prompts.clone(),
    }
}

#[test]
fn draws_are_those_with_which_the_reference_was_run() {
    let (expected, rows) = (expected(), rows());
    let draws = draws(&expected);
    let (mut added, mut kept) = (Vec::new(), Vec::new());
    for (epoch, index) in (0..5).flat_map(|epoch| (0..rows.len()).map(move |row| (epoch, row))) {
        let changes = draws.of_row(LoaderConfig::default().seed, epoch, index);
        let starts_with_system = rows.turns(index).unwrap()[0].role == Role::System;
        if changes.system_prompt.is_some() && !starts_with_system {
            added.push((epoch, index));
        }
        let has_block = expected.cases.iter().any(|case| {
            (case.row, case.system_prompt) == (index, None) && case.empty_think == "dropped"
        });
        if has_block && !changes.drops_empty_think {
            kept.push((epoch, index));
        }
    }
    assert_eq!(added, expected.runs.pretrain.system_prompt_added);
    assert_eq!(kept, expected.runs.pretrain.empty_think_kept);
}

fn batches(source: &Arc<dyn RowSource>, change: impl Fn(&mut LoaderConfig)) -> Vec<Batch> {
    let mut config = LoaderConfig::default();
    config.batch_size = 4;
    config.max_seq_len = 450;
    config.tokens_per_image = TOKENS_PER_IMAGE;
    config.chat_draws = draws(&expected());
    config.bucket_window = 8;
    change(&mut config);
    let loader = Loader::new(Arc::clone(source), tokenizer(), ImageReading::Skip, config).unwrap();
    (0..3).flat_map(|epoch| loader.epoch(epoch, 0).map(Result::unwrap)).collect()
}

fn ids(batches: &[Batch]) -> Vec<(&[usize], &[i64], &[i64])> {
    batches.iter().map(|b| (&b.rows[..], &b.input_ids[..], &b.labels[..])).collect()
}

#[test]
fn batches_with_draws_are_the_same_for_any_number_of_threads_and_for_prepared_rows() {
    let folder = tempfile::tempdir().unwrap();
    let settings = PrepareSettings {
        row_options: RowOptions::default(),
        input_files: Vec::new(),
        tokenizer: tokenizer(),
        tokens_per_image: TOKENS_PER_IMAGE,
        max_seq_len: 450,
        image_store: ImageStore::Original,
        limits: ImageLimits::default(),
        rows_per_shard: 5,
        max_rejected_fraction: 0.0,
        num_workers: 1,
        output: folder.path().join("shards"),
    };
    let rows = rows();
    prepare(&rows, &settings, &mut |_, _| ()).unwrap();
    let prepared = open_source(&settings.output, None).unwrap();
    let alone = batches(&rows, |config| config.num_workers = 0);
    assert!(alone.iter().all(|batch| batch.rejected.is_empty()));
    let in_threads = batches(&rows, |config| config.num_workers = 3);
    let of_shards = batches(&prepared, |config| config.num_workers = 1);
    assert_eq!(ids(&in_threads), ids(&alone));
    assert_eq!(ids(&of_shards), ids(&alone));
    // Without draws the rows are longer, because all of them keep the blocks.
    let unchanged = batches(&prepared, |config| config.chat_draws = ChatDraws::default());
    assert_ne!(ids(&unchanged), ids(&alone));
}

#[test]
fn functions_of_a_system_turn_reach_the_template_and_others_are_refused() {
    let row = |functions: Value| {
        let turns = json!([
            {"role": "system", "content": "s", "tools": functions},
            {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"},
        ]);
        Row::from_json(&json!({ "conversations": turns }).to_string())
    };
    let prompt = |functions: Value| tokenizer().render(&row(functions).unwrap().turns, false);
    let listed = prompt(json!([{"name": "f", "at": [1, "é"]}])).unwrap();
    assert!(
        listed.starts_with(
            "<|im_start|>system\ns\n\nFunctions:\n<tools>\n{\"name\": \"f\", \"at\": [1, \"é\"]}\n</tools>"
        ),
        "{listed}"
    );
    assert_eq!(prompt(json!("[{\"name\": \"f\", \"at\": [1, \"é\"]}]")).unwrap(), listed);
    for none in [json!(null), json!([]), json!("[]"), json!("")] {
        assert!(prompt(none).unwrap().starts_with("<|im_start|>system\ns<|im_end|>\n"));
    }
    for wrong in [json!("f"), json!({"name": "f"}), json!(["f"]), json!(3)] {
        let reject = row(wrong).unwrap_err();
        assert_eq!(reject.reason, RejectReason::InvalidRow);
        assert!(reject.detail.contains("a list of functions"), "{}", reject.detail);
    }
}
