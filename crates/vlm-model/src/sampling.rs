//! Choosing the next token: from logits to one id.
//!
//! The steps and their order are those of the `transformers` library's logits processors:
//! repetition penalty, temperature, top-k, top-p, then a draw. Works on the host, on one row at a
//! time; knows no tensors.

use rand::Rng;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::ModelError;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Logits are divided by this; 0: always the most likely token.
    pub temperature: f64,
    /// Only this many of the most likely tokens; 0: all.
    pub top_k: usize,
    /// Only the most likely tokens that together have this probability; 1: all (Holtzman et al.
    /// 2020).
    pub top_p: f64,
    /// Logits of tokens that were there before, in prompt or answer, are divided by this where
    /// positive and multiplied where negative; 1: none (Keskar et al. 2019).
    pub repetition_penalty: f64,
    /// Of the draws. A row's draws depend on this and its number alone.
    pub seed: u64,
}

impl Default for Sampling {
    /// Greedy.
    fn default() -> Self {
        Self { temperature: 0.0, top_k: 0, top_p: 1.0, repetition_penalty: 1.0, seed: 1337 }
    }
}

impl Sampling {
    /// Checks the numbers.
    ///
    /// # Errors
    /// Names the setting, what it is and what it must be.
    pub fn validate(&self) -> Result<(), ModelError> {
        let wrong = |message: String| Err(ModelError::Config(message));
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return wrong(format!(
                "temperature is {}; it must be positive, or 0 for the most likely token",
                self.temperature
            ));
        }
        if !(self.top_p > 0.0 && self.top_p <= 1.0) {
            return wrong(format!("top-p is {}; it must be above 0 and at most 1", self.top_p));
        }
        if !(self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite()) {
            return wrong(format!(
                "repetition-penalty is {}; it must be positive, and 1 is none",
                self.repetition_penalty
            ));
        }
        Ok(())
    }

    /// Whether the choice is the largest logit as it comes, without looking at any other number.
    pub fn is_plain_greedy(&self) -> bool {
        self.temperature == 0.0 && self.repetition_penalty == 1.0
    }

    /// Makes the changes to a row of logits that come before the draw; `seen` are the row's ids so
    /// far. What is ruled out becomes minus infinity. At temperature 0 only the penalty applies.
    pub fn process(&self, logits: &mut [f32], seen: &[i64]) {
        penalise(logits, seen, self.repetition_penalty as f32);
        if self.temperature == 0.0 {
            return;
        }
        let temperature = self.temperature as f32;
        logits.iter_mut().for_each(|logit| *logit /= temperature);
        keep_top_k(logits, self.top_k);
        keep_top_p(logits, self.top_p as f32);
    }
}

/// Chooses the tokens of one row.
#[derive(Debug)]
pub struct Sampler {
    sampling: Sampling,
    rng: ChaCha8Rng,
    seen: Vec<i64>,
}

impl Sampler {
    /// For row number `row`, whose prompt is `prompt`.
    pub fn new(sampling: &Sampling, row: usize, prompt: &[i64]) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(sampling.seed);
        rng.set_stream(row as u64);
        Self { sampling: sampling.clone(), rng, seen: prompt.to_vec() }
    }

    /// The next token of the row, by its logits `[vocab_size]`, which are changed on the way.
    pub fn next(&mut self, logits: &mut [f32]) -> i64 {
        self.sampling.process(logits, &self.seen);
        let id = if self.sampling.temperature == 0.0 {
            argmax(logits)
        } else {
            draw(&softmax(logits), self.rng.random::<f32>())
        } as i64;
        self.seen.push(id);
        id
    }
}

/// Each id of `seen` once, however often it occurs; ids that are no logit's are passed over.
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

/// Rules out what is below the k-th largest; all that equal it stay.
fn keep_top_k(logits: &mut [f32], top_k: usize) {
    if top_k == 0 || top_k >= logits.len() {
        return;
    }
    let mut sorted = logits.to_vec();
    let (_, &mut least, _) = sorted.select_nth_unstable_by(top_k - 1, |a, b| b.total_cmp(a));
    rule_out(logits, |logit| logit < least);
}

/// Rules out the least likely tokens whose probabilities sum to at most `1 - top_p`; the most
/// likely one always stays.
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

fn rule_out(logits: &mut [f32], is_out: impl Fn(f32) -> bool) {
    for logit in logits.iter_mut().filter(|logit| is_out(**logit)) {
        *logit = f32::NEG_INFINITY;
    }
}

/// Probabilities of logits; all the same share where there is nothing to tell them apart.
fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let exp: Vec<f32> = logits.iter().map(|logit| (logit - largest).exp()).collect();
    let sum: f32 = exp.iter().sum();
    exp.iter().map(|value| value / sum).collect()
}

/// The id whose stretch of the probabilities `point` (0 to 1) falls into.
fn draw(probabilities: &[f32], point: f32) -> usize {
    let mut sum = 0.0;
    for (id, probability) in probabilities.iter().enumerate() {
        sum += probability;
        if point < sum {
            return id;
        }
    }
    // Rounding can leave the sum short of 1: then it is the last one that is possible at all.
    probabilities.iter().rposition(|&probability| probability > 0.0).unwrap_or(0)
}

/// The first of the largest.
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
        // softmax([1, 3, -inf, 2]); four standard deviations of a share are at most 0.01.
        for (count, expected) in counts.iter().zip([0.09003, 0.66524, 0.0, 0.24473]) {
            let share = f64::from(*count) / f64::from(DRAWS);
            assert!((share - expected).abs() < 0.01, "{counts:?}");
        }
        assert_eq!(counts[2], 0);
    }

    #[test]
    fn a_rows_draws_depend_on_seed_and_number_alone() {
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
    fn settings_that_make_no_sense_are_named() {
        for (sampling, name) in [
            (Sampling { temperature: -1.0, ..Sampling::default() }, "temperature"),
            (Sampling { temperature: f64::NAN, ..Sampling::default() }, "temperature"),
            (Sampling { top_p: 0.0, ..Sampling::default() }, "top-p"),
            (Sampling { top_p: 1.5, ..Sampling::default() }, "top-p"),
            (Sampling { repetition_penalty: 0.0, ..Sampling::default() }, "repetition-penalty"),
        ] {
            assert!(sampling.validate().unwrap_err().to_string().contains(name));
        }
    }
}
