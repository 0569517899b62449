//! `vlm pretrain` and `vlm sft`: from flags and configuration file to one training run.

use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use anyhow::Result;
use serde_json::Value;
use vlm_config::{Layers, Stage, settings};
use vlm_data::{DataPaths, count_by_reason};
use vlm_infer::{part_of_run, shape_of_run, weights_of_run};
use vlm_train::parallel::LaunchEnv;
use vlm_train::{Run, TrainConfig};

use crate::error::CliError;
use crate::inputs::{Holds, require};
use crate::progress::TrainingProgress;
use crate::settings_args::SettingsArgs;
use crate::{demo, interrupt};

/// Runs the command.
pub fn run(args: &SettingsArgs) -> Result<()> {
    let layers = args.layers()?;
    let stop = interrupt::flag()?;
    if layers.get("data.data_path").is_none() && layers.stage() == Stage::Pretrain {
        return demo::pretrain(layers, &stop);
    }
    let mut run = Run::prepare(configuration(layers)?)?;
    run.add_sink(TrainingProgress::new());
    let summary = run.train(&stop)?;
    run.write_summary(&summary)?;
    run.write_report(None);
    report(&run, &summary);
    Ok(())
}

/// Says how a run ended and where its results are.
pub fn report(run: &Run, summary: &vlm_train::Summary) {
    if !run.is_first_rank() {
        return;
    }
    let loss = summary.final_loss.map_or("none".into(), |loss| format!("{loss:.4}"));
    let out = run.out_dir();
    let rejected = match summary.rejected_rows {
        0 => "0 rejected rows".to_owned(),
        count => format!(
            "{count} rejected rows ({}): {}",
            count_by_reason(&summary.rejected_by_reason),
            out.join("rejected.jsonl").display()
        ),
    };
    println!(
        "{}: {} steps, {} rows in {:.1} s ({:.1} rows/s), last loss {loss}, {rejected}",
        summary.status, summary.steps, summary.samples, summary.wall_secs, summary.samples_per_sec,
    );
    println!("weights: {}", out.join(format!("{}.pth", run.weights_name())).display());
    if summary.status == "interrupted" {
        println!("continue with the same command and --resume auto");
    }
}

/// Fills in what other settings and this machine lead to.
///
/// # Errors
/// Settings that contradict each other; a launch environment that cannot be read.
pub fn derive(layers: &mut Layers) -> Result<()> {
    let processes = LaunchEnv::read()?.map_or(1, |env| env.local_world_size);
    layers.settle()?;
    let cores = share_of_cores(processes).max(1);
    layers.derive("data.num_workers", cores, "cores of this machine for each process");
    Ok(())
}

/// The configuration of a run: what was given, else the defaults, and for a model that an earlier run
/// left the encoder and tokenizer that it was trained with.
///
/// # Errors
/// Settings that are missing, wrong or contradict each other; where this process is alone, paths that
/// are not there.
pub fn configuration(mut layers: Layers) -> Result<TrainConfig> {
    derive(&mut layers)?;
    let is_alone = is_alone(LaunchEnv::read()?.as_ref());
    if is_alone {
        require_rows_and_model(&layers)?;
    }
    let lm = language_model(&layers)?;
    for (part, mark, folder) in
        [("vision", "config.json", "vision"), ("tokenizer", "tokenizer.json", "")]
    {
        // What `vlm convert --export-hf` writes holds all parts. Weights that a run left are used with
        // the encoder and tokenizer that it trained with.
        let within = lm.as_deref().map(|lm| lm.join(folder));
        let within = within.filter(|folder| folder.join(mark).is_file());
        let found = within.or_else(|| part_of_run(lm.as_deref()?, part));
        if let Some(found) = found {
            layers.derive(&format!("model.{part}"), text_of(&found), "that of --lm");
        }
    }
    for (path, what) in [
        ("data.data_path", "the rows to train on"),
        (
            "model.vision",
            "a vision encoder's folder in Hugging Face form; `vlm init` makes a random one",
        ),
        ("model.tokenizer", "a folder with tokenizer.json and tokenizer_config.json"),
    ] {
        if layers.get(path).is_none() {
            let setting = settings().iter().find(|setting| setting.path == path);
            let name = setting.map_or(path, |setting| &setting.name);
            return Err(CliError::Usage(format!("--{name} is missing: {what}")).into());
        }
    }
    // Settings that contradict each other are told before paths that may not matter.
    let mut config = layers.resolve()?;
    config.model.lm = lm;
    if is_alone {
        require_other_paths(&layers)?;
    }
    Ok(config)
}

