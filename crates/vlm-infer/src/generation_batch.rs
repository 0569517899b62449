//! Generation for prompts that arrive one after another: they join a batch while it is running.

use vlm_model::ModelError;
use vlm_model::generate::{Decoded, DecodingBatch, NewRow};
use vlm_model::sampling::{Sampler, Sampling};

use crate::InferError;
use crate::generator::{Generator, PreparedPrompt};
use crate::precision::autocast_kind;

/// A prompt that is added to a [`GenerationBatch`].
#[derive(Debug)]
pub struct NewPrompt<'a> {
    /// Identifies the prompt in the results.
    pub key: u64,
    /// The prompt.
    pub prompt: &'a PreparedPrompt,
    /// How the next token is chosen.
    pub sampling: &'a Sampling,
    /// Largest number of tokens that are generated, at least 1.
    pub max_new_tokens: usize,
}

/// A running batch. A prompt gets the same tokens as alone, whatever else is in the batch, apart
/// from the rounding of sums.
pub struct GenerationBatch<'a> {
    generator: Generator<'a>,
    batch: DecodingBatch<'a>,
}

impl<'a> Generator<'a> {
    /// A batch without prompts. The number of tokens and the sampling are those of each prompt.
    pub fn batch(&self) -> GenerationBatch<'a> {
        let batch = DecodingBatch::new(self.model, self.tokenizer.stop_token_ids().to_vec());
        GenerationBatch { generator: self.clone(), batch }
    }
}

impl GenerationBatch<'_> {
    /// Number of prompts whose text has not ended.
    pub fn len(&self) -> usize {
        self.batch.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.batch.is_empty()
    }

    /// Adds prompts, and generates the first token of each.
    ///
    /// # Errors
    /// A failure of the model, for example for a prompt that is longer than its number of
    /// positions. The batch then has the prompts that it had.
    pub fn add(&mut self, prompts: &[NewPrompt]) -> Result<Vec<Decoded>, InferError> {
        let pixels: Vec<f32> =
            prompts.iter().flat_map(|new| new.prompt.pixels.iter().copied()).collect();
        let rows = prompts.iter().map(|new| NewRow {
            key: new.key,
            prompt: &new.prompt.prompt,
            sampler: Sampler::new(new.sampling, 0, &new.prompt.prompt.input_ids),
            max_new_tokens: new.max_new_tokens,
        });
        let (rows, images) = (rows.collect(), self.generator.image_input(&pixels));
        self.run(|batch| batch.add(rows, images))
    }

    /// Generates one more token of each prompt.
    ///
    /// # Errors
    /// A failure of the model.
    pub fn step(&mut self) -> Result<Vec<Decoded>, InferError> {
        self.run(|batch| batch.step())
    }

    /// Removes the prompts for which `keeps` is false.
    pub fn retain(&mut self, keeps: impl Fn(u64) -> bool) {
        self.batch.retain(keeps);
    }

    fn run(
        &mut self,
        forward: impl FnOnce(&mut DecodingBatch) -> Result<Vec<Decoded>, ModelError>,
    ) -> Result<Vec<Decoded>, InferError> {
        let kind = autocast_kind(self.generator.dtype);
        let batch = &mut self.batch;
        Ok(vlm_torch::autocast(self.generator.model.device(), kind, || forward(batch))??)
    }
}
