//! Answers of a model to the rows of a data set: what the demo and the evaluation look at.

use tch::Tensor;
use vlm_data::{ChatTokenizer, ImageProcessor, Reject, RejectReason, Role, RowSource};
use vlm_model::generate::{GenerateOptions, generate_greedy};
use vlm_model::{ImageInput, ModelBatch, Vlm};

use crate::TrainError;

/// What is needed to answer.
pub struct Answerer<'a> {
    /// The model.
    pub model: &'a Vlm,
    /// Its tokenizer.
    pub tokenizer: &'a ChatTokenizer,
    /// Its image preprocessing.
    pub processor: &'a ImageProcessor,
    /// Rows answered at once.
    pub batch_size: usize,
    /// Most new tokens an answer.
    pub max_new_tokens: usize,
    /// Show blank pictures instead of the rows' own: what is left is the language model's guess.
    pub blank_pictures: bool,
}

/// A row's answer beside what it should be.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The model's words.
    pub text: String,
    /// The row's first answer.
    pub expected: String,
}

struct Prompt {
    row: usize,
    ids: Vec<i64>,
    image_starts: Vec<usize>,
    pixels: Vec<f32>,
    expected: String,
}

impl Answerer<'_> {
    /// Greedy answers to the first question of each row, in the order of the source.
    ///
    /// # Errors
    /// A row that cannot be used, by its place; the model's.
    pub fn answer_all(&self, source: &dyn RowSource) -> Result<Vec<Answer>, TrainError> {
        let prompts: Result<Vec<Prompt>, TrainError> = (0..source.len())
            .map(|row| {
                self.prompt(source, row).map_err(|e| {
                    TrainError::Failed(format!("{}: {}", source.locate(row), e.detail))
                })
            })
            .collect();
        let mut prompts = prompts?;
        // Prompts of one length share a batch, so that none needs padding.
        prompts.sort_by_key(|prompt| (prompt.ids.len(), prompt.row));
        let mut answers: Vec<Option<Answer>> = vec![None; source.len()];
        for same_length in prompts.chunk_by(|a, b| a.ids.len() == b.ids.len()) {
            for batch in same_length.chunks(self.batch_size) {
                for (prompt, text) in batch.iter().zip(self.answer_batch(batch)?) {
                    answers[prompt.row] = Some(Answer { text, expected: prompt.expected.clone() });
                }
            }
        }
        Ok(answers.into_iter().flatten().collect())
    }

    fn prompt(&self, source: &dyn RowSource, row: usize) -> Result<Prompt, Reject> {
        let whole = source.row(row)?;
        let is_answer = |turn: &vlm_data::Turn| turn.role == Role::Assistant;
        let Some(at) = whole.turns.iter().position(is_answer) else {
            return Err(Reject::new(RejectReason::NoSupervisedToken, "the row has no answer"));
        };
        let tokens_per_image = self.model.tokens_per_image() as usize;
        let (ids, image_starts) = self.tokenizer.encode_prompt(
            &whole.turns[..at],
            whole.images.len(),
            tokens_per_image,
        )?;
        let mut pixels = Vec::new();
        for (k, image) in whole.images.iter().enumerate() {
            pixels.extend(self.processor.preprocess(&source.image_bytes(row, k, image)?)?);
        }
        Ok(Prompt { row, ids, image_starts, pixels, expected: whole.turns[at].content.clone() })
    }

    fn answer_batch(&self, prompts: &[Prompt]) -> Result<Vec<String>, TrainError> {
        let device = self.model.device();
        let side = self.processor.image_size() as i64;
        let ids: Vec<i64> = prompts.iter().flat_map(|prompt| prompt.ids.iter().copied()).collect();
        let pixels: Vec<f32> = prompts.iter().flat_map(|p| p.pixels.iter().copied()).collect();
        let mut pixels = Tensor::from_slice(&pixels).view([-1, 3, side, side]).to_device(device);
        if self.blank_pictures {
            // Zero is the mean colour of what the encoder was trained on: grey, and nothing there.
            pixels = pixels.zeros_like();
        }
        let places = prompts.iter().enumerate().flat_map(|(row, prompt)| {
            prompt.image_starts.iter().map(move |&start| (row as i64, start as i64))
        });
        let batch = ModelBatch {
            input_ids: Tensor::from_slice(&ids).view([prompts.len() as i64, -1]).to_device(device),
            images: if pixels.size()[0] == 0 {
                ImageInput::None
            } else {
                ImageInput::Pixels(pixels)
            },
            image_starts: places.collect(),
        };
        let options = GenerateOptions {
            max_new_tokens: self.max_new_tokens,
            eos_token_id: Some(self.tokenizer.eos_token_id()),
        };
        let answers = generate_greedy(self.model, &batch, &options)?;
        Ok(answers.iter().map(|ids| self.tokenizer.decode(ids).trim().to_owned()).collect())
    }
}
