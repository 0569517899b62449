//! `cargo xtask bench make-dataset`: generates a data set of any size for measurements and
//! experiments. The same flags give the same bytes.

mod damage;
mod form;
mod row_writer;
mod rows;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::mem;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use vlm_display::Table;

use super::images;
use super::measurements::table;
use crate::workspace::{Workspace, usage_error};
use damage::{Damage, Damager};
pub use form::Form;
use row_writer::RowWriter;
use rows::Draw;

/// Number of distinct images. The file of a row is one of these with the row's number in a comment.
const NUM_DISTINCT_IMAGES: u32 = 64;
/// Files per folder; very large folders are slow on many file systems.
const FILES_PER_FOLDER: usize = 1000;
/// File that lists the damaged images, with the kind of damage and the expected result.
const DAMAGED_FILE: &str = "damaged.jsonl";

/// Flags of `cargo xtask bench make-dataset`.
#[derive(Debug, Clone, Args)]
pub struct DatasetArgs {
    /// Folder to write, new or empty
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// Number of rows
    #[arg(long, value_name = "N")]
    pub rows: usize,
    /// Format of the rows
    #[arg(long, value_enum, default_value = "llava")]
    pub form: Form,
    /// Fraction of the images that are damaged, in ten ways in turn
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub damaged_share: f64,
    /// Fraction of the rows that are text-only
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub text_share: f64,
    /// Number of image files that the rows share [default: one per row]
    #[arg(long, value_name = "N")]
    pub picture_files: Option<usize>,
    /// Smallest side of an image in pixels; the largest is twice as long
    #[arg(long, value_name = "PIXELS", default_value_t = 64)]
    pub picture_side: u32,
    /// Seed of the images and texts
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

impl DatasetArgs {
    fn check(&self) -> Result<()> {
        let is_fraction = |share: f64| (0.0..=1.0).contains(&share);
        if self.rows == 0 || self.picture_files == Some(0) || self.picture_side == 0 {
            return Err(usage_error(
                "--rows, --picture-files and --picture-side must be at least 1",
            ));
        }
        if !is_fraction(self.damaged_share) || !is_fraction(self.text_share) {
            return Err(usage_error("--damaged-share and --text-share must be from 0 to 1"));
        }
        if self.picture_files.is_some() && (self.damaged_share > 0.0 || self.form == Form::Parquet)
        {
            return Err(usage_error(
                "--picture-files cannot be used with --damaged-share, --form parquet or --form tar",
            ));
        }
        let is_used = fs::read_dir(&self.output).is_ok_and(|mut files| files.next().is_some());
        if is_used {
            let output = self.output.display();
            return Err(usage_error(format!("{output} is not empty; choose another --output")));
        }
        Ok(())
    }
}

/// Makes the data set and returns a table of what was made.
pub fn run(workspace: &Workspace, args: &DatasetArgs) -> Result<Table> {
    args.check()?;
    let bar = ProgressBar::new(args.rows as u64)
        .with_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} rows, {eta} left")?);
    let made = make(workspace, args, &mut |done| bar.set_position(done as u64));
    bar.finish_and_clear();
    let made = made?;
    let mut table = table();
    table.push(&[&"rows", &format!("{} in {}", args.rows, made.rows.display())]);
    table
        .push(&[&"images", &format!("{}, {:.1} MB", made.num_images, made.num_bytes as f64 / 1e6)]);
    for (damage, count) in &made.damaged {
        let fate = if damage.is_readable() { "still valid" } else { "to be rejected" };
        table.push(&[&format!("damaged: {}", damage.name()), &format!("{count}, {fate}")]);
    }
    Ok(table)
}

/// A data set that was made.
pub struct Made {
    /// The file with the rows.
    pub rows: PathBuf,
    num_images: usize,
    num_bytes: u64,
    damaged: BTreeMap<Damage, usize>,
}

