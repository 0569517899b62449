//! Answers as text, token by token.

use vlm_data::{ChatTokenizer, Role, TextStream, Turn};

use crate::tiny::{Folder, TOKENS_PER_IMAGE};

fn tokenizer() -> ChatTokenizer {
    ChatTokenizer::from_dir(Folder::new().path()).unwrap()
}

/// Ids of `text`; in this tokenizer each byte is a token.
fn ids(tokenizer: &ChatTokenizer, text: &str) -> Vec<i64> {
    let empty = Turn::new(Role::User, "");
    let whole = Turn::new(Role::User, text);
    let encode = |turn: Turn| tokenizer.encode_prompt(&[turn], 0, TOKENS_PER_IMAGE).unwrap().0;
    let (around, all) = (encode(empty), encode(whole));
    let before = around.iter().zip(&all).take_while(|(a, b)| a == b).count();
    all[before..before + text.len()].to_vec()
}

#[test]
fn characters_of_several_tokens_are_returned_whole() {
    let tokenizer = tokenizer();
    let text = "a é 你好 👩‍👧 z";
    let mut stream = TextStream::default();
    let pieces: Vec<String> =
        ids(&tokenizer, text).into_iter().map(|id| stream.push(&tokenizer, id)).collect();
    assert!(pieces.iter().all(|piece| !piece.contains('\u{FFFD}')), "{pieces:?}");
    assert!(pieces.iter().all(|piece| piece.chars().count() <= 1), "nothing is held back");
    assert_eq!(pieces.concat() + &stream.finish(&tokenizer), text);
}

#[test]
fn bytes_that_are_no_text_end_as_the_whole_answer_has_them() {
    let tokenizer = tokenizer();
    let whole = ids(&tokenizer, "好 x好");
    // The first character lost its end, the last one too.
    let broken: Vec<i64> = [&whole[..2], &whole[3..whole.len() - 1]].concat();
    let mut stream = TextStream::default();
    let mut text = String::new();
    for &id in &broken {
        text += &stream.push(&tokenizer, id);
    }
    text += &stream.finish(&tokenizer);
    assert_eq!(text, tokenizer.decode(&broken));
    assert!(text.contains(" x"));
}
