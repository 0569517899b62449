//! The embedded demo: `vlm pretrain` without `--data-path`, and `vlm demo-weights`.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;
use vlm_board::HeldOutSection;
use vlm_config::{Layers, Origin, find};
use vlm_demo::{DemoFiles, defaults, demo_files, write_demo_dataset};
use vlm_demo_train::{
    DemoScores, GroupAccuracy, HeldOut, Images, Part, StartingWeightsOptions, make_starting_weights,
};
use vlm_train::parallel::LaunchEnv;
use vlm_train::{Requests, Run};

use crate::configuration::{INIT_FROM, configuration};
use crate::error::CliError;
use crate::flag_values::parse_named;
use crate::outcome::{NextInputs, print_outcome};
use crate::progress::TrainingProgress;

/// Printed at the start.
const INTRODUCTION: &str = "\
This is the demo: a small language model that was trained on text alone learns
to describe images of coloured shapes. It takes about a minute on 2 cores.
To train on your own rows instead, use --data-path.";

/// Flags of `vlm demo-weights`.
#[derive(Debug, Args)]
pub struct DemoWeightsArgs {
    /// Folder for the weights [default: data/demo-start of the project].
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Train only this part, vision or language [default: both].
    #[arg(long, value_name = "PART", value_parser = parse_named::<Part>)]
    pub part: Option<Part>,
    /// Weights file of a language model of the same shape to continue from [default: random
    /// weights].
    #[arg(long, value_name = "FILE")]
    pub language_from: Option<PathBuf>,
    /// Number of chats that the language model is trained on [default: 100000].
    #[arg(long, value_name = "N")]
    pub num_chats: Option<usize>,
}

/// Runs the demo: a training run, with an evaluation on the held-out rows before and after it.
pub fn pretrain(mut layers: Layers, requests: &Requests) -> Result<()> {
    let stop = &*requests.stop;
    if layers.get("model.features").is_some() {
        let message = "--features needs --data-path: without it, the demo is trained and \
                       evaluated, and its evaluation needs the vision encoder";
        return Err(CliError::Usage(message.into()).into());
    }
    let data = data_dir();
    if LaunchEnv::read()?.is_none_or(|env| env.rank == 0) {
        println!("{INTRODUCTION}");
    }
    let files = prepare_dataset(&dataset_dir(&data))?;
    add_demo_defaults(&mut layers, &data, &files);
    let config = configuration(layers)?;
    let progress = TrainingProgress::new(config.optim.epochs);
    let mut run = Run::prepare(config)?;
    let evaluated = run.on_first_rank(stop, |continues| -> Result<_> {
        let held_out = HeldOut::open(&files)?;
        println!("evaluating on {} held-out rows before training …", held_out.num_rows());
        let before = held_out.evaluate(&run, Images::Shown, continues)?;
        Ok((held_out, before.map(|evaluation| evaluation.accuracy)))
    })?;
    run.add_sink(progress);
    let mut summary = run.train(requests)?;
    // Only rank 0 evaluates and reports.
    let Some((held_out, before)) = evaluated else { return Ok(()) };
    let mut section = None;
    if let Some(before) = before.filter(|_| summary.status == "finished")
        && let Some((scores, held_out)) = evaluate_again(&held_out, &run, before, stop)?
    {
        summary.extra.extend(scores.summary());
        section = Some(held_out);
    }
    run.write_summary(&summary)?;
    run.write_report(section.as_ref());
    run.out_dir().check_not_replaced()?;
    let image = files.images.join("heldout/00000.png");
    let (rows, images_path) = (files.held_out, Some(files.images));
    print_outcome(&run, &summary, &NextInputs { rows, images_path, image: Some(image) });
    Ok(())
}

