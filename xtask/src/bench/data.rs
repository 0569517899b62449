//! `cargo xtask bench data`: how fast images are preprocessed and rows become batches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use vlm_data::ImageProcessor;
use vlm_display::Table;

use super::clock::thread_time;
use super::data_args::{DataArgs, Part};
use super::images;
use super::measurements::{table, target};
use super::rows;
use crate::workspace::{Workspace, usage_error};

const NUM_IMAGES: u32 = 16;
/// Number of rounds. Each measures this program and then Python, so that changes in the machine's
/// load affect both.
const NUM_ROUNDS: u32 = 3;

/// Output of `clip_processor.py`.
#[derive(Deserialize)]
struct PythonSpeed {
    images_per_sec: f64,
    pillow: String,
    transformers: String,
}

/// Runs the measurements that `args` asks for and returns their table.
pub fn run(workspace: &Workspace, args: &DataArgs) -> Result<Table> {
    let mut table = table();
    let scratch = TempDir::new()?;
    if args.wants(Part::Pictures) {
        measure_images(workspace, args, scratch.path(), &mut table)?;
    }
    rows::measure(workspace, args, scratch.path(), &mut table)?;
    Ok(table)
}

/// Measures decoding and preprocessing of images in one thread, here and in Python. The rates are
/// per second of processor time, so that other programs on the machine do not distort them.
fn measure_images(
    workspace: &Workspace,
    args: &DataArgs,
    scratch: &Path,
    table: &mut Table,
) -> Result<()> {
    let folder = match &args.images {
        Some(folder) => folder.clone(),
        None => {
            images::write(scratch, NUM_IMAGES)?;
            scratch.to_owned()
        }
    };
    let files = read_images(&folder)?;
    let kilobytes = files.iter().map(Vec::len).sum::<usize>() as f64 / files.len() as f64 / 1e3;
    let (width, height) = images::SIZE;
    let origin = match &args.images {
        Some(folder) => format!("{} from {}", files.len(), folder.display()),
        None => format!("{} generated, {width}×{height} pixels", files.len()),
    };
    table.push(&[&"images", &format!("{origin}, {kilobytes:.0} kB each")]);

    let settings = scratch.join("preprocessor_config.json");
    fs::write(&settings, "{}")?;
    let processor = ImageProcessor::from_file(&settings)?;
    let seconds = args.seconds / f64::from(NUM_ROUNDS);
    let (mut ours, mut theirs) = (0f64, None::<PythonSpeed>);
    for _ in 0..NUM_ROUNDS {
        ours = ours.max(images_per_second(&processor, &files, seconds)?);
        match python(workspace, args, &folder, seconds) {
            Ok(speed)
                if theirs
                    .as_ref()
                    .is_none_or(|best| best.images_per_sec < speed.images_per_sec) =>
            {
                theirs = Some(speed)
            }
            Ok(_) => {}
            Err(error) => {
                eprintln!("no comparison with Python: {error:#}");
                break;
            }
        }
    }
    table.push(&[
        &"JPEG to normalised 3×224×224, one core",
        &format!("{ours:.0} images/s"),
        &target(">= 500", ours >= 500.0),
    ]);
    if let Some(theirs) = theirs {
        table.push(&[
            &format!("Pillow {}, transformers {}, one core", theirs.pillow, theirs.transformers),
            &format!("{:.0} images/s", theirs.images_per_sec),
        ]);
        let ratio = ours / theirs.images_per_sec;
        table.push(&[&"ratio", &format!("{ratio:.1}"), &target(">= 3", ratio >= 3.0)]);
    }
    Ok(())
}

fn read_images(folder: &Path) -> Result<Vec<Vec<u8>>> {
    let entries = fs::read_dir(folder).with_context(|| format!("reading {}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "jpg"));
    paths.sort();
    if paths.is_empty() {
        return Err(usage_error(format!("no .jpg files in {}", folder.display())));
    }
    paths.iter().map(|path| Ok(fs::read(path)?)).collect()
}

fn images_per_second(processor: &ImageProcessor, files: &[Vec<u8>], seconds: f64) -> Result<f64> {
    let limit = Duration::from_secs_f64(seconds);
    let started = thread_time()?;
    let mut count = 0u32;
    loop {
        for file in files {
            let pixels =
                processor.preprocess(file).context("preprocessing an image of the benchmark")?;
            ensure!(!pixels.is_empty(), "no pixels");
            count += 1;
        }
        let used = thread_time()? - started;
        if used >= limit {
            return Ok(f64::from(count) / used.as_secs_f64());
        }
    }
}

fn python(
    workspace: &Workspace,
    args: &DataArgs,
    folder: &Path,
    seconds: f64,
) -> Result<PythonSpeed> {
    let script = workspace.root().join("xtask/bench/clip_processor.py");
    let output = Command::new(&args.python)
        .arg(&script)
        .arg(folder)
        .arg(seconds.to_string())
        .output()
        .with_context(|| format!("starting {}", args.python))?;
    if !output.status.success() {
        let stderr = String::from_utf8_lossy(&output.stderr);
        let last = stderr.lines().last().unwrap_or("no message");
        bail!("{} failed: {last}; choose another Python with --python", args.python);
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(stdout.lines().last().unwrap_or_default())
        .with_context(|| format!("reading the output of {}", script.display()))
}
