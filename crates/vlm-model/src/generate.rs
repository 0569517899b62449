//! Generation of text, token by token, for a batch of prompts, with a key/value cache.

use tch::{Device, IndexOp, Kind, Tensor};

use crate::ModelError;
use crate::kv_cache::KvCache;
use crate::sampling::{Sampler, Sampling};
use crate::{ImageInput, ModelBatch, Vlm};

/// Options of [`generate`].
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Largest number of new tokens per prompt.
    pub max_new_tokens: usize,
    /// The tokens that end the generated text; they are not returned.
    pub stop_token_ids: Vec<i64>,
    /// How the next token is chosen.
    pub sampling: Sampling,
}

/// A conversation to be continued, as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The token ids, at least one.
    pub input_ids: Vec<i64>,
    /// Position of the first placeholder token of each image.
    pub image_starts: Vec<i64>,
}

/// Generates the continuations of `prompts` in one batch, and returns the new token ids of each, in
/// the order of the prompts.
///
/// A continuation ends before a stop token, after `max_new_tokens`, or when the model has no
/// position for a further token. `images` are the images of all prompts, in order. `on_token` is
/// called with the index of the prompt and the id of each token as soon as it is chosen.
///
/// Prompts may differ in length: short ones are padded on the left and the padding is masked, so
/// that each continuation is the same as in a batch of its own. A row whose continuation has ended
/// is removed from the batch, so that it costs nothing more.
///
/// # Errors
/// As [`Vlm::forward`], for example for a prompt that is longer than the model's number of
/// positions. A prompt is empty, or [`Sampling::validate`] fails.
pub fn generate(
    model: &Vlm,
    prompts: &[Prompt],
    images: ImageInput,
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(usize, i64),
) -> Result<Vec<Vec<i64>>, ModelError> {
    options.sampling.validate()?;
    let mut generated = vec![Vec::new(); prompts.len()];
    if prompts.is_empty() || options.max_new_tokens == 0 {
        return Ok(generated);
    }
    let mut batch = DecodingBatch::new(model, options.stop_token_ids.clone());
    let rows = prompts.iter().enumerate().map(|(key, prompt)| NewRow {
        key: key as u64,
        prompt,
        sampler: Sampler::new(&options.sampling, key, &prompt.input_ids),
        max_new_tokens: options.max_new_tokens,
    });
    let mut decoded = batch.add(rows.collect(), images)?;
    loop {
        for Decoded { key, id, .. } in decoded {
            if let Some(id) = id {
                generated[key as usize].push(id);
                on_token(key as usize, id);
            }
        }
        if batch.is_empty() {
            return Ok(generated);
        }
        decoded = batch.step()?;
    }
}

/// A prompt that is added to a [`DecodingBatch`].
#[derive(Debug)]
pub struct NewRow<'a> {
    /// Identifies the row in the results.
    pub key: u64,
    /// The prompt.
    pub prompt: &'a Prompt,
    /// Chooses the tokens that follow the prompt.
    pub sampler: Sampler,
    /// Largest number of new tokens, at least 1.
    pub max_new_tokens: usize,
}

/// Why the text of a row has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RowEnd {
    /// The model chose a stop token.
    StopToken,
    /// The row has `max_new_tokens` new tokens, or the model has no position for a further one.
    Length,
}

/// What one step of a [`DecodingBatch`] did for a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Decoded {
    /// The [`NewRow::key`] of the row.
    pub key: u64,
    /// The new token; `None` if it was a stop token.
    pub id: Option<i64>,
    /// Set when the row has ended, and was removed from the batch.
    pub end: Option<RowEnd>,
}

/// A batch of texts that are generated token by token, to which rows can be added between two
/// steps. The tokens of a row do not depend on the other rows, apart from the rounding of sums.
#[derive(Debug)]
pub struct DecodingBatch<'a> {
    model: &'a Vlm,
    stop_token_ids: Vec<i64>,
    cache: KvCache,
    /// In the order of the rows of `cache`.
    rows: Vec<Row>,
}

/// A row whose text has not ended.
#[derive(Debug)]
struct Row {
    key: u64,
    sampler: Sampler,
    /// Number of new tokens that may follow `last`.
    remaining: usize,
    /// The newest token, which is not in the cache yet.
    last: i64,
}

impl<'a> DecodingBatch<'a> {
    /// A batch without rows. Texts end before one of `stop_token_ids`.
    pub fn new(model: &'a Vlm, stop_token_ids: Vec<i64>) -> Self {
        Self { model, stop_token_ids, cache: KvCache::default(), rows: Vec::new() }
    }

    /// Whether there are no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Number of rows.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Adds rows and generates the first token of each. `images` are the images of all their
    /// prompts, in order. If this fails, the batch has the rows that it had.
    ///
    /// # Errors
    /// As [`Vlm::forward`], for example for a prompt that is longer than the model's number of
    /// positions. A prompt is empty.
    pub fn add(
        &mut self,
        rows: Vec<NewRow>,
        images: ImageInput,
    ) -> Result<Vec<Decoded>, ModelError> {
        let prompts: Vec<&Prompt> = rows.iter().map(|row| row.prompt).collect();
        let (batch, cache) = left_padded(&prompts, images, self.model.device())?;
        let new_row = |row: NewRow| Row {
            key: row.key,
            sampler: row.sampler,
            remaining: row.max_new_tokens,
            last: 0,
        };
        let rows = rows.into_iter().map(new_row).collect();
        let mut added =
            Self { model: self.model, stop_token_ids: self.stop_token_ids.clone(), cache, rows };
        let decoded = added.forward(&batch)?;
        if !added.is_empty() {
            self.cache.append(added.cache);
            self.rows.append(&mut added.rows);
        }
        Ok(decoded)
    }

