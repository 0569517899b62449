//! Answers of a model: to conversations, and to the rows of a data set. What the demo, the
//! evaluation and `vlm generate` share.

use std::ops::ControlFlow;

use tch::Tensor;
use vlm_data::{
    ChatTokenizer, ImageProcessor, Reject, RejectReason, Role, RowError, RowSource, Turn,
    num_image_tags,
};
use vlm_model::generate::{GenerateOptions, Prompt, generate};
use vlm_model::sampling::Sampling;
use vlm_model::{ImageInput, Vlm};

use crate::InferError;
use crate::precision::autocast_kind;
use vlm_shapes::Dtype;

/// What is needed to answer.
pub struct Answerer<'a> {
    /// The model.
    pub model: &'a Vlm,
    /// Its tokenizer.
    pub tokenizer: &'a ChatTokenizer,
    /// Its image preprocessing.
    pub processor: &'a ImageProcessor,
    /// Forward arithmetic.
    pub dtype: Dtype,
    /// Rows answered at once.
    pub batch_size: usize,
    /// Most new tokens an answer.
    pub max_new_tokens: usize,
    /// How tokens are chosen.
    pub sampling: Sampling,
    /// Show blank pictures instead of the rows' own: what is left is the language model's guess.
    pub blank_pictures: bool,
}

/// A row's answer beside what it should be.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The model's words.
    pub text: String,
    /// The row's first answer; empty where the row has none.
    pub expected: String,
}

/// Takes the answers of a batch of rows, each or why there is none, with the number of the first.
/// [`ControlFlow::Break`]: no more are wanted.
pub type OnAnswers<'a, E> =
    dyn FnMut(usize, &[Result<Answer, Reject>]) -> Result<ControlFlow<()>, E> + 'a;

/// A conversation whose next answer is asked for.
#[derive(Debug, Clone)]
pub struct Question {
    /// Its tokens.
    pub prompt: Prompt,
    /// Pixels of its images, `[n, 3, S, S]`.
    pub pixels: Vec<f32>,
}

