//! Answers: one token after the other, with a key/value cache, many rows at once.

use tch::{Device, IndexOp, Kind, Tensor};

use crate::ModelError;
use crate::kv_cache::KvCache;
use crate::sampling::{Sampler, Sampling};
use crate::vlm::{ImageInput, ModelBatch, Vlm};

/// When to stop, and how to choose.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most new tokens a row.
    pub max_new_tokens: usize,
    /// The tokens that end an answer; none of them is returned.
    pub stop_token_ids: Vec<i64>,
    /// How a token is chosen.
    pub sampling: Sampling,
}

/// A conversation whose next answer is asked for, as token ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// At least one.
    pub input_ids: Vec<i64>,
    /// First placeholder token of each of its images.
    pub image_starts: Vec<i64>,
}

/// New token ids of each prompt, in their order, until a token that ends the answer or `max_new_tokens`.
///
/// Prompts may differ in length: short ones are filled up on the left, where nothing looks, so that
/// an answer is the one that the row would get alone. `images` are those of all prompts, in order.
/// Rows that have ended leave the batch: the cost follows the answers' lengths. `on_token` is told
/// each new token with its row, as soon as it is there. Where the model has no position for a
/// further token, the answers end.
///
/// # Errors
/// As [`Vlm::forward`], for a prompt longer than the model has positions; an empty prompt; settings
/// that [`Sampling::validate`] refuses.
pub fn generate(
    model: &Vlm,
    prompts: &[Prompt],
    images: ImageInput,
    options: &GenerateOptions,
    on_token: &mut dyn FnMut(usize, i64),
) -> Result<Vec<Vec<i64>>, ModelError> {
    options.sampling.validate()?;
    let mut answers = vec![Vec::new(); prompts.len()];
    if prompts.is_empty() || options.max_new_tokens == 0 {
        return Ok(answers);
    }
    let (batch, mut cache) = left_padded(prompts, images, model.device())?;
    let sampler =
        |(row, prompt): (usize, &Prompt)| Sampler::new(&options.sampling, row, &prompt.input_ids);
    let mut samplers: Vec<Sampler> = prompts.iter().enumerate().map(sampler).collect();
    let mut alive: Vec<usize> = (0..prompts.len()).collect();
    tch::no_grad(|| {
        let mut hidden_bth = model.forward(&batch, Some(&mut cache), false)?.hidden;
        for step in 1.. {
            let logits_bv = model.lm().logits(&hidden_bth.i((.., -1, ..)));
            let ids = choose(&logits_bv, &alive, &mut samplers, &options.sampling)?;
            let goes_on = |&k: &usize| !options.stop_token_ids.contains(&ids[k]);
            let going_on: Vec<usize> = (0..ids.len()).filter(goes_on).collect();
            for &k in &going_on {
                answers[alive[k]].push(ids[k]);
                on_token(alive[k], ids[k]);
            }
            let is_full = cache.len() == model.lm().max_positions();
            if going_on.is_empty() || step == options.max_new_tokens || is_full {
                break;
            }
            if going_on.len() < alive.len() {
                let rows: Vec<i64> = going_on.iter().map(|&k| k as i64).collect();
                cache.select_rows(&Tensor::from_slice(&rows).to_device(model.device()));
            }
            alive = going_on.iter().map(|&k| alive[k]).collect();
            let next: Vec<i64> = going_on.iter().map(|&k| ids[k]).collect();
            let batch = ModelBatch {
                input_ids: Tensor::from_slice(&next).unsqueeze(1).to_device(model.device()),
                packed_lengths: None,
                images: ImageInput::None,
                image_starts: Vec::new(),
            };
            hidden_bth = model.forward(&batch, Some(&mut cache), false)?.hidden;
        }
        Ok(answers)
    })
}

/// The prompts side by side, and a cache that knows how far each is filled up.
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

/// The next token of each row that is alive.
fn choose(
    logits_bv: &Tensor,
    alive: &[usize],
    samplers: &mut [Sampler],
    sampling: &Sampling,
) -> Result<Vec<i64>, ModelError> {
    if sampling.is_plain_greedy() {
        return Ok(Vec::<i64>::try_from(logits_bv.argmax(-1, false))?);
    }
    let vocab_size = logits_bv.size()[1] as usize;
    let host = logits_bv.to_kind(Kind::Float).to_device(Device::Cpu).flatten(0, -1);
    let mut logits = Vec::<f32>::try_from(host)?;
    let rows = logits.chunks_mut(vocab_size).zip(alive);
    Ok(rows.map(|(row, &number)| samplers[number].next(row)).collect())
}
