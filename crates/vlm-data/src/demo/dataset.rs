//! The demo's rows and pictures on disk, in the form that every data set has here: JSONL beside
//! a folder of images, so that the demo takes the same way as a user's own data.

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
use super::scene::Scene;
use super::seeded_rng;
use super::split::{Split, has_unseen_pair};

/// Rows of the alignment, in the output folder.
pub const TRAIN_FILE: &str = "train.jsonl";
/// Rows of the evaluation, in the output folder.
pub const HELD_OUT_FILE: &str = "heldout.jsonl";
/// Pictures to align on.
pub const NUM_TRAIN_PICTURES: usize = 12_000;
/// Held-out pictures for each of the four groups: one or two objects, seen or unseen pairs.
pub const HELD_OUT_PER_GROUP: [usize; 4] = [150, 50, 150, 50];

const MANIFEST: &str = "manifest.json";
const FORMAT: &str = "vlm demo scenes 1";
/// Pictures of two objects are harder to tell: they are more of the training rows.
const SHARE_OF_TWO: f64 = 0.6;
const PICTURES_A_TASK: usize = 64;

/// What of a held-out row the report sorts by; stands in the row as `demo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct HeldOutGroup {
    /// One or two.
    pub num_objects: usize,
    /// Whether an object is of a colour–shape pair that the alignment never showed.
    pub unseen_pair: bool,
}

impl HeldOutGroup {
    /// In the order of [`HELD_OUT_PER_GROUP`].
    pub const ALL: [HeldOutGroup; 4] = [
        HeldOutGroup { num_objects: 1, unseen_pair: false },
        HeldOutGroup { num_objects: 1, unseen_pair: true },
        HeldOutGroup { num_objects: 2, unseen_pair: false },
        HeldOutGroup { num_objects: 2, unseen_pair: true },
    ];
}

/// Where a written demo set lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoFiles {
    /// Rows to align on.
    pub train: PathBuf,
    /// Rows to caption at the end.
    pub held_out: PathBuf,
    /// Root of the image names in both.
    pub images: PathBuf,
}

/// Why the demo set could not be written.
#[derive(Debug, Error)]
pub enum DemoError {
    /// The folder holds something that is not ours to replace.
    #[error(
        "{0} exists and is not a complete demo set of this version; remove it or name another folder"
    )]
    Occupied(PathBuf),
    /// The progress callback asked to stop.
    #[error("stopped before the demo set was complete; nothing was kept")]
    Stopped,
    /// A file could not be written.
    #[error("cannot write {path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

/// The files of a complete demo set in `output`, `None` where there is none of this version.
pub fn demo_files(output: &Path) -> Option<DemoFiles> {
    let manifest: Value = serde_json::from_slice(&fs::read(output.join(MANIFEST)).ok()?).ok()?;
    (manifest == expected_manifest()).then(|| DemoFiles {
        train: output.join(TRAIN_FILE),
        held_out: output.join(HELD_OUT_FILE),
        images: output.to_path_buf(),
    })
}

