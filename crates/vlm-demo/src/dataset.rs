//! The demo's rows and images on disk: JSON lines beside a folder of images, as a user's own data may
//! be, so that the demo is read by the same code.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use image::codecs::png::{CompressionType, FilterType, PngEncoder};
use image::{ExtendedColorType, ImageEncoder};
use rand::Rng;
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use thiserror::Error;

use super::caption::Language;
use super::layout::{Layout, PICTURE};
use super::question::Question;
use super::scene::Scene;
use super::seeded_rng;
use super::split::{Split, has_unseen_pair};
use super::task::{FRACTION_OF_CAPTIONS, Task};

/// File with the rows to train on, in the output folder.
pub const TRAIN_FILE: &str = "train.jsonl";
/// File with the held-out rows, in the output folder: one that asks for the caption of each image,
/// then one that asks a question about each.
pub const HELD_OUT_FILE: &str = "heldout.jsonl";
/// Images to train on; each has one row.
pub const NUM_TRAIN_IMAGES: usize = 9_600;
/// Held-out images of each of the four groups: one or two objects, seen or unseen pairs.
pub const HELD_OUT_PER_GROUP: [usize; 4] = [150, 50, 150, 50];

const MANIFEST: &str = "manifest.json";
const FORMAT_NAME: &str = "vlm demo scenes ";
const FORMAT: &str = "vlm demo scenes 2";
/// Fraction of the training images with two objects, which are harder to caption.
const FRACTION_OF_TWO: f64 = 0.6;
const IMAGES_PER_TASK: usize = 64;

/// What a held-out row asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Asked {
    /// A caption of the image.
    Caption,
    /// The number of objects.
    Count,
}

/// The group of a held-out row, by which the accuracy is reported; the row's field `demo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeldOutGroup {
    /// One or two.
    pub num_objects: usize,
    /// Whether an object has a combination of colour and shape that no training image shows.
    pub unseen_pair: bool,
    /// What the row asks for.
    pub asked: Asked,
}

/// Number of objects and whether a pair is unseen, in the order of [`HELD_OUT_PER_GROUP`].
const IMAGE_GROUPS: [(usize, bool); 4] = [(1, false), (1, true), (2, false), (2, true)];

/// The files of a demo data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoFiles {
    /// Rows to train on.
    pub train: PathBuf,
    /// Rows that no training image shows.
    pub held_out: PathBuf,
    /// Root of the image names in both.
    pub images: PathBuf,
}

/// An error in writing the demo data set.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum DemoError {
    /// The folder holds something else, which is not replaced.
    #[error(
        "{0} exists and is not a complete demo set of this version; remove it or name another folder"
    )]
    Occupied(PathBuf),
    /// Another image could not be written.
    #[error("stopped before the demo set was complete; nothing was kept")]
    Stopped,
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
}

/// The number of images in a demo data set.
#[derive(Clone, Copy)]
struct NumImages {
    train: usize,
    held_out_per_group: [usize; 4],
}

const DEMO: NumImages =
    NumImages { train: NUM_TRAIN_IMAGES, held_out_per_group: HELD_OUT_PER_GROUP };

impl NumImages {
    fn manifest(self) -> Value {
        let held_out: usize = self.held_out_per_group.iter().sum();
        json!({ "format": FORMAT, "train": self.train, "heldout": held_out })
    }

    /// The files of a complete data set of this size and version in `output`.
    fn files(self, output: &Path) -> Option<DemoFiles> {
        (read_manifest(output)? == self.manifest()).then(|| DemoFiles {
            train: output.join(TRAIN_FILE),
            held_out: output.join(HELD_OUT_FILE),
            images: output.to_path_buf(),
        })
    }

    /// Whether `output` holds a data set that another version of this crate drew.
    fn is_of_another_version(self, output: &Path) -> bool {
        let manifest = read_manifest(output).unwrap_or_default();
        let format = manifest["format"].as_str().unwrap_or_default();
        format.starts_with(FORMAT_NAME) && manifest != self.manifest()
    }
}

fn read_manifest(output: &Path) -> Option<Value> {
    serde_json::from_slice(&fs::read(output.join(MANIFEST)).ok()?).ok()
}

/// The files of a complete demo set in `output`, `None` where there is none of this version.
pub fn demo_files(output: &Path) -> Option<DemoFiles> {
    DEMO.files(output)
}

