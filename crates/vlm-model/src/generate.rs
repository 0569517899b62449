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
    let (batch, mut cache) = left_padded(prompts, images, model.device())?;
    let sampler =
        |(row, prompt): (usize, &Prompt)| Sampler::new(&options.sampling, row, &prompt.input_ids);
    let mut samplers: Vec<Sampler> = prompts.iter().enumerate().map(sampler).collect();
    let mut active: Vec<usize> = (0..prompts.len()).collect();
    tch::no_grad(|| {
        let mut hidden_bth = model.forward(&batch, Some(&mut cache), false)?.hidden;
        for step in 1.. {
            let logits_bv = model.lm().logits(&hidden_bth.i((.., -1, ..)));
            let ids = next_tokens(&logits_bv, &active, &mut samplers, &options.sampling)?;
            let is_unfinished = |&k: &usize| !options.stop_token_ids.contains(&ids[k]);
            let unfinished: Vec<usize> = (0..ids.len()).filter(is_unfinished).collect();
            for &k in &unfinished {
                generated[active[k]].push(ids[k]);
                on_token(active[k], ids[k]);
            }
            let is_full = cache.len() == model.lm().max_positions();
            if unfinished.is_empty() || step == options.max_new_tokens || is_full {
                break;
            }
            if unfinished.len() < active.len() {
                let rows: Vec<i64> = unfinished.iter().map(|&k| k as i64).collect();
                cache.select_rows(&Tensor::from_slice(&rows).to_device(model.device()));
            }
            active = unfinished.iter().map(|&k| active[k]).collect();
            let next: Vec<i64> = unfinished.iter().map(|&k| ids[k]).collect();
            let batch = ModelBatch {
                input_ids: Tensor::from_slice(&next).unsqueeze(1).to_device(model.device()),
                packed_lengths: None,
                images: ImageInput::None,
                image_starts: Vec::new(),
            };
            hidden_bth = model.forward(&batch, Some(&mut cache), false)?.hidden;
        }
        Ok(generated)
    })
}

/// The prompts as one batch, padded on the left, and a cache with the length of each row's padding.
fn left_padded(
    prompts: &[Prompt],
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
    let cache = if padding.iter().all(|&pad| pad == 0) {
        KvCache::default()
    } else {
        KvCache::left_padded(Tensor::from_slice(&padding).to_device(device))
    };
    let shape = [prompts.len() as i64, longest as i64];
    let input_ids = Tensor::from_slice(&ids).view(shape).to_device(device);
    Ok((ModelBatch { input_ids, packed_lengths: None, images, image_starts }, cache))
}

/// The next token of each row of `logits_bv`; `active` has the index of each row's sampler.
fn next_tokens(
    logits_bv: &Tensor,
    active: &[usize],
    samplers: &mut [Sampler],
    sampling: &Sampling,
) -> Result<Vec<i64>, ModelError> {
    if sampling.is_plain_greedy() {
        return Ok(Vec::<i64>::try_from(logits_bv.argmax(-1, false))?);
    }
    let vocab_size = logits_bv.size()[1] as usize;
    let host = logits_bv.to_kind(Kind::Float).to_device(Device::Cpu).flatten(0, -1);
    let mut logits = Vec::<f32>::try_from(host)?;
    let rows = logits.chunks_mut(vocab_size).zip(active);
    Ok(rows.map(|(row, &number)| samplers[number].next(row)).collect())
}
