//! `cargo xtask bench data`: how fast pictures and rows become batches.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use tempfile::TempDir;
use vlm_data::ImageProcessor;

use super::clock::thread_time;
use super::pictures;
use super::rows;
use super::table::Table;
use super::{DataArgs, Part};
use crate::workspace::{Workspace, usage_error};

const NUM_PICTURES: u32 = 16;
/// Rounds taken in turn with the other side's, so that both see the machine's good and bad moments.
const NUM_ROUNDS: u32 = 3;

/// Answer of `clip_processor.py`.
#[derive(Deserialize)]
struct PythonAnswer {
    images_per_sec: f64,
    pillow: String,
    transformers: String,
}

/// Measures.
pub fn run(workspace: &Workspace, args: &DataArgs) -> Result<Table> {
    let mut table = Table::default();
    let scratch = TempDir::new()?;
    if args.wants(Part::Pictures) {
        pictures(workspace, args, scratch.path(), &mut table)?;
    }
    rows::measure(workspace, args, scratch.path(), &mut table)?;
    Ok(table)
}

/// Decoding and preprocessing, in one thread, against Python's in one thread. Counted in seconds
/// of processor time: the machine may have other things to do.
fn pictures(
    workspace: &Workspace,
    args: &DataArgs,
    scratch: &Path,
    table: &mut Table,
) -> Result<()> {
    let folder = match &args.images {
        Some(folder) => folder.clone(),
        None => {
            pictures::write(scratch, NUM_PICTURES)?;
            scratch.to_owned()
        }
    };
    let files = read_pictures(&folder)?;
    let kilobytes = files.iter().map(Vec::len).sum::<usize>() as f64 / files.len() as f64 / 1e3;
    let (width, height) = pictures::SIZE;
    let of = match &args.images {
        Some(folder) => format!("{} of {}", files.len(), folder.display()),
        None => format!("{} drawn ones of {width}×{height}", files.len()),
    };
    table.push("pictures", format!("{of}, {kilobytes:.0} kB each"));

    let settings = scratch.join("preprocessor_config.json");
    fs::write(&settings, "{}")?;
    let processor = ImageProcessor::from_file(&settings)?;
    let seconds = args.seconds / f64::from(NUM_ROUNDS);
    let (mut ours, mut theirs) = (0f64, None::<PythonAnswer>);
    for _ in 0..NUM_ROUNDS {
        ours = ours.max(images_per_second(&processor, &files, seconds)?);
        match python(workspace, args, &folder, seconds) {
            Ok(answer)
                if theirs
                    .as_ref()
                    .is_none_or(|best| best.images_per_sec < answer.images_per_sec) =>
            {
                theirs = Some(answer)
            }
            Ok(_) => {}
            Err(error) => {
                eprintln!("no comparison with Python: {error:#}");
                break;
            }
        }
    }
    table.push_with_target(
        "JPEG to normalised 3×224×224, one core",
        format!("{ours:.0} images/s"),
        ">= 500",
        ours >= 500.0,
    );
    if let Some(theirs) = theirs {
        table.push(
            format!("Pillow {}, transformers {}, one core", theirs.pillow, theirs.transformers),
            format!("{:.0} images/s", theirs.images_per_sec),
        );
        let ratio = ours / theirs.images_per_sec;
        table.push_with_target("ratio", format!("{ratio:.1}"), ">= 3", ratio >= 3.0);
    }
    Ok(())
}

fn read_pictures(folder: &Path) -> Result<Vec<Vec<u8>>> {
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
            let pixels = processor.preprocess(file).context("a picture to measure with")?;
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
) -> Result<PythonAnswer> {
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
        bail!("{} says: {last}; name another with --python", args.python);
    }
    let stdout = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(stdout.lines().last().unwrap_or_default())
        .with_context(|| format!("the answer of {}", script.display()))
}