/// Evaluates after the training, with the images of the rows and with blank ones, and prints the
/// scores next to those in `before`. Returns `None` if the user asked to stop.
fn evaluate_again(
    held_out: &HeldOut,
    run: &Run,
    before: GroupAccuracy,
    stop: &AtomicBool,
) -> Result<Option<(DemoScores, HeldOutSection)>> {
    println!("evaluating on the same rows after training, and with blank images …");
    let continues = || !stop.load(Ordering::Relaxed);
    let Some(after) = held_out.evaluate(run, Images::Shown, &continues)? else { return Ok(None) };
    let Some(blank) = held_out.evaluate(run, Images::Blank, &continues)? else { return Ok(None) };
    let examples = held_out.examples(&after)?;
    let scores = DemoScores { before, after: after.accuracy, blank: blank.accuracy };
    let table = scores.table();
    print!("{table}");
    Ok(Some((scores, HeldOutSection { scores: table, examples })))
}

/// Runs `vlm demo-weights`: trains the demo's starting weights from random weights.
pub fn make_weights(args: &DemoWeightsArgs) -> Result<()> {
    let output = args.output.clone().unwrap_or_else(|| data_dir().join("demo-start"));
    let mut options = StartingWeightsOptions::default();
    if let Some(part) = args.part {
        options.parts = vec![part];
    }
    options.language_from.clone_from(&args.language_from);
    options.num_chats = args.num_chats.unwrap_or(options.num_chats);
    make_starting_weights(&output, &options)
        .with_context(|| format!("training the starting weights in {}", output.display()))
}

/// The folder of the demo's starting weights: that in `VLM_DATA_DIR`, or the one of the package
/// that contains this program, or the one of the checkout that it was built in.
fn data_dir() -> PathBuf {
    let given = std::env::var_os("VLM_DATA_DIR").map(PathBuf::from);
    given.or_else(packaged_data_dir).unwrap_or_else(|| {
        // Of a path that is not normalised, errors would be hard to read.
        let of_checkout = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../data");
        of_checkout.canonicalize().unwrap_or(of_checkout)
    })
}

/// The folder `data` beside the program's `bin`, in a package.
fn packaged_data_dir() -> Option<PathBuf> {
    let program = std::env::current_exe().ok()?;
    let data = program.parent()?.parent()?.join("data");
    data.join("demo-start").is_dir().then_some(data)
}

/// The folder of the demo's data set: in `data`, or for a package, which may not be writable, in
/// the user's cache.
fn dataset_dir(data: &Path) -> PathBuf {
    if packaged_data_dir().as_deref() != Some(data) {
        return data.join("demo");
    }
    let from = |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty());
    let cache = from("XDG_CACHE_HOME").map(PathBuf::from);
    let cache = cache.or_else(|| Some(PathBuf::from(from("HOME")?).join(".cache")));
    cache.unwrap_or_else(std::env::temp_dir).join("vlm/demo")
}

/// The demo's dataset, which is drawn on first use.
fn prepare_dataset(folder: &Path) -> Result<DemoFiles> {
    match demo_files(folder) {
        Some(files) => Ok(files),
        None => {
            println!("drawing the images of the demo into {} …", folder.display());
            Ok(write_demo_dataset(folder, &mut |done, total| {
                tracing::debug!("{done} of {total} demo images");
            })?)
        }
    }
}

/// Adds the demo's values for settings that the user did not give.
fn add_demo_defaults(layers: &mut Layers, data: &Path, files: &DemoFiles) {
    let start = data.join("demo-start");
    let path = |path: PathBuf| Value::from(path.display().to_string());
    let defaults = [
        ("data-path", path(files.train.clone())),
        ("images-path", path(files.images.clone())),
        ("lm", path(data.join("demo-lm/lm.safetensors"))),
        ("vision", path(start.join("vision"))),
        ("tokenizer", path(start)),
        ("epochs", defaults::EPOCHS.into()),
        ("batch-size", defaults::BATCH_SIZE.into()),
        ("learning-rate", defaults::LEARNING_RATE.into()),
        ("log-interval", defaults::LOG_INTERVAL.into()),
        ("save-interval", defaults::SAVE_INTERVAL.into()),
    ];
    // A whole model to start from has its own parts.
    let is_whole = layers.get(INIT_FROM).is_some();
    let is_part = |name: &str| ["lm", "vision", "tokenizer"].contains(&name);
    let used = defaults.into_iter().filter(|(name, _)| !is_whole || !is_part(name));
    let entries = used.filter_map(|(name, value)| Some((find(name)?.0, value)));
    layers.add(&Origin::Demo, entries.collect());
}
