//! Makes token ids of conversations with a chat template and a tokenizer, and finds the tokens that
//! are learned.

use std::collections::BTreeMap;
use std::ops::Range;
use std::path::Path;
use std::sync::Once;

use serde::Deserialize;
use tokenizers::Tokenizer;
use vlm_display::count;

use crate::caught::caught;
use crate::chat_draws::{ChatChanges, EMPTY_THINK};
use crate::encoded_row::EncodedRow;
use crate::error::DataError;
use crate::marked::MarkedPrompt;
use crate::marks::{ContentForm, Conversation};
use crate::placeholder::ImagePlaceholder;
use crate::prompt_tokens::{EncodedPrompt, ImageTokens, tokenizer_failed, without_images};
use crate::reject::{Reject, RejectReason};
use crate::rows::{IMAGE_TAG, Row, Turn, num_image_tags};
use crate::supervision::Supervision;
use crate::template::ChatTemplate;
use crate::tokenizer_files::{TokenizerFiles, generation_eos_ids};

/// A tokenizer with its chat template.
#[derive(Debug)]
pub struct ChatTokenizer {
    tokenizer: Tokenizer,
    template: ChatTemplate,
    supervision: Supervision,
    placeholder: ImagePlaceholder,
    /// Source of the template.
    chat_template: String,
    /// The tokenizer's special tokens by name.
    special_tokens: BTreeMap<String, String>,
    vocab_size: usize,
    image_token_id: i64,
    pad_token_id: i64,
    eos_token_id: i64,
    /// Each id once.
    stop_token_ids: Vec<i64>,
    hash: String,
}

impl ChatTokenizer {
    /// Reads the tokenizer in the folder `dir`: `tokenizer.json`, `tokenizer_config.json`, and
    /// optional files beside them (`special_tokens_map.json`, `generation_config.json`, a chat
    /// template).
    ///
    /// # Errors
    /// Missing or malformed files, no chat template, no end token, or a vocabulary in which the
    /// image placeholder is not a single token.
    pub fn from_dir(dir: &Path) -> Result<Self, DataError> {
        Self::with_placeholder(dir, ImagePlaceholder::default())
    }

    /// Like [`Self::from_dir`], with another image placeholder.
    ///
    /// # Errors
    /// As for [`Self::from_dir`].
    pub fn with_placeholder(dir: &Path, placeholder: ImagePlaceholder) -> Result<Self, DataError> {
        Self::with_first_placeholder(dir, &[placeholder])
    }

