//! Generates the assistant's first turn for the rows of a dataset, next to the text that the row
//! has for it.

use std::ops::ControlFlow;

use vlm_data::{Reject, RejectReason, Role, RowError, RowSource, Turn, num_image_tags};

use crate::InferError;
use crate::generator::{Generator, PreparedPrompt};

/// A generated text, with the text that the row has for it.
#[derive(Debug, Clone)]
pub struct Completion {
    /// The text of the last turn before it, in which `<image>` marks the place of an image.
    pub question: String,
    /// The generated text.
    pub text: String,
    /// The first assistant turn of the row; empty if the row has none.
    pub expected: String,
}

/// A function that is called with each batch of completions and the index of the first one. A
/// rejected row has the reason instead of a completion. [`ControlFlow::Break`] ends the generation.
pub type OnCompletions<'a, E> =
    dyn FnMut(usize, &[Result<Completion, Reject>]) -> Result<ControlFlow<()>, E> + 'a;

impl Generator<'_> {
    /// Generates text for the first question of each of `rows`, in order. `on_completions` is
    /// called after each batch, with the index in `rows` of its first row.
    ///
    /// # Errors
    /// A failure of the model or of the disk; an error of `on_completions`.
    pub fn generate_rows<E: From<InferError>>(
        &self,
        source: &dyn RowSource,
        rows: &[usize],
        on_completions: &mut OnCompletions<E>,
    ) -> Result<(), E> {
        for (k, rows) in rows.chunks(self.batch_size).enumerate() {
            let (mut completions, mut prompts) = (Vec::new(), Vec::new());
            for &row in rows {
                completions.push(match self.prepare_row(source, row) {
                    Ok((prompt, completion)) => {
                        prompts.push(prompt);
                        Ok(completion)
                    }
                    Err(error) => Err(error.at(source.locate(row)).map_err(InferError::from)?),
                });
            }
            let mut texts = self.generate_batch(&prompts)?.into_iter();
            for completion in completions.iter_mut().flatten() {
                completion.text = texts.next().unwrap_or_default();
            }
            if on_completions(k * self.batch_size, &completions)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Generates text for the first question of every row of the source, in order. `continues` is
    /// called after each batch; the result is `None` if it returned `false` before the last batch.
    ///
    /// # Errors
    /// A rejected row, with its location; a failure of the model.
    pub fn generate_all_rows(
        &self,
        source: &dyn RowSource,
        continues: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Completion>>, InferError> {
        let rows: Vec<usize> = (0..source.len()).collect();
        let mut all = Vec::with_capacity(rows.len());
        self.generate_rows::<InferError>(source, &rows, &mut |first, completions| {
            for (k, completion) in completions.iter().enumerate() {
                all.push(completion.clone().map_err(|reject| InferError::Row {
                    location: source.locate(first + k),
                    reject,
                })?);
            }
            Ok(if continues() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok((all.len() == rows.len()).then_some(all))
    }

    /// The prompt of a row, which consists of the turns before its first assistant turn, and a
    /// completion without its text. For a row without an assistant turn, the prompt has all turns.
    fn prepare_row(
        &self,
        source: &dyn RowSource,
        row: usize,
    ) -> Result<(PreparedPrompt, Completion), RowError> {
        let whole = source.row(row)?;
        let is_assistant = |turn: &Turn| turn.role == Role::Assistant;
        let at = whole.turns.iter().position(is_assistant).unwrap_or(whole.turns.len());
        let turns = &whole.turns[..at];
        let Some(last) = turns.last() else {
            return Err(Reject::new(RejectReason::InvalidRow, "the row has no question").into());
        };
        // The images of later turns are not part of the prompt. If the numbers of tags and images
        // differ, `prepare` returns an error.
        let num_shown = if whole.num_image_tags() == whole.images.len() {
            num_image_tags(turns)
        } else {
            whole.images.len()
        };
        let images: Result<Vec<_>, RowError> = whole
            .images
            .iter()
            .take(num_shown)
            .enumerate()
            .map(|(k, image)| source.image_bytes(row, k, image))
            .collect();
        let expected = whole.turns.get(at).map_or(String::new(), |turn| turn.content.clone());
        let completion =
            Completion { question: last.content.clone(), text: String::new(), expected };
        Ok((self.prepare(turns, &images?)?, completion))
    }
}
