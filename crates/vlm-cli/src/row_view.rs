//! A row as text or JSON: its prompt, its tokens, which of them are supervised, and its images.

use std::fmt::Write;
use std::ops::Range;

use serde_json::{Value, json};
use vlm_data::{ChatTokenizer, LoadedRow};
use vlm_display::{count, plain};

/// A row to show.
pub struct RowView<'a> {
    /// Number of the row, from 0.
    pub row: usize,
    /// Its location, such as `captions.jsonl:17`.
    pub location: String,
    /// How the rows are read, one line per file.
    pub readers: Vec<String>,
    pub loaded: &'a LoadedRow,
    pub tokenizer: &'a ChatTokenizer,
    pub tokens_per_image: usize,
    /// Where the number of tokens per image is from.
    pub tokens_per_image_origin: String,
    pub max_seq_len: usize,
}

/// How supervised text is marked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Markers {
    /// In green, with ANSI escape sequences.
    Colours,
    /// Between ⟦ and ⟧.
    Brackets,
}

impl Markers {
    fn mark(self, text: &str) -> String {
        match self {
            Self::Colours => format!("\x1b[32m{text}\x1b[0m"),
            Self::Brackets => format!("⟦{text}⟧"),
        }
    }

    fn legend(self) -> &'static str {
        match self {
            Self::Colours => "supervised tokens in green",
            Self::Brackets => "supervised tokens between ⟦ and ⟧",
        }
    }
}

/// What a run of tokens is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Text that is not learned.
    Context,
    /// Text that is learned.
    Supervised,
    /// The tokens of this image.
    Image(usize),
}

/// Divides the tokens into runs of one kind.
fn runs(
    mask: &[bool],
    image_starts: &[usize],
    tokens_per_image: usize,
) -> Vec<(Kind, Range<usize>)> {
    let kind = |token: usize| {
        let image = image_starts.iter().position(|&s| (s..s + tokens_per_image).contains(&token));
        match image {
            Some(image) => Kind::Image(image),
            None if mask[token] => Kind::Supervised,
            None => Kind::Context,
        }
    };
    let mut runs: Vec<(Kind, Range<usize>)> = Vec::new();
    for token in 0..mask.len() {
        match runs.last_mut() {
            Some((last, range)) if *last == kind(token) => range.end += 1,
            _ => runs.push((kind(token), token..token + 1)),
        }
    }
    runs
}

/// Text of a row for a terminal: control characters except line breaks and tabs are escaped,
/// because they could change the terminal.
fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => shown.push(c),
            c if c.is_control() => shown.extend(c.escape_debug()),
            c => shown.push(c),
        }
    }
    shown
}