    /// Like [`Self::from_dir`], with the first of `placeholders` that is a single token of this
    /// tokenizer.
    ///
    /// # Errors
    /// As for [`Self::from_dir`]; none of the placeholders is a single token.
    pub fn with_first_placeholder(
        dir: &Path,
        placeholders: &[ImagePlaceholder],
    ) -> Result<Self, DataError> {
        let files = TokenizerFiles::read(dir)?;
        let problem = |text: String| DataError::content(dir, text);
        let tokenizer = caught(|| Tokenizer::deserialize(&files.tokenizer))
            .and_then(|tokenizer| tokenizer.map_err(|e| e.to_string()))
            .map_err(|e| problem(format!("tokenizer.json cannot be used: {e}")))?;
        let id_of = |token: &str| tokenizer.token_to_id(token).map(i64::from);

        let eos_token_id = id_of(files.eos_token()).ok_or_else(|| {
            problem(format!(
                "the eos_token {:?} is not a token of tokenizer.json",
                files.eos_token()
            ))
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
        let placeholder = match &files.image_tags {
            Some(tags) if tags.image_token == placeholder.token() => {
                placeholder.between(tags.before.clone(), tags.after.clone())
            }
            _ => placeholder,
        };
        let template = ChatTemplate::new(&files.chat_template, files.special_tokens.clone())
            .map_err(|e| problem(format!("the chat template cannot be used: {e}")))?;
        let mut stop_token_ids = vec![eos_token_id];
        stop_token_ids.extend(&files.generation_eos_ids);
        let supervision = Supervision::find(
            dir,
            &files,
            &tokenizer,
            &template,
            placeholder.token(),
            eos_token_id,
        )?;
        stop_token_ids.extend(supervision.ends.ids());
        let highest_id = tokenizer.get_vocab(true).into_values().max().unwrap_or(0);
        let mut opened = Self {
            vocab_size: highest_id as usize + 1,
            hash: files.hash(&supervision.description),
            chat_template: files.chat_template,
            special_tokens: files.special_tokens,
            tokenizer,
            template,
            supervision,
            placeholder,
            image_token_id,
            pad_token_id,
            eos_token_id,
            stop_token_ids: Vec::new(),
        };
        opened.add_stop_token_ids(&stop_token_ids);
        Ok(opened)
    }

    /// Adds the ids that end an answer by `generation_config.json` in the folder `dir`, if there is
    /// one. The file may be beside the weights of a language model instead of its tokenizer.
    ///
    /// # Errors
    /// A file that cannot be read or is not JSON.
    pub fn read_generation_config(&mut self, dir: &Path) -> Result<(), DataError> {
        self.add_stop_token_ids(&generation_eos_ids(dir)?);
        Ok(())
    }

    /// Adds ids that end an answer.
    pub fn add_stop_token_ids(&mut self, ids: &[i64]) {
        for &id in ids {
            if !self.stop_token_ids.contains(&id) {
                self.stop_token_ids.push(id);
            }
        }
    }

    /// Number of ids: every id is below this.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of every token of an image.
    pub fn image_token_id(&self) -> i64 {
        self.image_token_id
    }

    /// How images are spelled in the prompt.
    pub fn placeholder(&self) -> &ImagePlaceholder {
        &self.placeholder
    }

    /// The id with which short rows are padded: the tokenizer's `pad_token`, or 0 if it has none.
    pub fn pad_token_id(&self) -> i64 {
        self.pad_token_id
    }

    /// Jinja source of the chat template.
    pub fn chat_template(&self) -> &str {
        &self.chat_template
    }

    /// The text that the chat template writes for an image part, if it takes contents as lists of
    /// text and image parts.
    pub fn content_parts_image(&self) -> Option<&str> {
        match &self.supervision.profile.form {
            ContentForm::Parts { image_text, core } => image_text.get(core.clone()),
            ContentForm::Text | ContentForm::TextPart => None,
        }
    }

    /// Whether the chat template takes contents as lists of one text part.
    pub fn takes_text_part(&self) -> bool {
        self.supervision.profile.form == ContentForm::TextPart
    }

    /// The special tokens by name, such as `eos_token`, from all files of the tokenizer.
    pub fn special_tokens(&self) -> &BTreeMap<String, String> {
        &self.special_tokens
    }

    /// The id of a token; `None` if the vocabulary does not have it.
    pub fn token_to_id(&self, token: &str) -> Option<i64> {
        self.tokenizer.token_to_id(token).map(i64::from)
    }

    /// The id of the tokenizer's `eos_token`, which ends a text.
    pub fn eos_token_id(&self) -> i64 {
        self.eos_token_id
    }

    /// The ids that end an answer, each once: `eos_token`, those in `generation_config.json`, and
    /// what the chat template writes after an answer.
    pub fn stop_token_ids(&self) -> &[i64] {
        &self.stop_token_ids
    }

    /// Hash of vocabulary, template and special tokens: the same hash means the same ids.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The prompt of `turns` as text. Images are [`crate::IMAGE_TAG`]s, or the text that the
    /// template writes for image parts.
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`].
    pub fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String, Reject> {
        let conversation =
            Conversation { turns, form: &self.supervision.profile.form, image: IMAGE_TAG };
        self.template.render(&conversation.plain(), add_generation_prompt)
    }

    /// Token ids of `row`, cut at `max_seq_len`, with the tokens to be learned.
    ///
    /// The prompt is tokenized as a whole, as in the reference, so that the ids are those of the
    /// reference. Which of them are supervised follows from the structure of the template, not from
    /// a search among the ids: a text that contains `</s>` or `<s>assistant` changes nothing, and a
    /// conversation without an answer has no supervised token. An image in an answer is not
    /// supervised, nor are the tokens that the placeholder has around it.
    ///
    /// # Errors
    /// Any reason for which this row must not be trained on; see [`RejectReason`].
    pub fn encode_row(
        &self,
        row: &Row,
        tokens_per_image: usize,
        max_seq_len: usize,
    ) -> Result<EncodedRow, Reject> {
        self.encode_changed_row(row, ChatChanges::default(), tokens_per_image, max_seq_len)
    }

    /// Like [`Self::encode_row`], for the row with `changes`.
    ///
    /// # Errors
    /// As for [`Self::encode_row`].
    pub fn encode_changed_row(
        &self,
        row: &Row,
        changes: ChatChanges,
        tokens_per_image: usize,
        max_seq_len: usize,
    ) -> Result<EncodedRow, Reject> {
        check_image_tags(&row.turns, row.images.len())?;
        let image = self.placeholder.run(tokens_per_image);
        let with_system = changes.with_system(&row.turns);
        let conversation = self.conversation(with_system.as_deref().unwrap_or(&row.turns), &image);
        let mut prompt =
            MarkedPrompt::render(&self.template, &self.supervision.profile, &conversation)?;
        if changes.drops_empty_think {
            prompt.drop_empty_think();
        }
        let EncodedPrompt { tokens, image_starts, image_spans } =
            EncodedPrompt::new(&self.tokenizer, &prompt, &self.image_tokens(tokens_per_image))?;
        let mut supervised = Vec::with_capacity(prompt.answers.len());
        for answer in &prompt.answers {
            let span =
                self.supervision.ends.span(&tokens, &prompt.text, &answer.range, answer.is_last);
            supervised.extend(without_images(span, &image_spans));
        }
        EncodedRow { input_ids: tokens.ids, supervised, image_starts }
            .cut(max_seq_len, tokens_per_image)
    }

    /// Number of tokens of a row with these turns before it is cut; cheaper than
    /// [`Self::encode_row`].
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`], [`RejectReason::TokenizerFailed`].
    pub fn num_tokens(&self, turns: &[Turn], tokens_per_image: usize) -> Result<usize, Reject> {
        self.num_changed_tokens(turns, ChatChanges::default(), tokens_per_image)
    }

    /// Like [`Self::num_tokens`], for the turns with `changes`.
    ///
    /// # Errors
    /// As for [`Self::num_tokens`].
    pub fn num_changed_tokens(
        &self,
        turns: &[Turn],
        changes: ChatChanges,
        tokens_per_image: usize,
    ) -> Result<usize, Reject> {
        let image = self.placeholder.run(tokens_per_image);
        let with_system = changes.with_system(turns);
        let conversation = self.conversation(with_system.as_deref().unwrap_or(turns), &image);
        let mut text = match self.supervision.profile.form {
            ContentForm::Text | ContentForm::TextPart => {
                self.template.render(&conversation.plain(), false)?
            }
            ContentForm::Parts { .. } => {
                MarkedPrompt::render(&self.template, &self.supervision.profile, &conversation)?.text
            }
        };
        if changes.drops_empty_think {
            // A block that a text quotes is left out too, which makes this length a little smaller
            // than that of the row.
            text = text.replace(EMPTY_THINK, "");
        }
        let encode = || self.tokenizer.encode_fast(text.as_str(), false);
        let encoding = caught(encode).unwrap_or_else(|panic| Err(panic.into()));
        Ok(encoding.map_err(tokenizer_failed)?.len())
    }

    /// Token ids of a conversation whose next answer is to be generated, and the first token of
    /// each of its images. If the template has no generation prompt and writes a header before an
    /// answer, that header opens the answer.
    ///
    /// # Errors
    /// A number of `<image>` tags other than `num_images`; a template that raises an error for the
    /// conversation.
    pub fn encode_prompt(
        &self,
        turns: &[Turn],
        num_images: usize,
        tokens_per_image: usize,
    ) -> Result<(Vec<i64>, Vec<usize>), Reject> {
        check_image_tags(turns, num_images)?;
        let image = self.placeholder.run(tokens_per_image);
        let conversation = self.conversation(turns, &image);
        let prompt =
            MarkedPrompt::render_prompt(&self.template, &self.supervision.profile, &conversation)?;
        let EncodedPrompt { tokens, image_starts, .. } =
            EncodedPrompt::new(&self.tokenizer, &prompt, &self.image_tokens(tokens_per_image))?;
        Ok((tokens.ids, image_starts))
    }

    /// The text of `ids`, without special tokens; ids outside the vocabulary are skipped.
    pub fn decode(&self, ids: &[i64]) -> String {
        let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
        self.tokenizer.decode(&ids, true).unwrap_or_default()
    }

    /// The text of the tokens `range` of `ids`, with special tokens, as it is within the text of all
    /// of them.
    pub fn decode_range(&self, ids: &[i64], range: Range<usize>) -> String {
        let decode = |ids: &[i64]| {
            let ids: Vec<u32> = ids.iter().filter_map(|&id| u32::try_from(id).ok()).collect();
            self.tokenizer.decode(&ids, false).unwrap_or_default()
        };
        // Some tokenizers write no space before the first token of a text.
        let (before, all) = (decode(&ids[..range.start]), decode(&ids[..range.end]));
        match all.strip_prefix(&before) {
            Some(text) => text.to_owned(),
            // The range begins within a character.
            None => decode(&ids[range]),
        }
    }

    /// The entries of `ids` in the vocabulary; empty for an id outside of it.
    pub fn tokens(&self, ids: &[i64]) -> Vec<String> {
        let token = |&id: &i64| self.tokenizer.id_to_token(u32::try_from(id).ok()?);
        ids.iter().map(|id| token(id).unwrap_or_default()).collect()
    }

    fn image_tokens(&self, count: usize) -> ImageTokens<'_> {
        ImageTokens {
            id: self.image_token_id,
            text: self.placeholder.token(),
            count,
            has_tags: self.placeholder.has_tags(),
        }
    }