/// Makes the data set. `progress` is called after each row with the number of rows done.
pub fn make(
    workspace: &Workspace,
    args: &DatasetArgs,
    progress: &mut dyn FnMut(usize),
) -> Result<Made> {
    fs::create_dir_all(&args.output).with_context(|| args.output.display().to_string())?;
    let intact = draw_images(args)?;
    let damager = Damager::new(workspace, args.damaged_share > 0.0)?;
    let mut writer = RowWriter::create(&args.output, args.form)?;
    let path = args.output.join(DAMAGED_FILE);
    let mut log = BufWriter::new(File::create(&path).with_context(|| path.display().to_string())?);
    let mut made = Made {
        rows: writer.path().to_owned(),
        num_images: 0,
        num_bytes: 0,
        damaged: BTreeMap::new(),
    };
    // Which of the shared image files exist.
    let mut is_written = vec![false; args.picture_files.unwrap_or(0)];
    for row in 0..args.rows {
        let mut draw = Draw::new(args.seed, row);
        let has_image = !draw.happens(args.text_share);
        let damage = (has_image && draw.happens(args.damaged_share)).then(|| {
            let count: usize = made.damaged.values().sum();
            Damage::ALL[count % Damage::ALL.len()]
        });
        let conversations = rows::conversations(&mut draw, has_image);
        let number = args.picture_files.map_or(row, |files| row % files);
        let jpeg = &intact[number % intact.len()];
        let bytes = match damage {
            _ if !has_image => None,
            None => Some(numbered(jpeg, number)),
            Some(damage) => damager.damage(damage, &numbered(jpeg, number)),
        };
        let name = has_image.then(|| name_of(number, damage));
        if let (Some(name), Some(bytes)) = (&name, &bytes)
            && !is_written.get_mut(number).is_some_and(|written| mem::replace(written, true))
        {
            if !args.form.has_images_inside() {
                write_image(&args.output.join(name), number, bytes)?;
            }
            made.num_images += 1;
            made.num_bytes += bytes.len() as u64;
        }
        if let Some(damage) = damage {
            *made.damaged.entry(damage).or_default() += 1;
            let line = json!({
                "row": row, "image": name, "damage": damage.name(),
                "expected": if damage.is_readable() { "kept" } else { "rejected" },
            });
            writeln!(log, "{line}").context(DAMAGED_FILE)?;
        }
        writer.write(row, name.as_deref(), conversations, bytes)?;
        progress(row + 1);
    }
    log.flush().context(DAMAGED_FILE)?;
    writer.finish()?;
    Ok(made)
}

/// The distinct images, as JPEGs of different sizes.
fn draw_images(args: &DatasetArgs) -> Result<Vec<Vec<u8>>> {
    let side = args.picture_side;
    (0..NUM_DISTINCT_IMAGES)
        .map(|k| {
            let mut draw = Draw::new(!args.seed, k as usize);
            let mut side = || side + draw.below(u64::from(side) + 1) as u32;
            images::jpeg(args.seed as u32 ^ (k << 8), (side(), side()))
        })
        .collect()
}

/// The JPEG with `number` in a comment, so that every file has its own bytes and hash.
fn numbered(jpeg: &[u8], number: usize) -> Vec<u8> {
    const COMMENT: [u8; 4] = [0xFF, 0xFE, 0, 10];
    let (start, rest) = jpeg.split_at(2);
    [start, &COMMENT, &(number as u64).to_le_bytes(), rest].concat()
}

/// Path of an image relative to the folder of the rows.
fn name_of(number: usize, damage: Option<Damage>) -> String {
    let extension = damage.map_or("jpg", Damage::extension);
    format!("images/{:05}/{number:09}.{extension}", number / FILES_PER_FOLDER)
}

