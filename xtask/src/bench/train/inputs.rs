//! What both programs train on: rows with images and captions, and random starting weights.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::json;

use super::form::Form;
use crate::bench::images;
use crate::program::output_of;
use crate::workspace::usage_error;

/// Number of generated images.
const NUM_GENERATED: u32 = 16;
const QUESTION: &str = "<image>\nDescribe the image.";
/// Captions with 8 to 40 words, as people write them.
const CAPTIONS: [&str; 8] = [
    "A red bicycle leans against a white wall.",
    "Two dogs run along a wet beach while the sun goes down behind low clouds.",
    "A woman in a yellow coat waits at a crossing with an umbrella in her hand.",
    "Several boats lie in a small harbour below a steep hill, and on the hill stands an old stone church with a square tower.",
    "A bowl of soup with bread.",
    "An old man reads a newspaper on a bench in the park, beside him a brown dog sleeps in the shade of a tall tree, and children play ball on the grass.",
    "A train crosses a long bridge over a river in the mountains.",
    "On a wooden table stand a blue cup, a plate with two slices of cake and a vase of white flowers; behind it a window shows a street in the rain, with cars and people who hurry home under their umbrellas.",
];

/// The rows, weights and tokenizer of the comparison, in a temporary folder.
pub struct Inputs {
    pub form: Form,
    /// Temporary folder for these files and those of the runs.
    pub scratch: PathBuf,
    /// The rows, as JSON lines.
    pub rows: PathBuf,
    /// The same rows with the images as PNG, which all programs decode to the same pixels. Of a
    /// JPEG, decoders differ by a level or two.
    pub lossless_rows: PathBuf,
    pub num_rows: usize,
    /// Folder of the images.
    pub images: PathBuf,
    pub num_images: usize,
    pub tokenizer: PathBuf,
    /// Weights of the language model and the projector.
    pub lm: PathBuf,
    /// Folder of the vision encoder.
    pub vision: PathBuf,
    pub dim: usize,
    pub n_layers: usize,
}

impl Inputs {
    /// Makes the rows from the .jpg files in `images` (generated ones without), and the weights with
    /// the program `vlm`.
    ///
    /// # Errors
    /// A folder without .jpg files; a failure of the file system or of `vlm`.
    pub fn make(
        vlm: &Path,
        form: Form,
        images: Option<&Path>,
        tokenizer: &Path,
        num_rows: usize,
        scratch: &Path,
    ) -> Result<Self> {
        if !tokenizer.join("tokenizer.json").is_file() {
            let shown = tokenizer.display();
            return Err(usage_error(format!(
                "{shown} has no tokenizer.json; name the folder of a tokenizer with --tokenizer"
            )));
        }
        let (family, encoder, dim) = match form {
            Form::April => ("minimind", "clip-vit-base-patch16", 512),
            Form::Present => ("minimind3", "siglip2-base-patch32-256", 768),
        };
        let weights = scratch.join("weights");
        eprintln!("making rows and random weights");
        let mut init = Command::new(vlm);
        init.args(["init", "--with-projector", "--family", family, "--vision", encoder])
            .arg("--out-dir")
            .arg(&weights);
        output_of(&mut init, "vlm init")?;

        let folder = scratch.join("images");
        fs::create_dir(&folder).with_context(|| format!("making {}", folder.display()))?;
        let num_images = match images {
            Some(from) => copy_images(from, &folder)?,
            None => {
                images::write(&folder, NUM_GENERATED)?;
                NUM_GENERATED as usize
            }
        };
        for index in 0..num_images {
            let jpeg = folder.join(format!("{index:02}.jpg"));
            let image =
                image::open(&jpeg).with_context(|| format!("reading {}", jpeg.display()))?;
            let png = jpeg.with_extension("png");
            image.into_rgb8().save(&png).with_context(|| format!("writing {}", png.display()))?;
        }
        let [rows, lossless_rows] = ["jpg", "png"].map(|extension| {
            let path = scratch.join(format!("rows-{extension}.jsonl"));
            fs::write(&path, rows_of(num_rows, num_images, extension))
                .with_context(|| format!("writing {}", path.display()))
                .map(|()| path)
        });
        let (rows, lossless_rows) = (rows?, lossless_rows?);
        Ok(Self {
            form,
            scratch: scratch.to_owned(),
            rows,
            lossless_rows,
            num_rows,
            images: folder,
            num_images,
            tokenizer: std::path::absolute(tokenizer)?,
            lm: weights.join(format!("lm_{dim}.pth")),
            vision: weights.join(encoder),
            dim,
            n_layers: 8,
        })
    }

    /// A new folder for a run.
    pub fn new_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = tempfile::Builder::new().prefix(name).tempdir_in(&self.scratch)?;
        Ok(folder.keep())
    }
}

/// The rows as JSON lines. They use the captions and the images, which have this extension, in turn.
fn rows_of(num_rows: usize, num_images: usize, extension: &str) -> String {
    let line = |row: usize| {
        let turns = json!([
            {"role": "user", "content": QUESTION},
            {"role": "assistant", "content": CAPTIONS[row % CAPTIONS.len()]},
        ]);
        let image = format!("{:02}.{extension}", row % num_images);
        json!({"conversations": turns, "image": image}).to_string() + "\n"
    };
    (0..num_rows).map(line).collect()
}

/// Copies the .jpg files in `from` and its folders to `00.jpg` and so on. Returns their number.
fn copy_images(from: &Path, to: &Path) -> Result<usize> {
    let mut found = jpegs(from).with_context(|| format!("reading {}", from.display()))?;
    found.sort();
    if found.is_empty() {
        return Err(usage_error(format!("no .jpg files in {}", from.display())));
    }
    for (index, file) in found.iter().enumerate() {
        let copy = to.join(format!("{index:02}.jpg"));
        fs::copy(file, copy).with_context(|| format!("copying {}", file.display()))?;
    }
    Ok(found.len())
}

fn jpegs(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(jpegs(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "jpg") {
            found.push(path);
        }
    }
    Ok(found)
}
