//! From conversations to token ids: chat template, tokenizer, and which tokens are learned from.

use std::ops::Range;
use std::path::Path;

use tokenizers::Tokenizer;

use crate::error::DataError;
use crate::marked::MarkedPrompt;
use crate::placeholder::ImagePlaceholder;
use crate::reject::{Reject, RejectReason};
use crate::rows::{Role, Row, Turn, num_image_tags};
use crate::template::ChatTemplate;
use crate::tokenizer_files::TokenizerFiles;

/// A tokenizer with its chat template.
#[derive(Debug)]
pub struct ChatTokenizer {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    placeholder: ImagePlaceholder,
    vocab_size: usize,
    image_token_id: i64,
    pad_token_id: i64,
    eos_token_id: i64,
    hash: String,
}

/// A row as token ids, before the shift by one that training does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// `[n]`, at most the length limit.
    pub input_ids: Vec<i64>,
    /// Tokens to be predicted: each assistant turn's answer, its end token and the one after it,
    /// in order, without images' tokens.
    pub supervised: Vec<Range<usize>>,
    /// First token of each image, in the order of the row's images.
    pub image_starts: Vec<usize>,
}

impl EncodedRow {
    /// The first `max_seq_len` tokens.
    ///
    /// # Errors
    /// [`RejectReason::CutThroughImage`], [`RejectReason::NoSupervisedToken`].
    pub fn cut(mut self, max_seq_len: usize, tokens_per_image: usize) -> Result<Self, Reject> {
        let num_tokens = self.input_ids.len();
        let length = num_tokens.min(max_seq_len);
        for (k, &start) in self.image_starts.iter().enumerate() {
            // The model's input is one token shorter than the ids.
            if start + tokens_per_image >= length {
                return Err(Reject::new(
                    RejectReason::CutThroughImage,
                    format!(
                        "image {k} is tokens {start} to {} of {num_tokens}, cut at max-seq-len \
                         {max_seq_len}; raise it or shorten the text",
                        start + tokens_per_image,
                    ),
                ));
            }
        }
        let has_answer = !self.supervised.is_empty();
        self.supervised.iter_mut().for_each(|span| span.end = span.end.min(length));
        self.supervised.retain(|span| !span.is_empty());
        // Position 0 has no token before it that could predict it.
        if self.supervised.iter().all(|span| span.end <= 1) {
            let detail = if has_answer {
                format!(
                    "no answer begins within max-seq-len {max_seq_len} (the row has {num_tokens} \
                     tokens)"
                )
            } else {
                "no turn is the assistant's, or it has no text".to_owned()
            };
            return Err(Reject::new(RejectReason::NoSupervisedToken, detail));
        }
        self.input_ids.truncate(length);
        Ok(self)
    }
}

/// A prompt's tokens with their places in its text.
struct Tokens {
    ids: Vec<i64>,
    /// First byte of each token; for part of a character, the character's.
    starts: Vec<usize>,
    image_starts: Vec<usize>,
}

impl ChatTokenizer {
    /// Reads `tokenizer.json` and `tokenizer_config.json` of the folder `dir`, and
    /// `chat_template.jinja` where there is one.
    ///
    /// # Errors
    /// Missing or malformed files, no chat template, no end token, or a vocabulary in which the
    /// image placeholder is not a single token.
    pub fn from_dir(dir: &Path) -> Result<Self, DataError> {
        Self::with_placeholder(dir, ImagePlaceholder::default())
    }

    /// As [`Self::from_dir`], with images spelled otherwise.
    ///
    /// # Errors
    /// As [`Self::from_dir`].
    pub fn with_placeholder(dir: &Path, placeholder: ImagePlaceholder) -> Result<Self, DataError> {
        Self::with_first_of(dir, &[placeholder])
    }

    /// As [`Self::from_dir`], with images spelled by the first of `placeholders` that is a single
    /// token of this tokenizer.
    ///
    /// # Errors
    /// As [`Self::from_dir`]; none of them is a single token.
    pub fn with_first_of(dir: &Path, placeholders: &[ImagePlaceholder]) -> Result<Self, DataError> {
        let files = TokenizerFiles::read(dir)?;
        let hash = files.hash();
        let problem = |text: String| DataError::content(dir, text);
        let tokenizer: Tokenizer = serde_json::from_value(files.tokenizer)
            .map_err(|e| problem(format!("tokenizer.json cannot be used: {e}")))?;
        let id_of = |token: &str| tokenizer.token_to_id(token).map(i64::from);

        let eos_token_id = id_of(&files.eos_token).ok_or_else(|| {
            problem(format!("the eos_token {:?} is not in tokenizer.json", files.eos_token))
        })?;
        let pad_token_id = files.pad_token.as_deref().and_then(id_of).unwrap_or(0);
        let fitting = placeholders.iter().find_map(|placeholder| {
            Some((placeholder.clone(), single_id(&tokenizer, placeholder)?))
        });
        let (placeholder, image_token_id) = fitting.ok_or_else(|| {
            let spelled: Vec<_> = placeholders
                .iter()
                .map(|placeholder| format!("{:?}", placeholder.token()))
                .collect();
            problem(format!(
                "the image placeholder {} is not a single token of tokenizer.json, so an image \
                 cannot have a token for each of its features",
                spelled.join(" or ")
            ))
        })?;
        let template = ChatTemplate::new(files.chat_template, files.bos_token, files.eos_token)
            .map_err(|e| problem(format!("the chat template cannot be used: {e}")))?;
        let highest_id = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        Ok(Self {
            vocab_size: highest_id as usize + 1,
            tokenizer,
            template,
            placeholder,
            image_token_id,
            pad_token_id,
            eos_token_id,
            hash,
        })
    }

