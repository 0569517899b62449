//! The embedded demo: `vlm pretrain` without `--data-path`, and `vlm demo-weights`.

use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use anyhow::{Context, Result};
use vlm_data::demo::{DemoFiles, demo_files, write_demo_dataset};
use vlm_train::Run;
use vlm_train::config::Stage;
use vlm_train::demo::{
    DemoReport, HeldOut, Pictures, StartingWeightsOptions, alignment, make_starting_weights,
};

use crate::args::{DemoWeightsArgs, PretrainArgs};
use crate::pretrain::{configuration, report};

/// Runs the demo: captions held-out pictures before and after the training, and says how many it
/// got right.
pub fn pretrain(args: PretrainArgs, stop: &AtomicBool) -> Result<()> {
    if args.features.is_some() {
        let message = "--features without --data-path: the demo captions pictures before and after, \
                       for which it needs the encoder";
        return Err(vlm_train::TrainError::Usage(message.into()).into());
    }
    let data = data_dir();
    let files = prepared(&data.join("demo"))?;
    let mut run =
        Run::prepare(configuration(with_demo_defaults(args, &data, &files), Stage::Pretrain)?)?;
    if !run.is_first_rank() {
        // Rank 0 examines and reports; the others only train.
        run.train(stop)?;
        return Ok(());
    }
    let held_out = HeldOut::open(&files)?;
    println!("captioning {} held-out pictures before training …", held_out.num_pictures());
    let before = held_out.examine(&run, Pictures::Shown)?.accuracy;
    let mut summary = run.train(stop)?;
    let mut judged = None;
    if summary.status == "finished" {
        println!("captioning them again, and once with blank pictures …");
        let after = held_out.examine(&run, Pictures::Shown)?;
        let blank = held_out.examine(&run, Pictures::Blank)?.accuracy;
        let sheet = run.out_dir().join(vlm_train::report::CONTACT_SHEET);
        held_out.write_contact_sheet(&after, &sheet)?;
        let result = DemoReport { before, after: after.accuracy, blank };
        summary.extra.extend(result.summary());
        println!("{}pictures with their captions: {}", result.table(), sheet.display());
        judged = Some(result);
    }
    run.write_summary(&summary)?;
    run.write_report(judged.as_ref());
    report(&run, &summary);
    Ok(())
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
fn with_demo_defaults(args: PretrainArgs, data: &Path, files: &DemoFiles) -> PretrainArgs {
    let start = data.join("demo-start");
    let path = |given: Option<PathBuf>, default: PathBuf| given.or(Some(default));
    PretrainArgs {
        data_path: Some(vec![files.train.display().to_string()]),
        images_path: path(args.images_path, files.images.clone()),
        lm: path(args.lm, start.join("lm.safetensors")),
        vision: path(args.vision, start.join("vision")),
        tokenizer: path(args.tokenizer, start),
        epochs: args.epochs.or(Some(alignment::EPOCHS)),
        batch_size: args.batch_size.or(Some(alignment::BATCH_SIZE)),
        learning_rate: args.learning_rate.or(Some(alignment::LEARNING_RATE)),
        log_interval: args.log_interval.or(Some(alignment::LOG_INTERVAL)),
        save_interval: args.save_interval.or(Some(alignment::SAVE_INTERVAL)),
        ..args
    }
}