fn write_image(path: &Path, number: usize, bytes: &[u8]) -> Result<()> {
    if let (Some(folder), true) = (path.parent(), number.is_multiple_of(FILES_PER_FOLDER)) {
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    }
    let write = fs::write(path, bytes);
    // The folder does not exist yet if its first image is missing on purpose.
    write
        .or_else(|_| {
            path.parent().map_or(Ok(()), fs::create_dir_all)?;
            fs::write(path, bytes)
        })
        .with_context(|| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    fn args(output: &Path, form: Form) -> DatasetArgs {
        DatasetArgs {
            output: output.to_owned(),
            rows: 60,
            form,
            damaged_share: 0.5,
            text_share: 0.1,
            picture_files: None,
            picture_side: 24,
            seed: 3,
        }
    }

    #[test]
    fn rows_that_share_image_files_have_all_of_them() {
        let folder = tempfile::tempdir().unwrap();
        let shared = DatasetArgs {
            damaged_share: 0.0,
            text_share: 0.5,
            picture_files: Some(8),
            ..args(folder.path(), Form::Jsonl)
        };
        let made = make(&Workspace::locate(), &shared, &mut |_| ()).unwrap();
        assert_eq!(made.num_images, 8);
        let rows = vlm_data::open_source(&made.rows, None).unwrap();
        for index in 0..rows.len() {
            for (k, image) in rows.row(index).unwrap().images.iter().enumerate() {
                rows.image_bytes(index, k, image).unwrap();
            }
        }
    }

    #[test]
    fn every_format_is_read_and_has_the_same_answers_and_images() {
        let folder = tempfile::tempdir().unwrap();
        let open = |form: Form| {
            let name = format!("{form:?}");
            let args = DatasetArgs {
                damaged_share: 0.0,
                text_share: 0.0,
                ..args(&folder.path().join(name), form)
            };
            let made = make(&Workspace::locate(), &args, &mut |_| ()).unwrap();
            vlm_data::open_source(&made.rows, None).unwrap()
        };
        let expected = open(Form::Jsonl);
        for &form in Form::value_variants() {
            let found = if form == Form::Jsonl { continue } else { open(form) };
            assert_eq!(found.len(), expected.len(), "{form:?}");
            for index in 0..found.len() {
                let answers = [&expected, &found].map(|source| {
                    let row = source.row(index).unwrap();
                    let bytes = source.image_bytes(index, 0, &row.images[0]).unwrap();
                    (row.turns.last().unwrap().content.clone(), bytes)
                });
                assert_eq!(answers[0], answers[1], "{form:?}, row {index}");
            }
        }
    }

    #[test]
    fn every_format_holds_the_same_rows_and_damaged_images_fare_as_listed() {
        let folder = tempfile::tempdir().unwrap();
        let make_form = |name: &str, form: Form| {
            let made =
                make(&Workspace::locate(), &args(&folder.path().join(name), form), &mut |_| ());
            vlm_data::open_source(&made.unwrap().rows, None).unwrap()
        };
        let list = make_form("list", Form::Llava);
        let again = make_form("again", Form::Llava);
        let text = |name: &str, file: &str| fs::read(folder.path().join(name).join(file)).unwrap();
        assert_eq!(text("list", "rows.json"), text("again", "rows.json"));
        let settings = folder.path().join("preprocessor_config.json");
        fs::write(&settings, "{}").unwrap();
        let processor = vlm_data::ImageProcessor::from_file(&settings).unwrap();
        let damaged: BTreeMap<usize, String> =
            fs::read_to_string(folder.path().join("list/damaged.jsonl"))
                .unwrap()
                .lines()
                .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap())
                .map(|line| {
                    (
                        line["row"].as_u64().unwrap() as usize,
                        line["expected"].as_str().unwrap().to_owned(),
                    )
                })
                .collect();
        assert!(damaged.len() >= Damage::ALL.len());
        let others = [again, make_form("lines", Form::Jsonl), make_form("parquet", Form::Parquet)];
        for index in 0..list.len() {
            let row = list.row(index).unwrap();
            let bytes = row.images.first().map(|image| list.image_bytes(index, 0, image));
            for other in &others {
                let same = other.row(index).unwrap();
                assert_eq!(same.turns, row.turns);
                let found = same.images.first().map(|image| other.image_bytes(index, 0, image));
                let found = found.and_then(Result::ok);
                // An empty file is an image that cannot be read; in Parquet it is no image.
                let expected = bytes.as_ref().and_then(|bytes| bytes.as_ref().ok());
                let [found, expected] =
                    [found.as_ref(), expected].map(|bytes| bytes.filter(|bytes| !bytes.is_empty()));
                assert_eq!(found, expected, "row {index}");
            }
            let Some(bytes) = bytes else { continue };
            let fate = match bytes.and_then(|bytes| Ok(processor.crop_u8(&bytes)?)) {
                Ok(_) => "kept",
                Err(_) => "rejected",
            };
            let expected = damaged.get(&index).map_or("kept", String::as_str);
            assert_eq!(fate, expected, "row {index}");
        }
    }
}
