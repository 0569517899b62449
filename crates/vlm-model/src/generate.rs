//! Answers: greedy generation with a key/value cache, batched.

use tch::{IndexOp, Tensor};

use crate::ModelError;
use crate::lm::KvCache;
use crate::vlm::{ImageInput, ModelBatch, Vlm};

/// When to stop.
#[derive(Debug, Clone)]
pub struct GenerateOptions {
    /// Most new tokens a row.
    pub max_new_tokens: usize,
    /// The token that ends an answer (it is not returned), if any.
    pub eos_token_id: Option<i64>,
}

/// Greedy answers to prompts of one length: the most likely token at each step.
///
/// `prompts.input_ids` `[B, T]` without padding → B lists of new token ids. Rows that have ended
/// leave the batch, so that the cost follows the answers' lengths.
///
/// # Errors
/// As [`Vlm::forward`]; a prompt and answer longer than the model has positions for.
pub fn generate_greedy(
    model: &Vlm,
    prompts: &ModelBatch,
    options: &GenerateOptions,
) -> Result<Vec<Vec<i64>>, ModelError> {
    tch::no_grad(|| {
        let rows = prompts.input_ids.size()[0] as usize;
        let mut answers = vec![Vec::new(); rows];
        let mut alive: Vec<usize> = (0..rows).collect();
        let mut cache = KvCache::default();
        let mut hidden_bth = model.forward(prompts, Some(&mut cache), false)?.hidden;
        for step in 0..options.max_new_tokens {
            let next = model.lm().logits(&hidden_bth.i((.., -1, ..))).argmax(-1, false);
            let ids = Vec::<i64>::try_from(&next)?;
            let going_on: Vec<i64> = (0..ids.len() as i64)
                .filter(|&k| Some(ids[k as usize]) != options.eos_token_id)
                .collect();
            for &k in &going_on {
                answers[alive[k as usize]].push(ids[k as usize]);
            }
            if going_on.is_empty() || step + 1 == options.max_new_tokens {
                break;
            }
            let mut next = next;
            if going_on.len() < alive.len() {
                alive = going_on.iter().map(|&k| alive[k as usize]).collect();
                let keep = Tensor::from_slice(&going_on).to_device(next.device());
                next = next.index_select(0, &keep);
                cache.select_rows(&keep);
            }
            let batch = ModelBatch {
                input_ids: next.unsqueeze(1),
                images: ImageInput::None,
                image_starts: Vec::new(),
            };
            hidden_bth = model.forward(&batch, Some(&mut cache), false)?.hidden;
        }
        Ok(answers)
    })
}
