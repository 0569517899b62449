//! From conversations to token ids: chat template, tokenizer, and which tokens are learned from.

use std::collections::HashSet;
use std::ops::Range;
use std::path::Path;

use serde::Deserialize;
use tokenizers::Tokenizer;

use crate::answer_ends::{AnswerEnds, Tokens};
use crate::error::DataError;
use crate::marked::MarkedPrompt;
use crate::marks::{ContentForm, Conversation};
use crate::placeholder::ImagePlaceholder;
use crate::reject::{Reject, RejectReason};
use crate::rows::{IMAGE_TAG, Row, Turn, num_image_tags};
use crate::template::ChatTemplate;
use crate::template_limits::TOO_MUCH_WORK;
use crate::template_profile::{Opening, TemplateProfile};
use crate::tokenizer_files::{TokenizerFiles, generation_eos_ids};

/// A tokenizer with its chat template.
#[derive(Debug)]
pub struct ChatTokenizer {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    profile: TemplateProfile,
    ends: AnswerEnds,
    placeholder: ImagePlaceholder,
    vocab_size: usize,
    image_token_id: i64,
    pad_token_id: i64,
    eos_token_id: i64,
    /// Each once.
    stop_token_ids: Vec<i64>,
    hash: String,
}

/// A row as token ids, before the shift by one that training does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EncodedRow {
    /// `[n]`, at most the length limit.
    pub input_ids: Vec<i64>,
    /// Tokens to be predicted: each assistant turn's answer, its end token and the one after it
    /// where that belongs to the turn, in order, without images' tokens.
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

/// A prompt's tokens, and the first one of each image.
struct EncodedPrompt {
    tokens: Tokens,
    image_starts: Vec<usize>,
}

impl ChatTokenizer {
    /// Reads the tokenizer in the folder `dir`: `tokenizer.json`, `tokenizer_config.json` and the
    /// files that may lie beside them (`special_tokens_map.json`, `generation_config.json`, a chat
    /// template).
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
        let problem = |text: String| DataError::content(dir, text);
        let tokenizer = Tokenizer::deserialize(&files.tokenizer)
            .map_err(|e| problem(format!("tokenizer.json cannot be used: {e}")))?;
        let id_of = |token: &str| tokenizer.token_to_id(token).map(i64::from);

