//! The images of the demo's data set with their rows. An image and its rows depend on the image's
//! index alone.

use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::{fs, io};

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::caption::Language;
use crate::error::{DemoError, at};
use crate::layout::{IMAGE_SIZE, Layout};
use crate::question::Question;
use crate::scene::Scene;
use crate::seeded_rng;
use crate::split::{Split, has_unseen_pair};
use crate::task::{FRACTION_OF_CAPTIONS, Task};

/// Fraction of the training images that have two objects, whose captions are harder to learn.
const FRACTION_OF_TWO: f64 = 0.6;
const IMAGES_PER_TASK: usize = 64;

/// What a held-out row asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asked {
    /// A caption of the image.
    Caption,
    /// The number of objects in the image.
    Count,
}

/// The group of a held-out row, stored in its field `demo`. Accuracy is reported for each group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeldOutGroup {
    /// Number of objects in the image: one or two.
    pub num_objects: usize,
    /// Whether an object has a combination of colour and shape that no training image shows.
    pub unseen_pair: bool,
    /// What the row asks for.
    pub asked: Asked,
}

/// The rows of an image, its name, and its layout.
pub(crate) type Drawn = (Vec<Value>, String, Layout);

/// Draws and writes `count` images, and returns the rows of each.
pub(crate) fn write_images(
    folder: &Path,
    count: usize,
    done: &AtomicUsize,
    total: usize,
    progress: &mut dyn FnMut(usize, usize),
    draw: impl Fn(usize) -> Drawn + Sync,
) -> Result<Vec<Vec<Value>>, DemoError> {
    let failed = AtomicBool::new(false);
    let mut rows = Vec::with_capacity(count);
    let indices: Vec<usize> = (0..count).collect();
    // In chunks, so that `progress`, which is not Sync, can be called from this thread.
    for slice in indices.chunks(IMAGES_PER_TASK * rayon::current_num_threads().max(1)) {
        let written: Result<Vec<Vec<Value>>, DemoError> = slice
            .par_iter()
            .map(|&index| {
                if failed.load(Ordering::Relaxed) {
                    return Err(DemoError::Stopped);
                }
                let (rows, name, layout) = draw(index);
                write_png(&folder.join(name), &layout.draw())
                    .inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
                done.fetch_add(1, Ordering::Relaxed);
                Ok(rows)
            })
            .collect();
        rows.extend(written?);
        progress(done.load(Ordering::Relaxed), total);
    }
    Ok(rows)
}

pub(crate) fn train_image(index: u64) -> Drawn {
    let mut rng = seeded_rng(0x7261_696e_0000_0000 + index);
    let num_objects = if rng.random_bool(FRACTION_OF_TWO) { 2 } else { 1 };
    let scene = Split::Alignment.sample(num_objects, &mut rng);
    let name = format!("train/{index:05}.png");
    // Colours are not asked: the language model's answers about them are not reliable enough.
    let question = (!rng.random_bool(FRACTION_OF_CAPTIONS)).then_some(Question::Count);
    let task = Task { question, language: Language::sample(&mut rng) };
    (vec![row(&scene, task, &name, &mut rng)], name, Layout::of(&scene, &mut rng))
}

/// A held-out image with two rows: one asks for its caption, the other a question.
pub(crate) fn held_out_image(index: u64, (num_objects, unseen_pair): (usize, bool)) -> Drawn {
    let mut rng = seeded_rng(0x6865_6c64_0000_0000 + index);
    let scene = loop {
        let scene = Split::HeldOut.sample(num_objects, &mut rng);
        if has_unseen_pair(&scene) == unseen_pair {
            break scene;
        }
    };
    let name = format!("heldout/{index:05}.png");
    let tasks = [(None, Asked::Caption), (Some(Question::Count), Asked::Count)];
    let rows = tasks.map(|(question, asked)| {
        let task = Task { question, language: Language::sample(&mut rng) };
        let mut row = row(&scene, task, &name, &mut rng);
        row["demo"] = json!(HeldOutGroup { num_objects, unseen_pair, asked });
        row
    });
    (rows.into(), name, Layout::of(&scene, &mut rng))
}

fn row(scene: &Scene, task: Task, image: &str, rng: &mut ChaCha8Rng) -> Value {
    let (question, answer) = task.turn(scene, rng);
    json!({
        "conversations": [
            { "role": "user", "content": format!("<image>\n{question}") },
            { "role": "assistant", "content": answer },
        ],
        "image": image,
    })
}

fn write_png(path: &Path, pixels: &[u8]) -> Result<(), DemoError> {
    let mut bytes = Vec::with_capacity(32 * 1024);
    PngEncoder::new_with_quality(&mut bytes, CompressionType::Fast, FilterType::Adaptive)
        .write_image(pixels, IMAGE_SIZE as u32, IMAGE_SIZE as u32, ExtendedColorType::Rgb8)
        .map_err(io::Error::other)
        .and_then(|()| fs::write(path, &bytes))
        .map_err(at(path))
}