impl RowView<'_> {
    fn ids(&self) -> &[i64] {
        &self.loaded.encoded.input_ids
    }

    fn mask(&self) -> Vec<bool> {
        self.loaded.encoded.supervised_mask()
    }

    fn is_truncated(&self) -> bool {
        self.loaded.num_tokens > self.ids().len()
    }

    /// The row as one JSON object.
    pub fn to_json(&self) -> Value {
        let (ids, mask) = (self.ids(), self.mask());
        let starts = &self.loaded.encoded.image_starts;
        let images = self.loaded.images.iter().zip(starts).map(|(image, start)| {
            json!({
                "name": image.name,
                "width": image.width,
                "height": image.height,
                "preprocessed_width": image.side,
                "preprocessed_height": image.side,
                "first_token": start,
            })
        });
        json!({
            "row": self.row,
            "location": self.location,
            "readers": self.readers,
            "text": self.tokenizer.decode_range(ids, 0..ids.len()),
            "input_ids": ids,
            "tokens": self.tokenizer.tokens(ids),
            "supervised": mask,
            "num_tokens": ids.len(),
            "num_supervised": mask.iter().filter(|&&supervised| supervised).count(),
            "max_seq_len": self.max_seq_len,
            "truncated": self.is_truncated(),
            "num_tokens_before_truncation": self.loaded.num_tokens,
            "image_token": self.tokenizer.placeholder().token(),
            "tokens_per_image": self.tokens_per_image,
            "tokens_per_image_origin": self.tokens_per_image_origin,
            "images": images.collect::<Vec<_>>(),
        })
    }

    /// The row as text for a person.
    pub fn to_text(&self, markers: Markers) -> String {
        let mask = self.mask();
        let starts = &self.loaded.encoded.image_starts;
        let runs = runs(&mask, starts, self.tokens_per_image);
        let mut text = self.head(&mask);
        let _ = writeln!(text, "\nprompt ({}):", markers.legend());
        for (kind, range) in &runs {
            let piece = || printable(&self.tokenizer.decode_range(self.ids(), range.clone()));
            text += &match kind {
                Kind::Context => piece(),
                Kind::Supervised => markers.mark(&piece()),
                Kind::Image(k) => self.image_mark(*k),
            };
        }
        let _ = writeln!(text, "\n\ntokens (position, id, text; * is supervised):");
        for (kind, range) in runs {
            if let Kind::Image(k) = kind {
                let id = self.tokenizer.image_token_id();
                let _ = writeln!(
                    text,
                    "  {:>5}  {id:>7}  {}, to position {}",
                    range.start,
                    self.image_mark(k),
                    range.end - 1
                );
                continue;
            }
            let mark = if kind == Kind::Supervised { '*' } else { ' ' };
            for at in range {
                let (id, piece) =
                    (self.ids()[at], self.tokenizer.decode_range(&self.ids()[at..], 0..1));
                let _ = writeln!(text, "{mark} {at:>5}  {id:>7}  {piece:?}");
            }
        }
        text
    }

    /// The lines about the whole row and its images.
    fn head(&self, mask: &[bool]) -> String {
        let mut text = format!("row {}: {}\n", self.row, plain(&self.location));
        for line in &self.readers {
            let _ = writeln!(text, "{}", plain(line));
        }
        let num_supervised = mask.iter().filter(|&&supervised| supervised).count();
        let truncation = match self.is_truncated() {
            true => format!("truncated from {}", self.loaded.num_tokens),
            false => "not truncated".to_owned(),
        };
        let _ = writeln!(
            text,
            "{}, {num_supervised} of them supervised; {truncation} (--max-seq-len {})",
            count(mask.len() as u64, "token"),
            self.max_seq_len
        );
        let _ = writeln!(
            text,
            "image token {:?}, {} tokens per image ({})",
            self.tokenizer.placeholder().token(),
            self.tokens_per_image,
            self.tokens_per_image_origin
        );
        if self.loaded.images.is_empty() {
            text += "no images\n";
        }
        for (k, (image, start)) in
            self.loaded.images.iter().zip(&self.loaded.encoded.image_starts).enumerate()
        {
            let _ = writeln!(
                text,
                "image {k}: {:?}, {} × {} pixels, preprocessed to {side} × {side}, tokens {start} to \
                 {}",
                image.name,
                image.width,
                image.height,
                start + self.tokens_per_image - 1,
                side = image.side
            );
        }
        text
    }

    /// What stands for the tokens of image `k`.
    fn image_mark(&self, k: usize) -> String {
        format!("[image {k}: {} × {}]", self.tokens_per_image, self.tokenizer.placeholder().token())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_divided_into_context_images_and_answers() {
        let mask = [false, false, false, false, true, true, false];
        let expected = [
            (Kind::Context, 0..1),
            (Kind::Image(0), 1..3),
            (Kind::Context, 3..4),
            (Kind::Supervised, 4..6),
            (Kind::Context, 6..7),
        ];
        assert_eq!(runs(&mask, &[1], 2), expected);
        let adjacent = [(Kind::Image(0), 0..2), (Kind::Image(1), 2..4)];
        assert_eq!(runs(&[false; 4], &[0, 2], 2), adjacent);
    }

    #[test]
    fn control_characters_of_a_row_do_not_reach_the_terminal() {
        assert_eq!(printable("a\x1b[2J\tb\n"), "a\\u{1b}[2J\tb\n");
    }

    #[test]
    fn supervised_text_is_marked_with_and_without_colour() {
        assert_eq!(Markers::Brackets.mark("A dog."), "⟦A dog.⟧");
        assert_eq!(Markers::Colours.mark("A dog."), "\x1b[32mA dog.\x1b[0m");
    }
}
