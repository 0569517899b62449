//! Ids, supervised spans and image positions compared with those of the reference, with MiniMind's
//! tokenizer. That tokenizer may not be redistributed: without it these tests print so and pass.

use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::{Value, json};
use vlm_data::{ChatTokenizer, EncodedRow, Reject, RejectReason, Role, Row, RowImage, Turn};

use crate::golden;

const TOKENS_PER_IMAGE: usize = 196;

#[derive(Deserialize)]
struct Cases {
    cases: Vec<Case>,
}

#[derive(Deserialize)]
struct Case {
    name: String,
    conversations: Value,
    prompt: String,
    n_tokens_untruncated: usize,
    input_ids_640: Vec<i64>,
    loss_mask_spans_640: Vec<(usize, usize)>,
    image_starts_640: Vec<usize>,
    input_ids_128: Vec<i64>,
    loss_mask_spans_128: Vec<(usize, usize)>,
}

impl Case {
    /// The row with its roles as they are written.
    fn row(&self) -> Row {
        row(&self.conversations)
    }

    /// The row as the reference takes it: roles alternate, whatever is written.
    fn row_without_roles(&self) -> Row {
        let mut conversations = self.conversations.clone();
        for turn in conversations.as_array_mut().unwrap() {
            turn.as_object_mut().unwrap().remove("role");
        }
        row(&conversations)
    }
}

fn row(conversations: &Value) -> Row {
    let num_images = conversations.to_string().matches("<image>").count();
    let images: Vec<_> = (0..num_images).map(|k| format!("{k}.jpg")).collect();
    Row::from_json(&json!({ "conversations": conversations, "image": images }).to_string()).unwrap()
}

/// MiniMind's tokenizer is others' work and not part of this repository: it is looked for beside the
/// checkout, or where `VLM_MINIMIND_TOKENIZER` says. `cargo xtask test` runs the tests of this file if
/// it is there.
fn minimind() -> ChatTokenizer {
    let beside = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../../shared/minimind_tokenizer");
    let dir = std::env::var_os("VLM_MINIMIND_TOKENIZER").map_or(beside, PathBuf::from);
    ChatTokenizer::from_dir(&dir).unwrap()
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string(golden("tokenize/cases.json")).unwrap();
    serde_json::from_str::<Cases>(&text).unwrap().cases
}

fn case(name: &str) -> Case {
    cases().into_iter().find(|case| case.name == name).unwrap()
}

fn encode(
    tokenizer: &ChatTokenizer,
    row: &Row,
    max_seq_len: usize,
) -> Result<EncodedRow, RejectReason> {
    tokenizer.encode_row(row, TOKENS_PER_IMAGE, max_seq_len).map_err(|Reject { reason, .. }| reason)
}

fn spans(encoded: &EncodedRow) -> Vec<(usize, usize)> {
    encoded.supervised.iter().map(|span| (span.start, span.end)).collect()
}

