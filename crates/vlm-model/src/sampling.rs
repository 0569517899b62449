//! Sampling: chooses the next token from logits.
//!
//! The steps and their order are those of the `transformers` library's logits processors:
//! repetition penalty, temperature, top-k, top-p, then a draw. It works on the CPU, on the logits
//! of one position at a time, and does not use tensors.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::ModelError;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Logits are divided by this. 0 always chooses the most likely token.
    pub temperature: f64,
    /// Only this number of the most likely tokens is considered. 0 means all.
    pub top_k: usize,
    /// Only the most likely tokens whose probabilities sum to this are considered (Holtzman et al.
    /// 2020). 1 means all.
    pub top_p: f64,
    /// Positive logits of tokens that occur in the prompt or the generated text are divided by
    /// this, negative ones multiplied (Keskar et al. 2019). 1 changes nothing.
    pub repetition_penalty: f64,
    /// Seed of the draws. The draws for a prompt depend only on this and on its index in the batch.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy decoding.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 1337 }
    }
}

impl Sampling {
    /// Checks that every setting is in its range.
    ///
    /// # Errors
    /// A setting is out of its range; the message names it with its value and its range.
    pub fn validate(&self) -> Result<(), ModelError> {
        let wrong = |message: String| Err(ModelError::Config(message));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong(format!(
                "`temperature` is {}; it must be positive, or 0 for greedy decoding",
                self.temperature
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong(format!("`top_p` is {}; it must be above 0 and at most 1", self.top_p));
        }
        if !(1e-6..=1e6).contains(&self.repetition_penalty) {
            return wrong(format!(
                "`repetition_penalty` is {}; it must be from 1e-6 to 1e6, and 1 is no penalty",
                self.repetition_penalty
            ));
        }
        Ok(())
    }

    /// Whether the next token is always the one with the largest unchanged logit.
    pub fn is_plain_greedy(&self) -> bool {
        self.is_greedy() && self.repetition_penalty == 1.0
    }

    /// Whether the next token is always the one with the largest logit. A division by a temperature
    /// that is not zero, but very small, would make logits infinite.
    fn is_greedy(&self) -> bool {
        self.temperature < 1e-20
    }

    /// Applies repetition penalty, temperature, top-k and top-p to `logits` `[vocab_size]`; `seen`
    /// are the ids of the prompt and the generated tokens. Logits of excluded tokens become minus
    /// infinity. At temperature 0 only the penalty is applied.
    pub fn process(&self, logits: &mut [f32], seen: &[i64]) {
        penalise(logits, seen, self.repetition_penalty as f32);
        if self.is_greedy() {
            return;
        }
        let temperature = self.temperature as f32;
        logits.iter_mut().for_each(|logit| *logit /= temperature);
        keep_top_k(logits, self.top_k);
        keep_top_p(logits, self.top_p as f32);
    }
}

/// Chooses the tokens that follow one prompt.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    seen: Vec<i64>,
}

impl Sampler {
    /// A sampler for the prompt with the index `row` in the batch; `prompt` are its token ids.
    pub fn new(sampling: &Sampling, row: usize, prompt: &[i64]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        rng.set_stream(row as u64);
        Self { sampling: sampling.clone(), rng, seen: prompt.to_vec() }
    }

    /// Whether it always chooses the largest unchanged logit.
    pub fn is_plain_greedy(&self) -> bool {
        self.sampling.is_plain_greedy()
    }

    /// Chooses the next token from `logits` `[vocab_size]`, which are changed in place.
    pub fn next(&mut self, logits: &mut [f32]) -> i64 {
        self.sampling.process(logits, &self.seen);
        let id = if self.sampling.is_greedy() {
            argmax(logits)
        } else {
            draw(&softmax(logits), self.rng.random::<f32>())
        } as i64;
        self.seen.push(id);
        id
    }
}

/// Applies the repetition penalty once to each id in `seen`, even if it occurs more than once. Ids
/// outside the vocabulary are ignored.
fn penalise(logits: &mut [f32], seen: &[i64], penalty: f32) {
    if penalty == 1.0 {
        return;
    }
    let mut ids: Vec<usize> = seen.iter().filter_map(|&id| usize::try_from(id).ok()).collect();
    ids.sort_unstable();
    ids.dedup();
    for id in ids {
        let Some(logit) = logits.get_mut(id) else { continue };
        *logit = if *logit < 0.0 { *logit * penalty } else { *logit / penalty };
    }
}

/// Excludes the logits below the k-th largest; those that equal it are kept.
fn keep_top_k(logits: &mut [f32], top_k: usize) {
    if top_k == 0 || top_k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, &mut least, _) = sorted.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a));
    exclude(logits, |logit| logit < least);
}

