//! Finds out which tokens of a prompt are learned: the form of the chat template, and where its answers
//! end.

use std::collections::HashSet;
use std::path::Path;

use tokenizers::Tokenizer;

use crate::answer_ends::AnswerEnds;
use crate::error::DataError;
use crate::marks::ContentForm;
use crate::prompt_tokens::Tokens;
use crate::template::ChatTemplate;
use crate::template_limits::TOO_MUCH_WORK;
use crate::template_profile::{Opening, TemplateProfile};
use crate::tokenizer_files::TokenizerFiles;

/// Everything that decides which tokens are learned.
#[derive(Debug)]
pub(crate) struct Supervision {
    pub(crate) profile: TemplateProfile,
    pub(crate) ends: AnswerEnds,
    /// The same as text to be hashed. Empty for templates to which the first version of this crate
    /// gave the same tokens, so that data prepared with it keeps its hash.
    pub(crate) description: String,
}

impl Supervision {
    /// Renders a short conversation with `template` and reads from it how answers begin and end.
    /// `eos_token_id` and `files.generation_eos_ids` may end an answer. A template that cannot render
    /// the conversation is a warning, and its answers end with `eos_token`.
    ///
    /// # Errors
    /// A template that exceeds the limits of rendering.
    pub(crate) fn find(
        dir: &Path,
        files: &TokenizerFiles,
        tokenizer: &Tokenizer,
        template: &ChatTemplate,
        image_token: &str,
        eos_token_id: i64,
    ) -> Result<Self, DataError> {
        let eos_token = files.eos_token();
        let found = match TemplateProfile::find(template, image_token) {
            Ok((profile, probe)) => {
                let tokens = Tokens::encode(tokenizer, &probe.text)
                    .map_err(|e| DataError::content(dir, e.to_string()))?;
                let mut stops = vec![eos_token_id];
                stops.extend(&files.generation_eos_ids);
                let ends = AnswerEnds::from_probe(&probe, &tokens, markers(tokenizer), &stops);
                let is_first_rule = ends.is_by_eos(eos_token_id, &probe, &tokens)
                    && profile.opening == Opening::AtText
                    && profile.form == ContentForm::Text;
                let description = match is_first_rule {
                    true => String::new(),
                    false => format!("{profile:?} {}", ends.describe()),
                };
                Self { profile, ends, description }
            }
            // A template that cannot render four short turns within the limits cannot render any row.
            Err(reject) if reject.detail.contains(TOO_MUCH_WORK) => {
                return Err(DataError::content(dir, reject.detail));
            }
            Err(reject) => {
                tracing::warn!(
                    "{}: the chat template cannot render two questions with their answers ({}), so \
                     it is not known what it writes after an answer; answers end at {eos_token:?}",
                    dir.display(),
                    reject.detail
                );
                Self {
                    profile: TemplateProfile { form: ContentForm::Text, opening: Opening::AtText },
                    ends: AnswerEnds::from_eos(eos_token_id, eos_token),
                    description: String::new(),
                }
            }
        };
        if !found.ends.has_last() {
            tracing::warn!(
                "{}: the chat template writes no token after the last answer, so a model trained \
                 with it does not learn to stop: its answers end after `max_new_tokens` tokens, or \
                 where it happens to generate {eos_token:?}",
                dir.display()
            );
        }
        Ok(found)
    }
}

/// The tokens that were added to the vocabulary, except white space. Not all tokenizers mark the end of
/// a turn as special.
fn markers(tokenizer: &Tokenizer) -> HashSet<i64> {
    let added = tokenizer.get_added_tokens_decoder();
    let named = added.into_iter().filter(|(_, token)| !token.content.trim().is_empty());
    named.map(|(id, _)| i64::from(id)).collect()
}