/// Draws the demo set into the folder `output`: the same bytes every time. A complete one of this
/// version is left as it is. The folder appears whole or not at all.
/// `progress` is called with the pictures done and their number, now and then.
/// # Errors
/// An `output` that holds something else; a file that cannot be written.
pub fn write_demo_dataset(
    output: &Path,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<DemoFiles, DemoError> {
    write_scaled(output, NUM_TRAIN_PICTURES, &HELD_OUT_PER_GROUP, progress)
}

fn expected_manifest() -> Value {
    json!({ "format": FORMAT, "train": NUM_TRAIN_PICTURES, "heldout": HELD_OUT_PER_GROUP.iter().sum::<usize>() })
}

fn write_scaled(
    output: &Path,
    num_train: usize,
    held_out_per_group: &[usize; 4],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<DemoFiles, DemoError> {
    if let Some(files) = demo_files(output) {
        return Ok(files);
    }
    if fs::read_dir(output).is_ok_and(|mut entries| entries.next().is_some()) {
        // Another process may have put them there just now.
        return demo_files(output).ok_or_else(|| DemoError::Occupied(output.to_path_buf()));
    }
    static ATTEMPTS: AtomicUsize = AtomicUsize::new(0);
    let attempt = format!("{}-{}", std::process::id(), ATTEMPTS.fetch_add(1, Ordering::Relaxed));
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let partial = output.with_file_name(format!(".{name}.partial-{attempt}"));
    let written = write_into(&partial, num_train, held_out_per_group, progress).and_then(|()| {
        // An empty folder may stand in the way of the rename on some systems.
        let _ = fs::remove_dir(output);
        fs::rename(&partial, output).map_err(at(output))
    });
    if let Err(error) = written {
        let _ = fs::remove_dir_all(&partial);
        // Ranks that start together all draw: the first one's files serve all.
        return demo_files(output).ok_or(error);
    }
    demo_files(output).ok_or_else(|| DemoError::Occupied(output.to_path_buf()))
}

fn write_into(
    folder: &Path,
    num_train: usize,
    held_out_per_group: &[usize; 4],
    progress: &mut dyn FnMut(usize, usize),
) -> Result<(), DemoError> {
    let held_out_groups: Vec<HeldOutGroup> = HeldOutGroup::ALL
        .into_iter()
        .zip(held_out_per_group)
        .flat_map(|(group, &count)| std::iter::repeat_n(group, count))
        .collect();
    let total = num_train + held_out_groups.len();
    for images in ["train", "heldout"] {
        let images = folder.join(images);
        fs::create_dir_all(&images).map_err(at(&images))?;
    }
    let done = AtomicUsize::new(0);
    let train =
        write_rows(folder, num_train, &done, total, progress, |index| train_row(index as u64))?;
    write_lines(&folder.join(TRAIN_FILE), &train)?;
    let held_out = write_rows(folder, held_out_groups.len(), &done, total, progress, |index| {
        held_out_row(index as u64, held_out_groups[index])
    })?;
    write_lines(&folder.join(HELD_OUT_FILE), &held_out)?;
    let manifest =
        json!({ "format": FORMAT, "train": num_train, "heldout": held_out_groups.len() });
    write_lines(&folder.join(MANIFEST), &[manifest])?;
    progress(total, total);
    Ok(())
}

/// A row, the image name in it, and the picture to draw under that name.
type DrawnRow = (Value, String, Layout);

fn write_rows(
    folder: &Path,
    count: usize,
    done: &AtomicUsize,
    total: usize,
    progress: &mut dyn FnMut(usize, usize),
    row: impl Fn(usize) -> DrawnRow + Sync,
) -> Result<Vec<Value>, DemoError> {
    let failed = AtomicBool::new(false);
    let mut rows = Vec::with_capacity(count);
    let indices: Vec<usize> = (0..count).collect();
    // In slices, so that the callback (which need not be Sync) is called from this thread.
    for slice in indices.chunks(PICTURES_A_TASK * rayon::current_num_threads().max(1)) {
        let written: Result<Vec<Value>, DemoError> = slice
            .par_iter()
            .map(|&index| {
                if failed.load(Ordering::Relaxed) {
                    return Err(DemoError::Stopped);
                }
                let (row, name, layout) = row(index);
                write_png(&folder.join(name), &layout.draw())
                    .inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
                done.fetch_add(1, Ordering::Relaxed);
                Ok(row)
            })
            .collect();
        rows.extend(written?);
        progress(done.load(Ordering::Relaxed), total);
    }
    Ok(rows)
}

fn train_row(index: u64) -> DrawnRow {
    let mut rng = seeded_rng(0x7261_696e_0000_0000 + index);
    let num_objects = if rng.random_bool(SHARE_OF_TWO) { 2 } else { 1 };
    let scene = Scene::sample(Split::Alignment, num_objects, &mut rng);
    let name = format!("train/{index:05}.png");
    (row(&scene, &name, &mut rng), name, Layout::of(&scene, &mut rng))
}

fn held_out_row(index: u64, group: HeldOutGroup) -> DrawnRow {
    let mut rng = seeded_rng(0x6865_6c64_0000_0000 + index);
    let scene = loop {
        let scene = Scene::sample(Split::HeldOut, group.num_objects, &mut rng);
        if has_unseen_pair(&scene) == group.unseen_pair {
            break scene;
        }
    };
    let name = format!("heldout/{index:05}.png");
    let mut row = row(&scene, &name, &mut rng);
    row["demo"] = json!(group);
    (row, name, Layout::of(&scene, &mut rng))
}

fn row(scene: &Scene, image: &str, rng: &mut ChaCha8Rng) -> Value {
    let language = Language::sample(rng);
    json!({
        "conversations": [
            { "role": "user", "content": format!("<image>\n{}", language.sample_prompt(rng)) },
            { "role": "assistant", "content": scene.caption(language) },
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

fn write_lines(path: &Path, rows: &[Value]) -> Result<(), DemoError> {
    let write = || {
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

    fn small(output: &Path) -> Result<(), DemoError> {
        write_into(output, 12, &[2, 1, 2, 1], &mut |_, _| ())
    }

    #[test]
    fn several_that_draw_at_once_all_get_one_complete_set() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("demo");
        let draw =
            || write_scaled(&output, NUM_TRAIN_PICTURES, &HELD_OUT_PER_GROUP, &mut |_, _| ());
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
        assert_eq!(groups.iter().filter(|group| group.num_objects == 2).count(), 3);
        assert_eq!(groups.iter().filter(|group| group.unseen_pair).count(), 2);
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
    fn a_complete_set_is_not_drawn_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MANIFEST), expected_manifest().to_string()).unwrap();
        let files = write_demo_dataset(folder.path(), &mut |_, _| panic!("drew")).unwrap();
        assert_eq!(files.train, folder.path().join(TRAIN_FILE));
    }
}