fn text_of(path: &Path) -> Value {
    path.display().to_string().into()
}

/// Whether this process looks at paths before it meets others. A rank does so afterwards, so that all
/// ranks are told what one of them lacks.
fn is_alone(launch: Option<&LaunchEnv>) -> bool {
    launch.is_none_or(|env| env.world_size == 1)
}

/// Checks the rows and the language model, without which nothing else can be known.
fn require_rows_and_model(layers: &Layers) -> Result<(), CliError> {
    let paths = layers.get("data.data_path").cloned().unwrap_or_default();
    let paths: DataPaths = serde_json::from_value(paths).unwrap_or_default();
    let weights = paths.weights();
    // Weights for some of the paths are told where they are mixed.
    if weights.iter().all(Option::is_some) || weights.iter().all(Option::is_none) {
        for path in paths.paths() {
            require_setting("data.data_path", &path)?;
        }
    }
    match layers.path("model.lm").filter(|path| path.as_os_str() != "none") {
        Some(lm) => require_setting("model.lm", &lm),
        None => Ok(()),
    }
}

/// Checks the other paths, in the order of the help.
fn require_other_paths(layers: &Layers) -> Result<(), CliError> {
    for setting in settings().iter().filter(|setting| setting.traits.path.is_some()) {
        if ["data.data_path", "model.lm"].contains(&setting.path.as_str()) {
            continue;
        }
        if let Some(path) = layers.path(&setting.path) {
            require_setting(&setting.path, &path)?;
        }
    }
    match layers.path("run.resume").filter(|path| path.as_os_str() != "auto") {
        Some(path) => require("resume", &path, Holds::Model, "auto, or a checkpoint's folder"),
        None => Ok(()),
    }
}

/// Checks that `found`, the value of a setting, is there.
fn require_setting(path: &str, found: &Path) -> Result<(), CliError> {
    let setting = settings().iter().find(|setting| setting.path == path);
    match setting.and_then(|setting| Some((setting, setting.traits.path?))) {
        Some((setting, traits)) => {
            let holds = if traits.is_data { Holds::Data } else { Holds::Model };
            require(&setting.name, found, holds, traits.expected)
        }
        None => Ok(()),
    }
}

/// Cores of one of several processes on this machine. Our launcher binds each to its own, torchrun
/// lets all of them run anywhere.
fn share_of_cores(processes: usize) -> usize {
    let allowed = available_parallelism().map_or(1, usize::from);
    let of_machine = std::fs::read_dir("/sys/devices/system/cpu").map_or(allowed, |entries| {
        let is_core =
            |name: &str| name.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok());
        entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_core)).count()
    });
    allowed.min(of_machine / processes)
}

/// The weights of the language model; `None` for random ones. Where nobody names them, they are the
/// reference's `{out-dir}/lm_{dim}[_moe].pth`, or for the second stage what the first one left in
/// `{out-dir}`, which must then be there.
fn language_model(layers: &Layers) -> Result<Option<PathBuf>, CliError> {
    if let Some(path) = layers.path("model.lm") {
        return Ok((path.as_os_str() != "none").then(|| weights_of_run(&path).unwrap_or(path)));
    }
    let out_dir = layers.path("run.out_dir").unwrap_or_default();
    let dim = layers.get("model.shape.dim").and_then(Value::as_i64);
    let use_moe = layers.get("model.shape.use_moe").and_then(Value::as_bool);
    let path = match layers.stage() {
        Stage::Pretrain => {
            let moe = if use_moe == Some(true) { "_moe" } else { "" };
            out_dir.join(format!("lm_{}{moe}.pth", dim.unwrap_or(512)))
        }
        Stage::Sft => {
            let (of_run, is_moe) = shape_of_run(&out_dir).unwrap_or((512, false));
            let (dim, use_moe) = (dim.unwrap_or(of_run), use_moe.unwrap_or(is_moe));
            out_dir.join(format!("{}.pth", Stage::Pretrain.weights_name(dim, use_moe)))
        }
    };
    if path.exists() {
        return Ok(Some(path));
    }
    Err(CliError::Usage(format!(
        "no --lm, and {} is not there: give {}, or --lm none for random ones",
        path.display(),
        match layers.stage() {
            Stage::Pretrain => "the language model's weights",
            Stage::Sft => "the weights that `vlm pretrain` left",
        }
    )))
}