    /// Ids are below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of each of an image's tokens.
    pub fn image_token_id(&self) -> i64 {
        self.image_token_id
    }

    /// How images are spelled.
    pub fn placeholder(&self) -> &ImagePlaceholder {
        &self.placeholder
    }

    /// The id that short rows are filled up with: the tokenizer's `pad_token`, otherwise 0.
    pub fn pad_token_id(&self) -> i64 {
        self.pad_token_id
    }

    /// The id that ends an answer.
    pub fn eos_token_id(&self) -> i64 {
        self.eos_token_id
    }

    /// Hash of vocabulary, template and special tokens: the same hash means the same ids.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The prompt of `turns` as text, images still as [`crate::IMAGE_TAG`].
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`].
    pub fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String, Reject> {
        self.template.render(turns, add_generation_prompt)
    }

    /// Token ids of `row`, cut at `max_seq_len`, with the tokens to learn from.
    ///
    /// The prompt is tokenized whole, as the reference does it, so the ids are the reference's.
    /// Which of them are supervised is read off the template's structure instead of searched among
    /// the ids: a text that spells `</s>` or `<s>assistant` changes nothing, and a conversation
    /// without an answer supervises nothing. An image in an answer is not supervised itself.
    ///
    /// # Errors
    /// Any reason why this row must not be trained on, see [`RejectReason`].
    pub fn encode_row(
        &self,
        row: &Row,
        tokens_per_image: usize,
        max_seq_len: usize,
    ) -> Result<EncodedRow, Reject> {
        check_image_tags(row.num_image_tags(), row.images.len())?;
        let prompt = self.mark(&row.turns, tokens_per_image, false)?;
        let tokens = self.tokenize(&prompt, tokens_per_image)?;
        let supervised = self.supervised(row, &prompt, &tokens, tokens_per_image);
        let Tokens { ids: input_ids, image_starts, .. } = tokens;
        EncodedRow { input_ids, supervised, image_starts }.cut(max_seq_len, tokens_per_image)
    }

    /// How many tokens a row with these turns has, uncut: as [`Self::encode_row`] makes, for less.
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`], [`RejectReason::TokenizerFailed`].
    pub fn num_tokens(&self, turns: &[Turn], tokens_per_image: usize) -> Result<usize, Reject> {
        let prompt = self.mark(turns, tokens_per_image, false)?;
        let encoding = self
            .tokenizer
            .encode_fast(prompt.text.as_str(), false)
            .map_err(|e| Reject::new(RejectReason::TokenizerFailed, e.to_string()))?;
        Ok(encoding.len())
    }

    /// Token ids of a conversation whose next answer is to be generated, and the first token of
    /// each of its images. Templates of the seed's form open the answer behind every user's turn;
    /// others do so on being asked.
    ///
    /// # Errors
    /// `<image>`s that are not `num_images`, a template that refuses the conversation.
    pub fn encode_prompt(
        &self,
        turns: &[Turn],
        num_images: usize,
        tokens_per_image: usize,
    ) -> Result<(Vec<i64>, Vec<usize>), Reject> {
        check_image_tags(num_image_tags(turns), num_images)?;
        let prompt = self.mark(turns, tokens_per_image, true)?;
        let tokens = self.tokenize(&prompt, tokens_per_image)?;
        Ok((tokens.ids, tokens.image_starts))
    }

    /// The text of `ids`, without special tokens; ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[i64]) -> String {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.tokenizer.decode(&ids, true).unwrap_or_default()
    }

    fn mark(
        &self,
        turns: &[Turn],
        tokens_per_image: usize,
        add_generation_prompt: bool,
    ) -> Result<MarkedPrompt, Reject> {
        let image = self.placeholder.run(tokens_per_image);
        MarkedPrompt::render(&self.template, turns, &image, add_generation_prompt)
    }

    fn tokenize(&self, prompt: &MarkedPrompt, tokens_per_image: usize) -> Result<Tokens, Reject> {
        // The template writes what special tokens there are; the tokenizer must add no more.
        let encoding = self
            .tokenizer
            .encode(prompt.text.as_str(), false)
            .map_err(|e| Reject::new(RejectReason::TokenizerFailed, e.to_string()))?;
        let ids: Vec<i64> = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
        let starts: Vec<usize> = encoding.get_offsets().iter().map(|&(start, _)| start).collect();
        let mut image_starts = Vec::with_capacity(prompt.images.len());
        for range in &prompt.images {
            let first = starts.partition_point(|&start| start < range.start);
            let end = starts.partition_point(|&start| start < range.end);
            let run = &ids[first..end];
            if run.len() != tokens_per_image || run.iter().any(|&id| id != self.image_token_id) {
                return Err(Reject::new(
                    RejectReason::TokenizerFailed,
                    format!(
                        "the tokenizer makes {} tokens of an image's placeholder, expected \
                         {tokens_per_image} times id {}",
                        run.len(),
                        self.image_token_id
                    ),
                ));
            }
            image_starts.push(first);
        }
        self.check_strays(&ids, &image_starts, tokens_per_image)?;
        Ok(Tokens { ids, starts, image_starts })
    }

    /// Placeholder tokens that the text itself spells. Few of them apart from images, as in an
    /// address, are text like any other; as many as an image has, or joined to an image, could
    /// not be told from one by whoever looks at the ids alone.
    fn check_strays(
        &self,
        ids: &[i64],
        image_starts: &[usize],
        tokens_per_image: usize,
    ) -> Result<(), Reject> {
        let mut end_of_run = 0;
        for run in ids.chunk_by(|&a, &b| a == b) {
            let start = end_of_run;
            end_of_run += run.len();
            if run[0] != self.image_token_id {
                continue;
            }
            let within = |&&image: &&usize| (start..end_of_run).contains(&image);
            let num_images = image_starts.iter().filter(within).count();
            let is_stray = run.len() != num_images * tokens_per_image
                && (num_images > 0 || run.len() >= tokens_per_image);
            if is_stray {
                return Err(Reject::new(
                    RejectReason::PlaceholderInText,
                    format!(
                        "{} {:?} in a row where {num_images} images of {tokens_per_image} tokens \
                         stand; take them out of the text or set them apart",
                        run.len(),
                        self.placeholder.token()
                    ),
                ));
            }
        }
        Ok(())
    }

    fn supervised(
        &self,
        row: &Row,
        prompt: &MarkedPrompt,
        tokens: &Tokens,
        tokens_per_image: usize,
    ) -> Vec<Range<usize>> {
        let length = tokens.ids.len();
        let token_at = |byte: usize| tokens.starts.partition_point(|&start| start < byte);
        let mut spans: Vec<Range<usize>> = Vec::new();
        for (k, turn) in row.turns.iter().enumerate() {
            if turn.role != Role::Assistant {
                continue;
            }
            let answer = &prompt.turns[k];
            let answer_end = token_at(answer.end);
            // Between the answer and the next turn's text stand the template's own words only.
            let next_text = prompt.turns.get(k + 1).map_or(tokens.ids.len(), |t| token_at(t.start));
            let words = answer_end.min(next_text)..next_text;
            let eos = tokens.ids[words].iter().position(|&id| id == self.eos_token_id);
            let end = eos.map_or(answer_end, |at| answer_end + at + 2);
            let span = token_at(answer.start)..end.min(length);
            spans.extend(without_images(span, &tokens.image_starts, tokens_per_image));
        }
        spans
    }
}