    /// Generates one more token of each row.
    ///
    /// # Errors
    /// As [`Vlm::forward`].
    pub fn step(&mut self) -> Result<Vec<Decoded>, ModelError> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let ids: Vec<i64> = self.rows.iter().map(|row| row.last).collect();
        let input_ids = Tensor::from_slice(&ids).unsqueeze(1).to_device(self.model.device());
        self.forward(&ModelBatch {
            input_ids,
            packed_lengths: None,
            images: ImageInput::None,
            image_starts: Vec::new(),
        })
    }

    /// Removes the rows for which `keeps` is false.
    pub fn retain(&mut self, keeps: impl Fn(u64) -> bool) {
        let kept = (0..self.rows.len()).filter(|&index| keeps(self.rows[index].key)).collect();
        self.select(kept);
    }

    /// The forward pass of `batch`, which has the same rows, and the token that follows in each.
    /// Rows that have ended are removed.
    fn forward(&mut self, batch: &ModelBatch) -> Result<Vec<Decoded>, ModelError> {
        let logits_bv = tch::no_grad(|| {
            let hidden_bth = self.model.forward(batch, Some(&mut self.cache), false)?.hidden;
            Ok::<_, ModelError>(self.model.lm().logits(&hidden_bth.i((.., -1, ..))))
        })?;
        let ids = next_tokens(&logits_bv, &mut self.rows)?;
        let row_lengths = self.cache.row_lengths();
        let max_positions = self.model.lm().max_positions();
        let mut decoded = Vec::with_capacity(ids.len());
        let mut unfinished = Vec::with_capacity(ids.len());
        for (index, row) in self.rows.iter_mut().enumerate() {
            let id = ids[index];
            let is_stop = self.stop_token_ids.contains(&id);
            row.last = id;
            row.remaining = row.remaining.saturating_sub(1);
            let end = if is_stop {
                Some(RowEnd::StopToken)
            } else {
                let is_full = row.remaining == 0 || row_lengths[index] == max_positions;
                is_full.then_some(RowEnd::Length)
            };
            if end.is_none() {
                unfinished.push(index);
            }
            decoded.push(Decoded { key: row.key, id: (!is_stop).then_some(id), end });
        }
        self.select(unfinished);
        Ok(decoded)
    }

    /// Keeps only the rows with these indices, which are in order.
    fn select(&mut self, indices: Vec<usize>) {
        if indices.len() == self.rows.len() {
            return;
        }
        if indices.is_empty() {
            self.cache = KvCache::default();
        } else {
            self.cache.select_rows(&indices);
        }
        let mut index = 0;
        self.rows.retain(|_| {
            index += 1;
            indices.binary_search(&(index - 1)).is_ok()
        });
    }
}

/// The prompts as one batch, padded on the left, and a cache with the length of each row's padding.
fn left_padded(
    prompts: &[&Prompt],
    images: ImageInput,
    device: Device,
) -> Result<(ModelBatch, KvCache), ModelError> {
    let longest = prompts.iter().map(|prompt| prompt.input_ids.len()).max().unwrap_or(0);
    let mut ids = Vec::with_capacity(prompts.len() * longest);
    let mut image_starts = Vec::new();
    let mut padding = Vec::with_capacity(prompts.len());
    for (row, prompt) in prompts.iter().enumerate() {
        if prompt.input_ids.is_empty() {
            return Err(ModelError::Shape(format!("prompt {row} has no tokens")));
        }
        let pad = longest - prompt.input_ids.len();
        padding.push(pad as i64);
        ids.extend(std::iter::repeat_n(0, pad));
        ids.extend_from_slice(&prompt.input_ids);
        image_starts
            .extend(prompt.image_starts.iter().map(|start| (row as i64, pad as i64 + start)));
    }
    let cache = KvCache::left_padded(padding, device);
    let shape = [prompts.len() as i64, longest as i64];
    let input_ids = Tensor::from_slice(&ids).view(shape).to_device(device);
    Ok((ModelBatch { input_ids, packed_lengths: None, images, image_starts }, cache))
}

/// The next token of each row of `logits_bv`.
fn next_tokens(logits_bv: &Tensor, rows: &mut [Row]) -> Result<Vec<i64>, ModelError> {
    if rows.iter().all(|row| row.sampler.is_plain_greedy()) {
        return Ok(Vec::<i64>::try_from(logits_bv.argmax(-1, false))?);
    }
    let vocab_size = logits_bv.size()[1] as usize;
    let host = logits_bv.to_kind(Kind::Float).to_device(Device::Cpu).flatten(0, -1);
    let mut logits = Vec::<f32>::try_from(host)?;
    let choose = |(logits, row): (&mut [f32], &mut Row)| row.sampler.next(logits);
    Ok(logits.chunks_mut(vocab_size).zip(rows).map(choose).collect())
}