/// Excludes the least likely tokens whose probabilities sum to at most `1 - top_p`; the most likely
/// one is always kept.
fn keep_top_p(logits: &mut [f32], top_p: f32) {
    if top_p >= 1.0 {
        return;
    }
    let probabilities = softmax(logits);
    let mut ascending: Vec<usize> = (0..logits.len()).collect();
    ascending.sort_by(|&a, &b| logits[a].total_cmp(&logits[b]));
    let mut sum = 0.0;
    for &id in &ascending[..ascending.len() - 1] {
        sum += probabilities[id];
        if sum > 1.0 - top_p {
            break;
        }
        logits[id] = f32::NEG_INFINITY;
    }
}

fn exclude(logits: &mut [f32], is_excluded: impl Fn(f32) -> bool) {
    for logit in logits.iter_mut().filter(|logit| is_excluded(**logit)) {
        *logit = f32::NEG_INFINITY;
    }
}

/// The probabilities of logits.
fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = exp.iter().sum();
    exp.iter().map(|value| value / sum).collect()
}

/// Draws an id: the first whose cumulative probability exceeds `point`, which is in `[0, 1)`.
fn draw(probabilities: &[f32], point: f32) -> usize {
    let mut sum = 0.0;
    for (id, probability) in probabilities.iter().enumerate() {
        sum += probability;
        if point < sum {
            return id;
        }
    }
    // Rounding can make the sum less than 1: then it is the last id with a positive probability.
    probabilities.iter().rposition(|&probability| probability > 0.0).unwrap_or(0)
}

/// The index of the largest logit, the first one of equals.
fn argmax(logits: &[f32]) -> usize {
    let mut best = 0;
    for (id, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = id;
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draws_follow_the_probabilities() {
        let logits = [1.0f32, 3.0, f32::NEG_INFINITY, 2.0];
        let sampling = Sampling { temperature: 1.0, ..Sampling::default() };
        let mut sampler = Sampler::new(&sampling, 0, &[]);
        let mut counts = [0u32; 4];
        const DRAWS: u32 = 40_000;
        for _ in 0..DRAWS {
            counts[sampler.next(&mut logits.clone()) as usize] += 1;
        }
        // softmax([1, 3, -inf, 2]); four standard deviations of a frequency are at most 0.01.
        for (count, expected) in counts.iter().zip([0.09003, 0.66524, 0.0, 0.24473]) {
            let frequency = f64::from(*count) / f64::from(DRAWS);
            assert!((frequency - expected).abs() < 0.01, "{counts:?}");
        }
        assert_eq!(counts[2], 0);
    }

    #[test]
    fn draws_depend_only_on_the_seed_and_the_row_index() {
        let logits: Vec<f32> = (0..50).map(|k| (k as f32 * 0.37).sin()).collect();
        let ids = |seed, row| {
            let sampling = Sampling { temperature: 1.0, seed, ..Sampling::default() };
            let mut sampler = Sampler::new(&sampling, row, &[]);
            (0..20).map(|_| sampler.next(&mut logits.clone())).collect::<Vec<_>>()
        };
        assert_eq!(ids(1, 0), ids(1, 0));
        assert_ne!(ids(1, 0), ids(2, 0));
        assert_ne!(ids(1, 0), ids(1, 1));
    }

    #[test]
    fn a_very_small_temperature_chooses_the_largest_logit() {
        for temperature in [1e-300, 1e-40, 1e-21, 1e-19] {
            let sampling = Sampling { temperature, ..Sampling::default() };
            let mut sampler = Sampler::new(&sampling, 0, &[]);
            assert_eq!(sampler.next(&mut [1.0, -90.0, 95.5, 95.25]), 2, "{temperature}");
        }
    }

    #[test]
    fn settings_out_of_range_are_named() {
        for (sampling, name) in [
            (Sampling { temperature: -1.0, ..Sampling::default() }, "temperature"),
            (Sampling { temperature: f64::NAN, ..Sampling::default() }, "temperature"),
            (Sampling { top_p: 0.0, ..Sampling::default() }, "top_p"),
            (Sampling { top_p: 1.5, ..Sampling::default() }, "top_p"),
            (Sampling { repetition_penalty: 0.0, ..Sampling::default() }, "repetition_penalty"),
            (Sampling { repetition_penalty: 1e-50, ..Sampling::default() }, "repetition_penalty"),
        ] {
            assert!(sampling.validate().unwrap_err().to_string().contains(name));
        }
    }
}