/// The parts of `span` that are no image's tokens.
fn without_images(
    span: Range<usize>,
    image_starts: &[usize],
    tokens_per_image: usize,
) -> Vec<Range<usize>> {
    let mut parts = Vec::new();
    let mut start = span.start;
    for &image in image_starts.iter().filter(|image| span.contains(image)) {
        parts.push(start..image);
        start = image + tokens_per_image;
    }
    parts.push(start..span.end);
    parts.retain(|part| !part.is_empty());
    parts
}

fn single_id(tokenizer: &Tokenizer, placeholder: &ImagePlaceholder) -> Option<i64> {
    let ids = |text: String| Some(tokenizer.encode(text, false).ok()?.get_ids().to_vec());
    let id = *ids(placeholder.run(1))?.first()?;
    // Two in a row could be one token; an image is many in a row.
    (ids(placeholder.run(16))? == [id; 16]).then_some(i64::from(id))
}

fn check_image_tags(num_tags: usize, num_images: usize) -> Result<(), Reject> {
    let reason = match num_tags.cmp(&num_images) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less => RejectReason::ImageWithoutPlaceholder,
        std::cmp::Ordering::Greater => RejectReason::PlaceholderWithoutImage,
    };
    Err(Reject::new(
        reason,
        format!("{num_images} images and {num_tags} {} in the turns", crate::IMAGE_TAG),
    ))
}
