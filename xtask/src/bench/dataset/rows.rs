//! Texts of the generated rows: answers of different lengths about shapes, from a small vocabulary.

use serde_json::{Value, json};
use vlm_data::{GOLDEN_GAMMA, mix_bits};

const COLOURS: [&str; 8] = ["red", "green", "blue", "yellow", "white", "black", "orange", "purple"];
const SHAPES: [&str; 6] = ["circle", "square", "triangle", "star", "ring", "cross"];
const PLACES: [&str; 6] =
    ["at the top left", "at the top", "in the middle", "on the left", "at the bottom", "far away"];
const QUESTIONS: [&str; 4] =
    ["Describe the image.", "What is shown?", "What do you see here?", "Tell me about this."];
/// Largest number of sentences in an answer. Short answers are more frequent.
const MAX_SENTENCES: u64 = 16;

/// Random numbers for one row, determined by the seed and the row's number.
pub struct Draw(u64);

impl Draw {
    /// Random numbers for row `row`.
    pub fn new(seed: u64, row: usize) -> Self {
        let mut draw = Self(seed.wrapping_mul(0x2545_F491_4F6C_DD1D) ^ row as u64);
        draw.next();
        draw
    }

    /// The next number of SplitMix64.
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(GOLDEN_GAMMA);
        mix_bits(self.0)
    }

    /// A random number from 0 to `bound` - 1. `bound` must be small: the modulo is slightly biased.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    /// True with the given probability.
    pub fn happens(&mut self, probability: f64) -> bool {
        ((self.next() >> 11) as f64) < probability * (1u64 << 53) as f64
    }

    fn of<'a>(&mut self, words: &[&'a str]) -> &'a str {
        words[self.below(words.len() as u64) as usize]
    }
}

/// A question and an answer as LLaVA's `conversations`.
pub fn conversations(draw: &mut Draw, has_image: bool) -> Value {
    let tag = if has_image { "<image>\n" } else { "" };
    let question = format!("{tag}{}", draw.of(&QUESTIONS));
    let longest = 1 + draw.below(MAX_SENTENCES);
    let num_sentences = 1 + draw.below(longest);
    let mut answer = String::new();
    for k in 0..num_sentences {
        let (colour, shape, place) = (draw.of(&COLOURS), draw.of(&SHAPES), draw.of(&PLACES));
        let space = if k > 0 { " " } else { "" };
        answer += &format!("{space}A {colour} {shape} {place}.");
    }
    json!([{"from": "human", "value": question}, {"from": "gpt", "value": answer}])
}