    fn conversation<'a>(&'a self, turns: &'a [Turn], image: &'a str) -> Conversation<'a> {
        if turns.first().is_some_and(|turn| turn.tools.is_some())
            && !self.chat_template.contains("tools")
        {
            static WARNED: Once = Once::new();
            WARNED.call_once(|| {
                tracing::warn!(
                    "rows have functions under \"tools\" or \"functions\", which the chat template \
                     does not write: they are not used"
                );
            });
        }
        Conversation { turns, form: &self.supervision.profile.form, image }
    }
}

fn single_id(tokenizer: &Tokenizer, placeholder: &ImagePlaceholder) -> Option<i64> {
    let ids = |text: String| Some(tokenizer.encode(text, false).ok()?.get_ids().to_vec());
    let id = *ids(placeholder.run(1))?.first()?;
    // Two placeholders in a row could be one token, and an image has many in a row.
    (ids(placeholder.run(16))? == [id; 16]).then_some(i64::from(id))
}

/// Checks that the turns have as many image tags as there are images.
///
/// # Errors
/// More tags than images, or fewer.
fn check_image_tags(turns: &[Turn], num_images: usize) -> Result<(), Reject> {
    let num_tags = num_image_tags(turns);
    let reason = match num_tags.cmp(&num_images) {
        std::cmp::Ordering::Equal => return Ok(()),
        std::cmp::Ordering::Less => RejectReason::ImageWithoutPlaceholder,
        std::cmp::Ordering::Greater => RejectReason::PlaceholderWithoutImage,
    };
    let images = count(num_images, "image");
    let detail = format!("{images}, but {num_tags} {IMAGE_TAG} in the turns");
    Err(Reject::new(reason, detail))
}