impl Answerer<'_> {
    /// Makes a question of turns and the encoded bytes of their images.
    ///
    /// # Errors
    /// An image that cannot be decoded; turns that [`ChatTokenizer::encode_prompt`] refuses.
    pub fn question(
        &self,
        turns: &[Turn],
        images: &[impl AsRef<[u8]>],
    ) -> Result<Question, Reject> {
        let prompt = self.prompt(turns, images.len())?;
        let mut pixels = Vec::new();
        for bytes in images {
            pixels.extend(self.processor.preprocess(bytes.as_ref())?);
        }
        Ok(Question { prompt, pixels })
    }

    /// The tokens of turns that show `num_images` images.
    ///
    /// # Errors
    /// As [`ChatTokenizer::encode_prompt`].
    pub fn prompt(&self, turns: &[Turn], num_images: usize) -> Result<Prompt, Reject> {
        let tokens_per_image = self.model.tokens_per_image() as usize;
        let (input_ids, starts) =
            self.tokenizer.encode_prompt(turns, num_images, tokens_per_image)?;
        let image_starts = starts.into_iter().map(|start| start as i64).collect();
        Ok(Prompt { input_ids, image_starts })
    }

    /// Pixels on the model's device, `[n, 3, S, S]`; nothing where there are none.
    pub fn images(&self, pixels: &[f32]) -> ImageInput {
        if pixels.is_empty() {
            return ImageInput::None;
        }
        let side = self.processor.image_size() as i64;
        let pixels = Tensor::from_slice(pixels).view([-1, 3, side, side]);
        let pixels = pixels.to_device(self.model.device());
        // Zero is the mean colour of what the encoder was trained on: grey, and nothing there.
        ImageInput::Pixels(if self.blank_pictures { pixels.zeros_like() } else { pixels })
    }

    /// The tokens of the answers to prompts with their images, in one batch; `on_token` is told
    /// each with its row as soon as it is there.
    ///
    /// # Errors
    /// The model's.
    pub fn generate(
        &self,
        prompts: &[Prompt],
        images: ImageInput,
        on_token: &mut dyn FnMut(usize, i64),
    ) -> Result<Vec<Vec<i64>>, InferError> {
        let options = GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            stop_token_ids: self.tokenizer.stop_token_ids().to_vec(),
            sampling: self.sampling.clone(),
        };
        let kind = autocast_kind(self.dtype);
        let answers = vlm_torch::autocast(self.model.device(), kind, || {
            generate(self.model, prompts, images, &options, on_token)
        })??;
        Ok(answers)
    }

    /// The texts of the answers to questions, in one batch.
    ///
    /// # Errors
    /// The model's.
    pub fn answer_batch(&self, questions: &[Question]) -> Result<Vec<String>, InferError> {
        let prompts: Vec<Prompt> = questions.iter().map(|q| q.prompt.clone()).collect();
        let pixels: Vec<f32> = questions.iter().flat_map(|q| q.pixels.iter().copied()).collect();
        let answers = self.generate(&prompts, self.images(&pixels), &mut |_, _| ())?;
        Ok(answers.iter().map(|ids| self.tokenizer.decode(ids).trim().to_owned()).collect())
    }

    /// Answers to the first question of each of `rows`, in their order. A row that cannot be used
    /// has its reason in its place. `on_answers` is given each batch as soon as it is there, with
    /// the number in `rows` of its first.
    ///
    /// # Errors
    /// The model's; a disk that fails.
    pub fn answer_rows<E: From<InferError>>(
        &self,
        source: &dyn RowSource,
        rows: &[usize],
        on_answers: &mut OnAnswers<E>,
    ) -> Result<(), E> {
        for (k, rows) in rows.chunks(self.batch_size).enumerate() {
            let (mut answers, mut questions) = (Vec::new(), Vec::new());
            for &row in rows {
                answers.push(match self.question_of(source, row) {
                    Ok((question, expected)) => {
                        questions.push(question);
                        Ok(Answer { text: String::new(), expected })
                    }
                    Err(obstacle) => {
                        Err(obstacle.at(source.locate(row)).map_err(InferError::from)?)
                    }
                });
            }
            let mut texts = self.answer_batch(&questions)?.into_iter();
            for answer in answers.iter_mut().flatten() {
                answer.text = texts.next().unwrap_or_default();
            }
            if on_answers(k * self.batch_size, &answers)?.is_break() {
                break;
            }
        }
        Ok(())
    }

    /// Answers to the first question of every row, in the order of the source; `None` when
    /// `goes_on`, asked after each batch, says that they are no longer wanted.
    ///
    /// # Errors
    /// A row that cannot be used, by its place; the model's.
    pub fn answer_all(
        &self,
        source: &dyn RowSource,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<Vec<Answer>>, InferError> {
        let rows: Vec<usize> = (0..source.len()).collect();
        let mut all = Vec::with_capacity(rows.len());
        self.answer_rows::<InferError>(source, &rows, &mut |first, answers| {
            for (k, answer) in answers.iter().enumerate() {
                all.push(answer.clone().map_err(|reject| InferError::Row {
                    location: source.locate(first + k),
                    reject,
                })?);
            }
            Ok(if goes_on() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) })
        })?;
        Ok((all.len() == rows.len()).then_some(all))
    }

    /// The first question of a row that has an answer, and that answer; of a row without one, all
    /// of its turns.
    fn question_of(
        &self,
        source: &dyn RowSource,
        row: usize,
    ) -> Result<(Question, String), RowError> {
        let whole = source.row(row)?;
        let is_answer = |turn: &Turn| turn.role == Role::Assistant;
        let at = whole.turns.iter().position(is_answer).unwrap_or(whole.turns.len());
        let asked = &whole.turns[..at];
        if asked.is_empty() {
            return Err(Reject::new(RejectReason::InvalidRow, "the row asks nothing").into());
        }
        // Images of later turns are not shown yet. Where tags and images do not agree, the prompt
        // says so.
        let shown = if whole.num_image_tags() == whole.images.len() {
            num_image_tags(asked)
        } else {
            whole.images.len()
        };
        let images: Result<Vec<_>, RowError> = whole
            .images
            .iter()
            .take(shown)
            .enumerate()
            .map(|(k, image)| source.image_bytes(row, k, image))
            .collect();
        let expected = whole.turns.get(at).map_or(String::new(), |turn| turn.content.clone());
        Ok((self.question(asked, &images?)?, expected))
    }
}