/// Cases in which the reference supervises or places what it should not; each has a test below.
const DEFECTS: [&str; 3] = ["user_only", "special_tokens_in_text", "adjacent_images"];

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn prompts_are_the_references() {
    let tokenizer = minimind();
    assert_eq!(tokenizer.vocab_size(), 6400);
    assert_eq!(tokenizer.image_token_id(), 34);
    assert_eq!((tokenizer.pad_token_id(), tokenizer.eos_token_id()), (0, 2));
    let image = "@".repeat(TOKENS_PER_IMAGE);
    for case in cases() {
        let prompt = tokenizer.render(&case.row_without_roles().turns, false).unwrap();
        assert_eq!(prompt.replace("<image>", &image), case.prompt, "{}", case.name);
    }
}

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn ids_spans_and_places_are_the_references() {
    let tokenizer = minimind();
    for case in cases().iter().filter(|case| case.name != "user_only") {
        let name = &case.name;
        let row = case.row_without_roles();
        let whole = encode(&tokenizer, &row, usize::MAX).unwrap();
        assert_eq!(whole.input_ids.len(), case.n_tokens_untruncated, "{name}");
        for (max_seq_len, ids, expected) in [
            (640, &case.input_ids_640, &case.loss_mask_spans_640),
            (128, &case.input_ids_128, &case.loss_mask_spans_128),
        ] {
            assert_eq!(&whole.input_ids[..max_seq_len.min(whole.input_ids.len())], ids, "{name}");
            let is_cut = |&start: &usize| start + TOKENS_PER_IMAGE >= max_seq_len;
            match encode(&tokenizer, &row, max_seq_len) {
                Err(RejectReason::CutThroughImage) => {
                    assert!(whole.image_starts.iter().any(is_cut), "{name} at {max_seq_len}");
                }
                Err(RejectReason::NoSupervisedToken) => assert!(expected.is_empty(), "{name}"),
                Err(other) => panic!("{name} at {max_seq_len}: {other}"),
                Ok(encoded) => {
                    assert_eq!(&encoded.input_ids, ids, "{name}");
                    if !DEFECTS.contains(&name.as_str()) {
                        assert_eq!(&spans(&encoded), expected, "{name} at {max_seq_len}");
                        assert_eq!(encoded.image_starts, case.image_starts_640, "{name}");
                    }
                }
            }
        }
    }
}

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn user_only_supervises_nothing_and_is_rejected() {
    let tokenizer = minimind();
    let case = case("user_only");
    let reject = encode(&tokenizer, &case.row(), 640);
    assert_eq!(reject, Err(RejectReason::NoSupervisedToken));
    // The same ids serve to ask for the answer.
    let (ids, starts) = tokenizer.encode_prompt(&case.row().turns, 1, TOKENS_PER_IMAGE).unwrap();
    assert_eq!(ids, case.input_ids_640);
    assert_eq!(starts, case.image_starts_640);
}

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn special_tokens_in_text_do_not_end_or_begin_an_answer() {
    let tokenizer = minimind();
    let case = case("special_tokens_in_text");
    assert_eq!(case.loss_mask_spans_640, [(237, 238), (243, 252)]);
    let encoded = encode(&tokenizer, &case.row(), 640).unwrap();
    assert_eq!(encoded.input_ids, case.input_ids_640);
    // From the token after the header's newline to the prompt's last newline.
    assert_eq!(spans(&encoded), [(243, 256)]);
}

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn adjacent_images_are_two() {
    let tokenizer = minimind();
    let case = case("adjacent_images");
    let encoded = encode(&tokenizer, &case.row(), 640).unwrap();
    assert_eq!(encoded.image_starts, [27, 27 + TOKENS_PER_IMAGE]);
    assert_eq!(spans(&encoded), case.loss_mask_spans_640);
}

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn role_field_ignored_by_the_reference_is_honoured() {
    let tokenizer = minimind();
    let row = case("role_field_ignored").row();
    assert_eq!(row.turns[0].role, Role::Assistant);
    let encoded = encode(&tokenizer, &row, 640).unwrap();
    let supervised: Vec<_> = encoded
        .supervised
        .iter()
        .map(|span| tokenizer.decode(&encoded.input_ids[span.clone()]))
        .collect();
    // The image in the answer is shown, not learned.
    assert_eq!(supervised, ["\nI am really the user\n"]);
    assert_eq!(encoded.supervised[0].start, encoded.image_starts[0] + TOKENS_PER_IMAGE);
}

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn system_role_ignored_by_the_reference_is_honoured() {
    let tokenizer = minimind();
    let row = case("system_role_ignored").row();
    let prompt = tokenizer.render(&row.turns, false).unwrap();
    assert_eq!(prompt, "<s>system\nbe brief <image></s>\nok</s>\n");
    let encoded = encode(&tokenizer, &row, 640).unwrap();
    let span = encoded.supervised[0].clone();
    assert_eq!(tokenizer.decode(&encoded.input_ids[span.clone()]), "ok\n");
    assert_eq!(span.end, encoded.input_ids.len());
}

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn at_signs_apart_from_images_are_text_and_joined_to_one_are_not() {
    let tokenizer = minimind();
    let row = |question: &str| Row {
        turns: vec![Turn::new(Role::User, question), Turn::new(Role::Assistant, "a@b.com")],
        images: vec![RowImage::named("a.jpg")],
    };
    assert!(encode(&tokenizer, &row("@@@ <image> mail me@home.org"), 640).is_ok());
    for question in ["@<image>", "<image>@@@", &format!("<image> {}", "@".repeat(196))] {
        let reject = encode(&tokenizer, &row(question), 640);
        assert_eq!(reject, Err(RejectReason::PlaceholderInText), "{question}");
    }
}

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn images_and_placeholders_must_be_as_many() {
    let tokenizer = minimind();
    let mut row = case("three_placeholders").row();
    row.images.pop();
    assert_eq!(encode(&tokenizer, &row, 640), Err(RejectReason::PlaceholderWithoutImage));
    row.images = (0..4).map(|k| RowImage::named(k.to_string())).collect();
    assert_eq!(encode(&tokenizer, &row, 640), Err(RejectReason::ImageWithoutPlaceholder));
    let reject = tokenizer.encode_prompt(&row.turns, 2, TOKENS_PER_IMAGE).unwrap_err();
    assert_eq!(reject.reason, RejectReason::PlaceholderWithoutImage);
}

#[test]
#[ignore = "needs MiniMind's tokenizer (VLM_MINIMIND_TOKENIZER)"]
fn a_cut_after_the_image_needs_a_token_to_predict() {
    let tokenizer = minimind();
    let row = case("image_in_second_turn").row();
    // The image is tokens 54 to 250; the model's input lacks the last id.
    assert_eq!(encode(&tokenizer, &row, 250), Err(RejectReason::CutThroughImage));
    assert_eq!(spans(&encode(&tokenizer, &row, 251).unwrap()), [(35, 44)]);
    assert_eq!(encode(&tokenizer, &row, 40), Err(RejectReason::CutThroughImage));
}
