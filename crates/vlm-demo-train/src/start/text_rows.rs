//! Training samples of the starting language model: conversations about text maps, as token ids
//! with labels.

use std::path::Path;

use rand::Rng;
use tokenizers::Tokenizer;

use vlm_demo::{Layout, Split, Task};

use super::text_map::{MapNoise, MapWord, NUM_MAP_WORDS, text_map};
use super::tokenizer::{answer_text, prompt_text};

/// A conversation as token ids. `labels[i]` is the id that must follow position `i`, or `None` for
/// a position without a loss.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TextRow {
    /// Token ids.
    pub input_ids: Vec<i64>,
    /// Labels, as many as `input_ids`.
    pub labels: Vec<Option<i64>>,
}

/// Makes random conversations with the demo's tokenizer.
#[derive(Debug)]
pub struct TextRows {
    tokenizer: Tokenizer,
    noise: MapNoise,
    map_ids: Vec<i64>,
}

impl TextRows {
    /// Loads the tokenizer that [`write_demo_tokenizer`](super::tokenizer::write_demo_tokenizer) wrote
    /// into `folder`.
    ///
    /// # Errors
    /// There is no tokenizer, or it lacks a word of the map.
    pub fn new(folder: &Path, noise: MapNoise) -> tokenizers::Result<TextRows> {
        let tokenizer = Tokenizer::from_file(folder.join("tokenizer.json"))?;
        let id = |word: MapWord| {
            let text = word.text();
            tokenizer
                .token_to_id(&text)
                .map(i64::from)
                .ok_or_else(|| format!("the tokenizer has no token {text}"))
        };
        let map_ids = MapWord::all().map(id).collect::<Result<Vec<_>, _>>()?;
        debug_assert_eq!(map_ids.len(), NUM_MAP_WORDS);
        Ok(TextRows { tokenizer, noise, map_ids })
    }

    /// Size of the vocabulary, which is the number of rows of the embedding table.
    pub fn vocab_size(&self) -> usize {
        self.tokenizer.get_vocab_size(true)
    }

    /// The ids of the map words, in the order of [`MapWord::all`].
    pub fn map_ids(&self) -> &[i64] {
        &self.map_ids
    }

    /// A random conversation about a scene of [`Split::Starting`]: the map and a turn that asks for
    /// the caption or asks a question; with probability `second_turns` also a second, different
    /// turn.
    ///
    /// # Errors
    /// The tokenizer fails.
    pub fn sample(&self, second_turns: f64, rng: &mut impl Rng) -> tokenizers::Result<TextRow> {
        let num_objects = rng.random_range(1..=2);
        let scene = Split::Starting.sample(num_objects, rng);
        let map = text_map(&Layout::of(&scene, rng), &self.noise, rng);
        let map: String = map.iter().map(|word| word.text()).collect();
        let mut row = TextRow::default();
        let first = Task::sample(&scene, rng);
        let (question, answer) = first.turn(&scene, rng);
        self.push_turn(&mut row, &prompt_text(&format!("{map}\n{question}")), &answer)?;
        if rng.random_bool(second_turns) {
            let second = loop {
                let task = Task::sample(&scene, rng);
                if task != first {
                    break task;
                }
            };
            let (question, answer) = second.turn(&scene, rng);
            self.push_turn(&mut row, &follow_up(&question), &answer)?;
        }
        Ok(row)
    }

    fn push_turn(&self, row: &mut TextRow, prompt: &str, answer: &str) -> tokenizers::Result<()> {
        let ids = |text: &str| -> tokenizers::Result<Vec<i64>> {
            Ok(self
                .tokenizer
                .encode_fast(text, false)?
                .get_ids()
                .iter()
                .map(|&id| i64::from(id))
                .collect())
        };
        let answer = ids(&answer_text(answer))?;
        row.input_ids.extend(ids(prompt)?);
        // The last position of the prompt predicts the answer's first token.
        row.labels.resize(row.input_ids.len().saturating_sub(1), None);
        row.labels.extend(answer.iter().copied().map(Some));
        row.input_ids.extend(answer);
        row.labels.resize(row.input_ids.len(), None);
        Ok(())
    }
}

/// The text of a user turn after the first, up to the start of the answer.
fn follow_up(question: &str) -> String {
    format!("<s>user\n{question}</s>\n<s>assistant\n")
}

#[cfg(test)]
mod tests {
    use super::super::tokenizer::write_demo_tokenizer;
    use super::*;
    use vlm_demo::{NUM_CELLS, seeded_rng};

    #[test]
    fn labels_are_the_answer_with_its_end_token_and_line_break() {
        let folder = tempfile::tempdir().unwrap();
        write_demo_tokenizer(folder.path()).unwrap();
        let rows = TextRows::new(folder.path(), MapNoise::NONE).unwrap();
        let row = rows.sample(0.0, &mut seeded_rng(1)).unwrap();
        let learned: Vec<u32> = row.labels.iter().flatten().map(|&id| id as u32).collect();
        let text = rows.tokenizer.decode(&learned, false).unwrap();
        assert!(text.ends_with(".</s>\n") || text.ends_with("。</s>\n"), "{text:?}");
        for (position, label) in row.labels.iter().enumerate() {
            assert!(label.is_none_or(|label| row.input_ids[position + 1] == label));
        }
        let cells = row.input_ids.iter().filter(|id| rows.map_ids.contains(id)).count();
        assert_eq!(cells, NUM_CELLS);
    }

    #[test]
    fn turns_encoded_separately_equal_the_encoded_conversation() {
        let folder = tempfile::tempdir().unwrap();
        write_demo_tokenizer(folder.path()).unwrap();
        let rows = TextRows::new(folder.path(), MapNoise::NONE).unwrap();
        let mut rng = seeded_rng(2);
        for _ in 0..50 {
            let row = rows.sample(1.0, &mut rng).unwrap();
            let ids: Vec<u32> = row.input_ids.iter().map(|&id| id as u32).collect();
            let text = rows.tokenizer.decode(&ids, false).unwrap();
            assert_eq!(rows.tokenizer.encode(text, false).unwrap().get_ids(), ids);
        }
    }
}
