//! The demo's examination: captions of held-out pictures, judged.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};
use serde::Deserialize;
use vlm_data::demo::{DemoFiles, HeldOutGroup};
use vlm_data::{Reject, RejectReason, RowSource, open_source};
use vlm_model::sampling::Sampling;

use super::contact_sheet::{SheetEntry, draw_contact_sheet};
use super::report::GroupAccuracy;
use crate::run::Run;
use vlm_infer::Dtype;
use vlm_infer::{Completion, Generator};

/// Captions are at most 30 tokens; a longer answer is wrong anyway.
const MAX_NEW_TOKENS: usize = 40;
const ROWS_AT_ONCE: usize = 50;
const PICTURES_ON_THE_SHEET: usize = 24;

/// What the model is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pictures {
    /// The pictures themselves.
    Shown,
    /// Blank ones: what is left is what the language model guesses alone.
    Blank,
}

/// The held-out rows.
pub struct HeldOut {
    source: Arc<dyn RowSource>,
    groups: Vec<HeldOutGroup>,
}

/// A model's captions of the held-out pictures, and how good they are.
#[derive(Debug, Clone)]
pub struct Examined {
    answers: Vec<Completion>,
    /// Accuracy by group.
    pub accuracy: GroupAccuracy,
}

#[derive(Deserialize)]
struct GroupOfRow {
    demo: HeldOutGroup,
}

impl HeldOut {
    /// Opens the held-out rows of a demo set.
    /// # Errors
    /// A file that cannot be read, a row without its group.
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

    /// Number of pictures.
    pub fn num_pictures(&self) -> usize {
        self.groups.len()
    }

    /// Lets the run's model caption all pictures; `None` when `goes_on`, asked after each batch, said
    /// no.
    /// # Errors
    /// A picture that cannot be read; the model's.
    pub fn examine(
        &self,
        run: &Run,
        pictures: Pictures,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<Examined>> {
        let generator = Generator {
            model: run.model(),
            tokenizer: run.tokenizer(),
            processor: run.processor(),
            dtype: Dtype::Float32,
            batch_size: ROWS_AT_ONCE,
            max_new_tokens: MAX_NEW_TOKENS,
            sampling: Sampling::default(),
            blank_images: pictures == Pictures::Blank,
        };
        let Some(answers) = generator.generate_all_rows(self.source.as_ref(), goes_on)? else {
            return Ok(None);
        };
        let mut accuracy = GroupAccuracy::default();
        for (answer, &group) in answers.iter().zip(&self.groups) {
            accuracy.add(group, &answer.text, &answer.expected);
        }
        Ok(Some(Examined { answers, accuracy }))
    }

    /// Draws pictures of every group with their captions, English ones since the sheet's font has
    /// no other letters.
    /// # Errors
    /// A picture that cannot be read, a file that cannot be written.
    pub fn write_contact_sheet(&self, examined: &Examined, path: &Path) -> Result<()> {
        let english: Vec<usize> = (0..self.groups.len())
            .filter(|&row| examined.answers[row].expected.is_ascii())
            .collect();
        let step = (english.len() / PICTURES_ON_THE_SHEET).max(1);
        let entries: Result<Vec<SheetEntry>> = english
            .iter()
            .step_by(step)
            .take(PICTURES_ON_THE_SHEET)
            .map(|&row| {
                let Completion { text, expected } = examined.answers[row].clone();
                Ok(SheetEntry { picture: self.picture(row)?, caption: text, reference: expected })
            })
            .collect();
        draw_contact_sheet(path, &entries?)
    }

    fn picture(&self, row: usize) -> Result<image::RgbImage> {
        let place = || self.source.locate(row);
        let read = self.source.row(row).and_then(|whole| match whole.images.first() {
            Some(image) => self.source.image_bytes(row, 0, image),
            None => Err(Reject::new(RejectReason::MissingImage, "the row has no image").into()),
        });
        let bytes = read.map_err(|error| anyhow::anyhow!("{}: {error}", place()))?;
        Ok(image::load_from_memory(&bytes).with_context(place)?.to_rgb8())
    }
}
