//! The embedded demo: `vlm pretrain` without `--data-path`, and `vlm demo-weights`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use serde_json::Value;
use vlm_config::{Layers, Origin, find};
use vlm_data::demo::{DemoFiles, demo_files, write_demo_dataset};
use vlm_train::Run;
use vlm_train::demo::{
    DemoReport, GroupAccuracy, HeldOut, Pictures, StartingWeightsOptions, alignment,
    make_starting_weights,
};

use crate::args::DemoWeightsArgs;
use crate::pretrain::{configuration, report};
use crate::progress::TrainingProgress;

/// Runs the demo: captions held-out pictures before and after the training, and says how many it
/// got right.
pub fn pretrain(mut layers: Layers, stop: &AtomicBool) -> Result<()> {
    if layers.get("model.features").is_some() {
        let message = "--features without --data-path: the demo captions pictures before and after, \
                       for which it needs the encoder";
        return Err(crate::error::CliError::Usage(message.into()).into());
    }
    let data = data_dir();
    let files = prepared(&data.join("demo"))?;
    add_demo_defaults(&mut layers, &data, &files);
    let mut run = Run::prepare(configuration(layers)?)?;
    let examined = run.on_first_rank(stop, |goes_on| -> Result<_> {
        let held_out = HeldOut::open(&files)?;
        println!("captioning {} held-out pictures before training …", held_out.num_pictures());
        let before = held_out.examine(&run, Pictures::Shown, goes_on)?;
        Ok((held_out, before.map(|examined| examined.accuracy)))
    })?;
    run.add_sink(TrainingProgress::new());
    let mut summary = run.train(stop)?;
    // Rank 0 examines and reports; the others only train.
    let Some((held_out, before)) = examined else { return Ok(()) };
    let mut judged = None;
    if let Some(before) = before.filter(|_| summary.status == "finished") {
        judged = examine_again(&held_out, &run, before, stop)?;
    }
    if let Some(result) = &judged {
        summary.extra.extend(result.summary());
    }
    run.write_summary(&summary)?;
    run.write_report(judged.as_ref());
    report(&run, &summary);
    Ok(())
}

/// Captions the pictures after the training, shows how good that is beside `before`, and draws the
/// sheet; `None` when the user asked to stop meanwhile.
fn examine_again(
    held_out: &HeldOut,
    run: &Run,
    before: GroupAccuracy,
    stop: &AtomicBool,
) -> Result<Option<DemoReport>> {
    println!("captioning them again, and once with blank pictures …");
    let goes_on = || !stop.load(Ordering::Relaxed);
    let Some(after) = held_out.examine(run, Pictures::Shown, &goes_on)? else { return Ok(None) };
    let Some(blank) = held_out.examine(run, Pictures::Blank, &goes_on)? else { return Ok(None) };
    let sheet = run.out_dir().join(vlm_train::report::CONTACT_SHEET);
    held_out.write_contact_sheet(&after, &sheet)?;
    let result = DemoReport { before, after: after.accuracy, blank: blank.accuracy };
    println!("{}pictures with their captions: {}", result.table(), sheet.display());
    Ok(Some(result))
}

/// Makes the starting weights anew.
pub fn make_weights(args: &DemoWeightsArgs) -> Result<()> {
    let output = args.output.clone().unwrap_or_else(|| data_dir().join("demo-start"));
    make_starting_weights(&output, &StartingWeightsOptions::default())
        .with_context(|| format!("making the starting weights in {}", output.display()))
}

/// The checkout's `data` folder: `VLM_DATA_DIR`, else the one this program was built beside.
fn data_dir() -> PathBuf {
    let built_beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data");
    std::env::var_os("VLM_DATA_DIR").map_or_else(built_beside, PathBuf::from)
}

/// The demo's rows and pictures, drawn on first use.
fn prepared(folder: &Path) -> Result<DemoFiles> {
    match demo_files(folder) {
        Some(files) => Ok(files),
        None => Ok(write_demo_dataset(folder, &mut |done, total| {
            tracing::debug!("{done} of {total} demo pictures");
        })?),
    }
}

/// What the demo sets where the user does not.
fn add_demo_defaults(layers: &mut Layers, data: &Path, files: &DemoFiles) {
    let start = data.join("demo-start");
    let path = |path: PathBuf| Value::from(path.display().to_string());
    let defaults = [
        ("data-path", path(files.train.clone())),
        ("images-path", path(files.images.clone())),
        ("lm", path(start.join("lm.safetensors"))),
        ("vision", path(start.join("vision"))),
        ("tokenizer", path(start)),
        ("epochs", alignment::EPOCHS.into()),
        ("batch-size", alignment::BATCH_SIZE.into()),
        ("learning-rate", alignment::LEARNING_RATE.into()),
        ("log-interval", alignment::LOG_INTERVAL.into()),
        ("save-interval", alignment::SAVE_INTERVAL.into()),
    ];
    let entries = defaults.into_iter().filter_map(|(name, value)| Some((find(name)?.0, value)));
    layers.add(&Origin::Demo, entries.collect());
}