        let eos_token_id = id_of(files.eos_token()).ok_or_else(|| {
            problem(format!("the eos_token {:?} is not in tokenizer.json", files.eos_token()))
        })?;
        let pad_token = files.special_tokens.get("pad_token");
        let pad_token_id = pad_token.and_then(|token| id_of(token)).unwrap_or(0);
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
        let template = ChatTemplate::new(&files.chat_template, files.special_tokens.clone())
            .map_err(|e| problem(format!("the chat template cannot be used: {e}")))?;
        let mut stop_token_ids = vec![eos_token_id];
        stop_token_ids.extend(&files.generation_eos_ids);
        let (profile, ends, supervision) =
            match TemplateProfile::find(&template, placeholder.token()) {
                Ok((profile, probe)) => {
                    let tokens =
                        encode(&tokenizer, &probe.text).map_err(|e| problem(e.to_string()))?;
                    let markers = markers(&tokenizer);
                    let ends = AnswerEnds::of_probe(&probe, &tokens, markers, &stop_token_ids);
                    let is_first_rule = ends.is_by_eos(eos_token_id, &probe, &tokens)
                        && profile.opening == Opening::AtText
                        && profile.form == ContentForm::Text;
                    let described = format!("{profile:?} {}", ends.describe());
                    (profile, ends, if is_first_rule { String::new() } else { described })
                }
                // Four short turns are the least that it will ever have to render.
                Err(reject) if reject.detail.contains(TOO_MUCH_WORK) => {
                    return Err(problem(reject.detail));
                }
                Err(reject) => {
                    tracing::warn!(
                        "{}: what the chat template writes around an answer is not known, since it \
                     does not take two questions with their answers: {}; answers end at {:?}",
                        dir.display(),
                        reject.detail,
                        files.eos_token()
                    );
                    let profile =
                        TemplateProfile { form: ContentForm::Text, opening: Opening::AtText };
                    (profile, AnswerEnds::of_eos(eos_token_id, files.eos_token()), String::new())
                }
            };
        if !ends.has_last() {
            tracing::warn!(
                "{}: the chat template writes no token behind the last answer, so a model trained \
                 with it does not learn to stop; its answers end at --max-new-tokens, or where it \
                 happens to make {:?}",
                dir.display(),
                files.eos_token()
            );
        }
        stop_token_ids.extend(ends.ids());
        let highest_id = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        let mut opened = Self {
            vocab_size: highest_id as usize + 1,
            hash: files.hash(&supervision),
            tokenizer,
            template,
            profile,
            ends,
            placeholder,
            image_token_id,
            pad_token_id,
            eos_token_id,
            stop_token_ids: Vec::new(),
        };
        opened.stop_at(&stop_token_ids);
        Ok(opened)
    }

    /// Adds what `generation_config.json` in the folder `dir`, where there is one, says of the ids
    /// that end an answer. It may lie beside the weights of a language model instead of its
    /// tokenizer.
    ///
    /// # Errors
    /// A file that cannot be read or is not JSON.
    pub fn stop_as_generation_config_says(&mut self, dir: &Path) -> Result<(), DataError> {
        self.stop_at(&generation_eos_ids(dir)?);
        Ok(())
    }

    /// Adds ids that end an answer.
    pub fn stop_at(&mut self, ids: &[i64]) {
        for &id in ids {
            if !self.stop_token_ids.contains(&id) {
                self.stop_token_ids.push(id);
            }
        }
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

    /// The id of the tokenizer's `eos_token`, which ends a text.
    pub fn eos_token_id(&self) -> i64 {
        self.eos_token_id
    }

    /// The ids that end an answer, each once: `eos_token`, what `generation_config.json` names, and
    /// what the chat template writes behind an answer.
    pub fn stop_token_ids(&self) -> &[i64] {
        &self.stop_token_ids
    }

    /// Hash of vocabulary, template and special tokens: the same hash means the same ids.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The prompt of `turns` as text, images still as [`crate::IMAGE_TAG`], or as the template
    /// writes them where it takes them as parts of a list.
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`].
    pub fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String, Reject> {
        let conversation = Conversation { turns, form: &self.profile.form, image: IMAGE_TAG };
        self.template.render(&conversation.plain(), add_generation_prompt)
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
        check_image_tags(&row.turns, row.images.len())?;
        let image = self.placeholder.run(tokens_per_image);
        let conversation = self.conversation(&row.turns, &image);
        let prompt = MarkedPrompt::render(&self.template, &self.profile, &conversation)?;
        let EncodedPrompt { tokens, image_starts } = self.tokenize(&prompt, tokens_per_image)?;
        let mut supervised = Vec::with_capacity(prompt.answers.len());
        for answer in &prompt.answers {
            let span = self.ends.span(&tokens, &prompt.text, &answer.range, answer.is_last);
            supervised.extend(without_images(span, &image_starts, tokens_per_image));
        }
        EncodedRow { input_ids: tokens.ids, supervised, image_starts }
            .cut(max_seq_len, tokens_per_image)
    }

    /// How many tokens a row with these turns has, uncut: as [`Self::encode_row`] makes, for less.
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`], [`RejectReason::TokenizerFailed`].
    pub fn num_tokens(&self, turns: &[Turn], tokens_per_image: usize) -> Result<usize, Reject> {
        let image = self.placeholder.run(tokens_per_image);
        let conversation = self.conversation(turns, &image);
        let text = match self.profile.form {
            ContentForm::Text | ContentForm::TextPart => {
                self.template.render(&conversation.plain(), false)?
            }
            ContentForm::Parts { .. } => {
                MarkedPrompt::render(&self.template, &self.profile, &conversation)?.text
            }
        };
        let encoding =
            self.tokenizer.encode_fast(text.as_str(), false).map_err(tokenizer_failed)?;
        Ok(encoding.len())
    }

    /// Token ids of a conversation whose next answer is to be generated, and the first token of
    /// each of its images. A template that has no generation prompt and writes a header before an
    /// answer opens the answer with that header.
    ///
    /// # Errors
    /// `<image>`s that are not `num_images`, a template that refuses the conversation.
    pub fn encode_prompt(
        &self,
        turns: &[Turn],
        num_images: usize,
        tokens_per_image: usize,
    ) -> Result<(Vec<i64>, Vec<usize>), Reject> {
        check_image_tags(turns, num_images)?;
        let image = self.placeholder.run(tokens_per_image);
        let conversation = self.conversation(turns, &image);
        let prompt = MarkedPrompt::render_prompt(&self.template, &self.profile, &conversation)?;
        let EncodedPrompt { tokens, image_starts } = self.tokenize(&prompt, tokens_per_image)?;
        Ok((tokens.ids, image_starts))
    }

    /// The text of `ids`, without special tokens; ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[i64]) -> String {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.tokenizer.decode(&ids, true).unwrap_or_default()
    }

    fn conversation<'a>(&'a self, turns: &'a [Turn], image: &'a str) -> Conversation<'a> {
        Conversation { turns, form: &self.profile.form, image }
    }

    fn tokenize(
        &self,
        prompt: &MarkedPrompt,
        tokens_per_image: usize,
    ) -> Result<EncodedPrompt, Reject> {
        let tokens = encode(&self.tokenizer, &prompt.text)?;
        let mut image_starts = Vec::with_capacity(prompt.images.len());
        for range in &prompt.images {
            let first = tokens.at(range.start);
            let run = &tokens.ids[first..tokens.at(range.end)];
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
        self.check_strays(&tokens.ids, &image_starts, tokens_per_image)?;
        Ok(EncodedPrompt { tokens, image_starts })
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
}

/// Token ids of `text`, with their places. The template writes what special tokens there are; the
/// tokenizer must add no more.
fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Tokens, Reject> {
    let encoding = tokenizer.encode(text, false).map_err(tokenizer_failed)?;
    let ids = encoding.get_ids().iter().map(|&id| i64::from(id)).collect();
    let starts = encoding.get_offsets().iter().map(|&(start, _)| start).collect();
    Ok(Tokens { ids, starts })
}

fn tokenizer_failed(error: tokenizers::Error) -> Reject {
    Reject::new(RejectReason::TokenizerFailed, error.to_string())
}

/// The tokens that were added to the vocabulary, apart from white space. Not all tokenizers call
/// what ends a turn special.
fn markers(tokenizer: &Tokenizer) -> HashSet<i64> {
    let added = tokenizer.get_added_tokens_decoder();
    let named = added.into_iter().filter(|(_, token)| !token.content.trim().is_empty());
    named.map(|(id, _)| i64::from(id)).collect()
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

/// # Errors
/// The turns show more images than there are, or fewer.
fn check_image_tags(turns: &[Turn], num_images: usize) -> Result<(), Reject> {
    let num_tags = num_image_tags(turns);
    let reason = match num_tags.cmp(&num_images) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less => RejectReason::ImageWithoutPlaceholder,
        std::cmp::Ordering::Greater => RejectReason::PlaceholderWithoutImage,
    };
    Err(Reject::new(reason, format!("{num_images} images and {num_tags} {IMAGE_TAG} in the turns")))
}