/// Draws the demo set into the folder `output`: the same bytes every time. A complete one of this
/// version is left as it is, one of another version is replaced. The folder appears complete or not
/// at all.
/// `progress` is called with the number of images done and of all, now and then.
/// # Errors
/// An `output` that holds something else; a file that cannot be written.
pub fn write_demo_dataset(
    output: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<DemoFiles, DemoError> {
    write_or_keep(output, DEMO, progress)
}

/// Removes a data set of another version. Of several processes that do so at once, one renames the
/// folder; if another has already replaced it, the new one is put back.
fn remove_another_version(output: &Path, num_images: NumImages) -> Result<(), DemoError> {
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let old = output.with_file_name(format!(".{name}.old-{}", std::process::id()));
    match fs::rename(output, &old) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        renamed => renamed.map_err(at(output))?,
    }
    if num_images.is_of_another_version(&old) {
        fs::remove_dir_all(&old).map_err(at(&old))
    } else {
        fs::rename(&old, output).map_err(at(output))
    }
}

/// Draws the data set, unless a complete one is there.
fn write_or_keep(
    output: &Path,
    num_images: NumImages,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<DemoFiles, DemoError> {
    if let Some(files) = num_images.files(output) {
        return Ok(files);
    }
    if num_images.is_of_another_version(output) {
        remove_another_version(output, num_images)?;
    }
    if fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some()) {
        // Another process may have put them there just now.
        return num_images.files(output).ok_or_else(|| DemoError::Occupied(output.to_path_buf()));
    }
    static ATTEMPTS: AtomicUsize = AtomicUsize::new(0);
    let attempt = format!("{}-{}", std::process::id(), ATTEMPTS.fetch_add(1, Ordering::Relaxed));
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let partial = output.with_file_name(format!(".{name}.partial-{attempt}"));
    let written = write_into(&partial, num_images, progress).and_then(|()| {
        // An empty folder may stand in the way of the rename on some systems.
        let _ = fs::remove_dir(output);
        fs::rename(&partial, output).map_err(at(output))
    });
    if let Err(error) = written {
        let _ = fs::remove_dir_all(&partial);
        // Ranks that start together all draw: the first one's files serve all.
        return num_images.files(output).ok_or(error);
    }
    num_images.files(output).ok_or_else(|| DemoError::Occupied(output.to_path_buf()))
}

fn write_into(
    folder: &Path,
    num_images: NumImages,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), DemoError> {
    let num_train = num_images.train;
    let images: Vec<(usize, bool)> = IMAGE_GROUPS
        .into_iter()
        .zip(num_images.held_out_per_group)
        .flat_map(|(group, count)| std::iter::repeat_n(group, count))
        .collect();
    let total = num_train + images.len();
    for images in ["train", "heldout"] {
        let images = folder.join(images);
        fs::create_dir_all(&images).map_err(at(&images))?;
    }
    let done = AtomicUsize::new(0);
    let train =
        write_images(folder, num_train, &done, total, progress, |index| train_image(index as u64))?;
    write_lines(&folder.join(TRAIN_FILE), train.iter().flatten())?;
    let held_out = write_images(folder, images.len(), &done, total, progress, |index| {
        held_out_image(index as u64, images[index])
    })?;
    let rows_of = |task: usize| held_out.iter().filter_map(move |rows| rows.get(task));
    write_lines(&folder.join(HELD_OUT_FILE), rows_of(0).chain(rows_of(1)))?;
    write_lines(&folder.join(MANIFEST), [&num_images.manifest()])?;
    progress(total, total);
    Ok(())
}

/// The rows about an image, the image's name in them, and what to draw under that name.
type Drawn = (Vec<Value>, String, Layout);

