//! The demo's data set on disk: JSON lines and folders of images, read by the same code as the data
//! of users. It is written completely or not at all; `dataset_images` draws its images and makes
//! their rows.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::dataset_images::{held_out_image, train_image, write_images};
use crate::error::{DemoError, at};

/// Name of the file with the training rows.
pub const TRAIN_FILE: &str = "train.jsonl";
/// Name of the file with the held-out rows: for every image a row that asks for its caption, then
/// for every image a row that asks a question.
pub const HELD_OUT_FILE: &str = "heldout.jsonl";
/// Number of training images; each has one row.
pub const NUM_TRAIN_IMAGES: usize = 5_760;
/// Number of held-out images in each of four groups: one object without and with an unseen pair,
/// then two objects without and with one.
pub const HELD_OUT_PER_GROUP: [usize; 4] = [150, 50, 150, 50];

const MANIFEST: &str = "manifest.json";
const FORMAT_NAME: &str = "vlm demo scenes ";
const FORMAT: &str = "vlm demo scenes 3";

/// Number of objects and whether there is an unseen pair, in the order of [`HELD_OUT_PER_GROUP`].
const IMAGE_GROUPS: [(usize, bool); 4] = [(1, false), (1, true), (2, false), (2, true)];

/// The files of a demo data set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DemoFiles {
    /// File with the training rows.
    pub train: PathBuf,
    /// File with the held-out rows, whose scenes no training image shows.
    pub held_out: PathBuf,
    /// Root folder of the image names in both files.
    pub images: PathBuf,
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

/// The files of the demo data set in `output`; `None` if there is no complete one of this version.
pub fn demo_files(output: &Path) -> Option<DemoFiles> {
    DEMO.files(output)
}

/// Writes the demo data set into the folder `output` and returns its files. The bytes are the same
/// on every call. A complete data set of this version is kept; one of another version is replaced.
/// The folder is either written completely or not at all. `progress` is called repeatedly with the
/// number of images done and the number of all images.
///
/// # Errors
/// `output` has other content; a file cannot be written.
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

/// Writes the data set, unless there is a complete one.
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
        // Another process may have written the data set just now.
        return num_images.files(output).ok_or_else(|| DemoError::Occupied(output.to_path_buf()));
    }
    static ATTEMPTS: AtomicUsize = AtomicUsize::new(0);
    let attempt = format!("{}-{}", std::process::id(), ATTEMPTS.fetch_add(1, Ordering::Relaxed));
    let name = output.file_name().unwrap_or_default().to_string_lossy();
    let partial = output.with_file_name(format!(".{name}.partial-{attempt}"));
    let written = write_into(&partial, num_images, progress).and_then(|()| {
        // On some systems a rename to an existing empty folder fails.
        let _ = fs::remove_dir(output);
        fs::rename(&partial, output).map_err(at(output))
    });
    if let Err(error) = written {
        let _ = fs::remove_dir_all(&partial);
        // Ranks that start together all write a data set; the first complete one is used by all.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Asked, HeldOutGroup};

    const SMALL: NumImages = NumImages { train: 12, held_out_per_group: [2, 1, 2, 1] };

    fn small(output: &Path) -> Result<(), DemoError> {
        write_into(output, SMALL, &mut |_, _| ())
    }

    #[test]
    fn concurrent_writers_all_get_the_same_complete_data_set() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("demo");
        let draw = || write_or_keep(&output, SMALL, &mut |_, _| ());
        std::thread::scope(|scope| {
            let all: Vec<_> = (0..2).map(|_| scope.spawn(draw)).collect();
            for one in all {
                assert!(one.join().unwrap().unwrap().train.exists());
            }
        });
        assert_eq!(
            fs::read_dir(folder.path()).unwrap().count(),
            1,
            "only the complete data set is left"
        );
    }

    #[test]
    fn data_set_has_the_same_bytes_every_time() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (folder.path().join("a"), folder.path().join("b"));
        small(&a).unwrap();
        small(&b).unwrap();
        for name in [TRAIN_FILE, HELD_OUT_FILE, "train/00011.png", "heldout/00005.png"] {
            assert_eq!(fs::read(a.join(name)).unwrap(), fs::read(b.join(name)).unwrap(), "{name}");
        }
    }

    #[test]
    fn held_out_rows_have_their_group_and_training_rows_their_image() {
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
            let image = image::open(folder.path().join(row["image"].as_str().unwrap())).unwrap();
            assert_eq!((image.width(), image.height()), (224, 224));
            assert!(row["conversations"][0]["content"].as_str().unwrap().starts_with("<image>\n"));
        }
    }

    #[test]
    fn folder_with_other_content_is_refused_and_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("mine.txt"), "mine").unwrap();
        let refused = write_demo_dataset(folder.path(), &mut |_, _| ());
        assert!(matches!(refused, Err(DemoError::Occupied(_))), "{refused:?}");
        assert_eq!(fs::read_to_string(folder.path().join("mine.txt")).unwrap(), "mine");
    }

    #[test]
    fn data_set_of_another_version_is_recognised() {
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
    fn only_a_data_set_of_another_version_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let output = folder.path().join("demo");
        fs::create_dir(&output).unwrap();
        let write = |text: &str| fs::write(output.join(MANIFEST), text).unwrap();
        write(&DEMO.manifest().to_string());
        remove_another_version(&output, DEMO).unwrap();
        assert!(demo_files(&output).is_some(), "the data set of this version is put back");
        write(r#"{"format": "vlm demo scenes 1"}"#);
        remove_another_version(&output, DEMO).unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
        remove_another_version(&output, DEMO).unwrap();
    }

    #[test]
    fn complete_data_set_is_not_written_again() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join(MANIFEST), DEMO.manifest().to_string()).unwrap();
        let files = write_demo_dataset(folder.path(), &mut |_, _| panic!("drew")).unwrap();
        assert_eq!(files.train, folder.path().join(TRAIN_FILE));
    }
}
