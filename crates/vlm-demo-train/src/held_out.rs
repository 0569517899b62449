//! Evaluation on the held-out rows: generates a text for each and compares it with the expected
//! one.

use std::fs;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Deserialize;
use vlm_board::Example;
use vlm_data::{Reject, RejectReason, RowSource, open_source};
use vlm_infer::{Completion, Dtype, Generator};
use vlm_model::sampling::Sampling;
use vlm_train::Run;

use crate::accuracy::GroupAccuracy;
use vlm_demo::{Asked, DemoFiles, HeldOutGroup};

/// The expected texts have at most 30 tokens, so a longer text is wrong in any case.
const MAX_NEW_TOKENS: usize = 40;
const BATCH_SIZE: usize = 50;
const NUM_EXAMPLES: usize = 24;

/// The images of an evaluation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Images {
    /// The images of the rows.
    Shown,
    /// Blank images, to measure what the language model can guess without seeing.
    Blank,
}

/// The held-out rows.
pub struct HeldOut {
    source: Arc<dyn RowSource>,
    groups: Vec<HeldOutGroup>,
}

/// The texts that a model generated for the held-out rows, and its accuracy.
#[derive(Debug, Clone)]
pub struct Evaluation {
    completions: Vec<Completion>,
    /// Accuracy by group.
    pub accuracy: GroupAccuracy,
}

#[derive(Deserialize)]
struct GroupOfRow {
    demo: HeldOutGroup,
}

impl HeldOut {
    /// Opens the held-out rows of a demo data set.
    ///
    /// # Errors
    /// A file cannot be read; a row has no group.
    pub fn open(files: &DemoFiles) -> Result<Self> {
        let path = &files.held_out;
        let source = open_source(path, Some(&files.images))?;
        let text =
            fs::read_to_string(path).with_context(|| format!("reading {}", path.display()))?;
        let group = |line: &str| serde_json::from_str::<GroupOfRow>(line).map(|row| row.demo);
        let groups: Result<_, _> =
            text.lines().filter(|line| !line.is_empty()).map(group).collect();
        Ok(Self { source, groups: groups.with_context(|| format!("reading {}", path.display()))? })
    }

    /// Number of rows.
    pub fn num_rows(&self) -> usize {
        self.groups.len()
    }

    /// Generates texts for all rows with the run's model. `continues` is called after each batch;
    /// when it returns false, the evaluation stops and the result is `None`.
    ///
    /// # Errors
    /// An image cannot be read; the model fails.
    pub fn evaluate(
        &self,
        run: &Run,
        images: Images,
        continues: &dyn Fn() -> bool,
    ) -> Result<Option<Evaluation>> {
        let generator = Generator {
            model: run.model(),
            tokenizer: run.tokenizer(),
            processor: run.processor(),
            dtype: Dtype::Float32,
            batch_size: BATCH_SIZE,
            max_new_tokens: MAX_NEW_TOKENS,
            sampling: Sampling::default(),
            blank_images: images == Images::Blank,
        };
        let completions = generator.generate_all_rows(self.source.as_ref(), continues)?;
        let Some(completions) = completions else { return Ok(None) };
        let mut accuracy = GroupAccuracy::default();
        for (completion, &group) in completions.iter().zip(&self.groups) {
            accuracy.add(group, &completion.text, &completion.expected);
        }
        Ok(Some(Evaluation { completions, accuracy }))
    }

    /// Examples for the report, captions and questions alternating.
    ///
    /// # Errors
    /// An image cannot be read.
    pub fn examples(&self, evaluation: &Evaluation) -> Result<Vec<Example>> {
        let is_caption = |row: &usize| self.groups[*row].asked == Asked::Caption;
        let (captions, questions): (Vec<usize>, Vec<usize>) =
            (0..self.groups.len()).partition(is_caption);
        // The rows are sorted by group, so a constant step takes rows of every group.
        let step = (2 * captions.len()).div_ceil(NUM_EXAMPLES).max(1);
        let rows = captions.iter().zip(&questions).step_by(step).flat_map(|(a, b)| [*a, *b]);
        rows.map(|row| self.example(row, &evaluation.completions[row])).collect()
    }

    fn example(&self, row: usize, completion: &Completion) -> Result<Example> {
        let read = self.source.row(row).and_then(|whole| match whole.images.first() {
            Some(image) => {
                Ok((whole.turns[0].content.clone(), self.source.image_bytes(row, 0, image)?))
            }
            None => Err(Reject::new(RejectReason::MissingImage, "the row has no image").into()),
        });
        let place = self.source.locate(row);
        let (prompt, png) = read.map_err(|error| anyhow::anyhow!("{place}: {error}"))?;
        Ok(Example {
            png: png.to_vec(),
            prompt: prompt.replace("<image>", "").trim().to_owned(),
            expected: completion.expected.clone(),
            generated: completion.text.clone(),
        })
    }
}