/// Draws `count` images and returns the rows of each.
fn write_images(
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
    // In slices, so that the callback (which need not be Sync) is called from this thread.
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

fn train_image(index: u64) -> Drawn {
    let mut rng = seeded_rng(0x7261_696e_0000_0000 + index);
    let num_objects = if rng.random_bool(FRACTION_OF_TWO) { 2 } else { 1 };
    let scene = Scene::sample(Split::Alignment, num_objects, &mut rng);
    let name = format!("train/{index:05}.png");
    // The language model's answers about colours are not reliable enough to be shown.
    let question = (!rng.random_bool(FRACTION_OF_CAPTIONS)).then_some(Question::Count);
    let task = Task { question, language: Language::sample(&mut rng) };
    (vec![row(&scene, task, &name, &mut rng)], name, Layout::of(&scene, &mut rng))
}

/// A held-out image with two rows: its caption, and a question about it.
fn held_out_image(index: u64, (num_objects, unseen_pair): (usize, bool)) -> Drawn {
    let mut rng = seeded_rng(0x6865_6c64_0000_0000 + index);
    let scene = loop {
        let scene = Scene::sample(Split::HeldOut, num_objects, &mut rng);
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
        .write_image(pixels, PICTURE as u32, PICTURE as u32, ExtendedColorType::Rgb8)
        .map_err(io::Error::other)
        .and_then(|()| fs::write(path, &bytes))
        .map_err(at(path))
}

fn write_lines<'a>(
    path: &Path,
    rows: impl IntoIterator<Item = &'a Value>,
) -> Result<(), DemoError> {
    let write = move || {
        let mut file = io::BufWriter::new(fs::File::create(path)?);
        for row in rows {
            writeln!(file, "{row}")?;
        }
        file.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()
    };
    write().map_err(at(path))
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> DemoError {
    let path = path.to_path_buf();
    move |source| DemoError::Io { path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: NumImages = NumImages { train: 12, held_out_per_group: [2, 1, 2, 1] };

    fn small(output: &Path) -> Result<(), DemoError> {
        write_into(output, SMALL, &mut |_, _| ())
    }

    #[test]
    fn several_that_draw_at_once_all_get_one_complete_set() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("demo");
        let draw = || write_or_keep(&output, SMALL, &mut |_, _| ());
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..2).map(|_| scope.spawn(draw)).collect();
            for one in all {
                assert!(one.join().unwrap().unwrap().train.exists());
            }
        });
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "only the whole set is left");
    }

    #[test]
    fn two_writes_give_the_same_bytes() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        small(&a).unwrap();
        small(&b).unwrap();
        for name in [TRAIN_FILE, HELD_OUT_FILE, "train/00011.png", "heldout/00005.png"] {
            assert_eq!(fs::read(a.join(name)).unwrap(), fs::read(b.join(name)).unwrap(), "{name}");
        }
    }

    #[test]
    fn held_out_rows_tell_their_group_and_training_rows_have_their_picture() {
        let folder = tempfile::tempdir().unwrap();
        small(folder.path()).unwrap();
        let read = |name: &str| -> Vec<Value> {
            let text = fs::read_to_string(folder.path().join(name)).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let groups: Vec<HeldOutGroup> = read(HELD_OUT_FILE)
            .iter()
            .map(|row| serde_json::from_value(row["demo"].clone()).unwrap())
            .collect();
        assert_eq!(groups.len(), 12, "a caption and a question for each of six images");
        assert_eq!(groups.iter().filter(|group| group.num_objects == 2).count(), 6);
        assert_eq!(groups.iter().filter(|group| group.unseen_pair).count(), 4);
        assert!(groups[..6].iter().all(|group| group.asked == Asked::Caption));
        assert!(groups[6..].iter().all(|group| group.asked != Asked::Caption));
        for row in read(TRAIN_FILE) {
            let picture = image::open(folder.path().join(row["image"].as_str().unwrap())).unwrap();
            assert_eq!((picture.width(), picture.height()), (224, 224));
            assert!(row["conversations"][0]["content"].as_str().unwrap().starts_with("<image>\n"));
        }
    }

    #[test]
    fn a_folder_with_something_else_in_it_is_left_alone() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mine.txt"), "mine").unwrap();
        let refused = write_demo_dataset(folder.path(), &mut |_, _| ());
        assert!(matches!(refused, Err(DemoError::Occupied(_))), "{refused:?}");
        assert_eq!(fs::read_to_string(folder.path().join("mine.txt")).unwrap(), "mine");
    }

    #[test]
    fn a_set_of_another_version_is_told_from_a_folder_with_something_else() {
        let folder = tempfile::tempdir().unwrap();
        let write = |text: &str| fs::write(folder.path().join(MANIFEST), text).unwrap();
        assert!(!DEMO.is_of_another_version(folder.path()));
        write(r#"{"format": "vlm demo scenes 1", "train": 12000}"#);
        assert!(DEMO.is_of_another_version(folder.path()));
        write(r#"{"format": "shards"}"#);
        assert!(!DEMO.is_of_another_version(folder.path()));
        write(&DEMO.manifest().to_string());
        assert!(!DEMO.is_of_another_version(folder.path()));
    }

    #[test]
    fn only_a_set_of_another_version_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("demo");
        fs::create_dir(&output).unwrap();
        let write = |text: &str| fs::write(output.join(MANIFEST), text).unwrap();
        write(&DEMO.manifest().to_string());
        remove_another_version(&output, DEMO).unwrap();
        assert!(demo_files(&output).is_some(), "the set of this version is put back");
        write(r#"{"format": "vlm demo scenes 1"}"#);
        remove_another_version(&output, DEMO).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        remove_another_version(&output, DEMO).unwrap();
    }

    #[test]
    fn a_complete_set_is_not_drawn_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MANIFEST), DEMO.manifest().to_string()).unwrap();
        let files = write_demo_dataset(folder.path(), &mut |_, _| panic!("drew")).unwrap();
        assert_eq!(files.train, folder.path().join(TRAIN_FILE));
    }
}
