//! The tokens of a rendered prompt, with the positions of its images.

use std::ops::Range;

use tokenizers::Tokenizer;
use vlm_display::count;

use crate::caught::caught;
use crate::marked::MarkedPrompt;
use crate::reject::{Reject, RejectReason};

/// The token ids of a text, with their positions in it.
#[derive(Debug)]
pub(crate) struct Tokens {
    pub(crate) ids: Vec<i64>,
    /// First byte of each token. A token that is a part of a character has the first byte of that
    /// character.
    pub(crate) starts: Vec<usize>,
}

impl Tokens {
    /// Token ids of `text`, with their positions. The template writes all special tokens; the tokenizer
    /// must not add any.
    pub(crate) fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Self, Reject> {
        let encoding = caught(|| tokenizer.encode(text, false));
        let encoding =
            encoding.unwrap_or_else(|panic| Err(panic.into())).map_err(tokenizer_failed)?;
        let ids = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
        let starts = encoding.get_offsets().iter().map(|&(start, _)| start).collect();
        Ok(Self { ids, starts })
    }

    /// The first token that begins at or after `byte`.
    pub(crate) fn at(&self, byte: usize) -> usize {
        self.starts.partition_point(|&start| start < byte)
    }

    /// The first token, counted from `first`, that does not end within the first `bytes` bytes of a
    /// text of `len` bytes.
    pub(crate) fn whole_until(&self, first: usize, bytes: usize, len: usize) -> usize {
        let end = |token: usize| self.starts.get(token + 1).copied().unwrap_or(len);
        (first..self.ids.len()).find(|&token| end(token) > bytes).unwrap_or(self.ids.len())
    }
}

/// The tokens of an image in a prompt: `count` times the token `id`, which is spelled `text`.
pub(crate) struct ImageTokens<'a> {
    pub(crate) id: i64,
    pub(crate) text: &'a str,
    pub(crate) count: usize,
    /// Whether every image has further tokens around it.
    pub(crate) has_tags: bool,
}

/// A prompt's tokens, with the first token of each image.
pub(crate) struct EncodedPrompt {
    pub(crate) tokens: Tokens,
    pub(crate) image_starts: Vec<usize>,
    /// The tokens of each image, with those around it.
    pub(crate) image_spans: Vec<Range<usize>>,
}

impl EncodedPrompt {
    /// Tokenizes `prompt`.
    ///
    /// # Errors
    /// A placeholder that is not the expected tokens; placeholders in the text itself.
    pub(crate) fn new(
        tokenizer: &Tokenizer,
        prompt: &MarkedPrompt,
        image: &ImageTokens,
    ) -> Result<Self, Reject> {
        let tokens = Tokens::encode(tokenizer, &prompt.text)?;
        let mut image_starts = Vec::with_capacity(prompt.images.len());
        let mut image_spans = Vec::with_capacity(prompt.images.len());
        for range in &prompt.images {
            let first = tokens.at(range.start);
            let written = &tokens.ids[first..tokens.at(range.end)];
            // There may be other tokens before and after the image.
            let before = written.iter().take_while(|&&id| id != image.id).count();
            let run = &written[before..];
            let run = &run[..run.iter().rposition(|&id| id == image.id).map_or(0, |last| last + 1)];
            let is_bare = before == 0 && run.len() == written.len();
            if run.len() != image.count
                || run.iter().any(|&id| id != image.id)
                || !is_bare && !image.has_tags
            {
                return Err(Reject::new(
                    RejectReason::TokenizerFailed,
                    format!(
                        "expected {} with id {} for an image's placeholder, but the tokenizer makes \
                         {}",
                        count(image.count, "token"),
                        image.id,
                        count(written.len(), "token")
                    ),
                ));
            }
            image_starts.push(first + before);
            image_spans.push(first..first + written.len());
        }
        check_strays(&tokens.ids, &image_starts, image)?;
        Ok(Self { tokens, image_starts, image_spans })
    }
}

/// Checks for placeholder tokens in the text itself. A few of them apart from images, as in an
/// e-mail address, are text like any other. As many as an image has, or some next to an image,
/// could not be distinguished from an image by the ids alone.
fn check_strays(ids: &[i64], image_starts: &[usize], image: &ImageTokens) -> Result<(), Reject> {
    let mut end_of_run = 0;
    for run in ids.chunk_by(|&a, &b| a == b) {
        let start = end_of_run;
        end_of_run += run.len();
        if run[0] != image.id {
            continue;
        }
        let within = |&&image: &&usize| (start..end_of_run).contains(&image);
        let num_images = image_starts.iter().filter(within).count();
        let is_stray =
            run.len() != num_images * image.count && (num_images > 0 || run.len() >= image.count);
        if is_stray {
            return Err(Reject::new(
                RejectReason::PlaceholderInText,
                format!(
                    "{} adjacent {:?}, but the images here are {} of {}; remove them from the text, \
                     or separate them",
                    run.len(),
                    image.text,
                    num_images,
                    count(image.count, "token"),
                ),
            ));
        }
    }
    Ok(())
}

pub(crate) fn tokenizer_failed(error: tokenizers::Error) -> Reject {
    Reject::new(RejectReason::TokenizerFailed, error.to_string())
}

/// The parts of `span` without the tokens of images.
pub(crate) fn without_images(span: Range<usize>, images: &[Range<usize>]) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = span.start;
    for image in images.iter().filter(|image| image.start < span.end && image.end > span.start) {
        parts.push(start..image.start.max(start));
        start = image.end.max(start);
    }
    parts.push(start..span.end);
    parts.retain(|part| !part.is_empty());
    parts
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn the_parts_of_an_answer_are_its_tokens_but_those_of_images(
            span in (0..40_usize, 0..40_usize).prop_map(|(start, length)| start..start + length),
            // Gaps before images, and their lengths.
            images in prop::collection::vec((0..9_usize, 1..9_usize), 0..6),
        ) {
            let mut end = 0;
            let images: Vec<Range<usize>> = images
                .into_iter()
                .map(|(gap, length)| {
                    end += gap + length;
                    end - length..end
                })
                .collect();
            let learned: Vec<usize> =
                without_images(span.clone(), &images).into_iter().flatten().collect();
            let is_free = |token: &usize| !images.iter().any(|image| image.contains(token));
            prop_assert_eq!(learned, span.filter(is_free).collect::<Vec<_>>());
        }
    }
}
