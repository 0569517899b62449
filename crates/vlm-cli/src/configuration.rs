//! The configuration of a training run: the given settings, and what follows from them, from files
//! and from this machine.

use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use anyhow::Result;
use serde_json::Value;
use vlm_config::{Layers, Origin, Stage, find, settings};
use vlm_data::DataPaths;
use vlm_infer::{image_size_of_run, part_of_model, part_of_run, shape_of_run, weights_of_run};
use vlm_train::TrainConfig;
use vlm_train::parallel::LaunchEnv;

use crate::error::CliError;
use crate::inputs::{Holds, require};

/// Adds values that are derived from other settings and from this machine.
///
/// # Errors
/// Settings that contradict each other; environment variables of a launcher that are not valid.
pub fn derive(layers: &mut Layers) -> Result<()> {
    let processes = LaunchEnv::read()?.map_or(1, |env| env.local_world_size);
    layers.settle()?;
    let cores = cores_per_process(processes).max(1);
    layers.derive("data.num_workers", cores, "cores of this machine for each process");
    Ok(())
}

/// The configuration of a run: the given settings and the defaults. For the model of an earlier run
/// the default encoder and tokenizer are those that it was trained with.
///
/// # Errors
/// Settings that are missing, wrong or contradict each other; for a single process also paths that
/// do not exist.
pub fn configuration(mut layers: Layers) -> Result<TrainConfig> {
    derive(&mut layers)?;
    let is_alone = is_alone(LaunchEnv::read()?.as_ref());
    if is_alone && let Some(folder) = layers.path(INIT_FROM) {
        require_setting(INIT_FROM, &folder)?;
    }
    start_from_whole_model(&mut layers)?;
    if is_alone {
        require_rows_and_model(&layers)?;
    }
    let lm = language_model(&layers)?;
    let from = match layers.get(INIT_FROM) {
        Some(_) => "that of --init-from",
        None => "that of --lm",
    };
    if let Some(image_size) = lm.as_deref().and_then(image_size_of_run)
        && !layers.is_given("model.image_size")
    {
        tracing::info!("--image-size is {image_size}, {from}");
        layers.derive("model.image_size", image_size, from);
    }
    for (part, mark, folder) in
        [("vision", "config.json", "vision"), ("tokenizer", "tokenizer.json", "")]
    {
        // A folder of `vlm convert --export-hf` holds all parts. The weights of a run are used with
        // the encoder and tokenizer of that run.
        let exported = lm.as_deref().map(|lm| lm.join(folder));
        let exported = exported.filter(|folder| folder.join(mark).is_file());
        let found = exported.or_else(|| part_of_run(lm.as_deref()?, part));
        if let Some(found) = found {
            layers.derive(&format!("model.{part}"), text_of(&found), from);
        }
        // The message says where this model's part is.
        if let (Some(folder), None) = (layers.path(INIT_FROM), layers.get(&format!("model.{part}")))
        {
            part_of_model(&folder, part)?;
        }
    }
    for (path, what) in [
        ("data.data_path", "the rows to train on"),
        (
            "model.vision",
            "the folder of a vision encoder in Hugging Face format; `vlm init` makes a random one",
        ),
        ("model.tokenizer", "a folder with tokenizer.json and tokenizer_config.json"),
    ] {
        if layers.get(path).is_none() {
            let setting = settings().iter().find(|setting| setting.path == path);
            let name = setting.map_or(path, |setting| &setting.name);
            return Err(CliError::Usage(format!("--{name} is missing: {what}")).into());
        }
    }
    // Contradicting settings are reported before missing paths, which may not be needed.
    let mut config = layers.resolve()?;
    config.model.lm = lm;
    if is_alone {
        require_other_paths(&layers)?;
    }
    Ok(config)
}

/// Path of the setting `init-from`.
pub const INIT_FROM: &str = "model.init_from";

/// Makes the weights of the whole model that `init-from` names those of the language model. Its
/// encoder and tokenizer are then found as those of `lm`.
///
/// # Errors
/// Settings that name other weights or another projector than the whole model has, or its folder as
/// that of the run.
fn start_from_whole_model(layers: &mut Layers) -> Result<(), CliError> {
    let Some(folder) = layers.path(INIT_FROM) else { return Ok(()) };
    let of_run = weights_of_run(&folder);
    let out_dir = layers.path("run.out_dir").unwrap_or_default();
    if of_run.is_none()
        && folder.canonicalize().is_ok_and(|f| out_dir.canonicalize().ok() == Some(f))
    {
        return Err(CliError::Usage(format!(
            "--out-dir {} is the folder of --init-from, whose config.json the run would replace; \
             choose another one",
            out_dir.display()
        )));
    }
    let weights = of_run.unwrap_or_else(|| folder.clone());
    // A file with the settings of a run, such as its config.json, has both.
    let is_same = |lm: &Path| lm == weights || lm == folder;
    if let Some(lm) = layers.path("model.lm").filter(|_| layers.is_given("model.lm"))
        && !is_same(&lm)
    {
        return Err(CliError::Usage(format!(
            "--init-from {} and --lm {} both name the weights to start from; leave one of them \
             out (--lm starts from a language model, --vision names its encoder)",
            folder.display(),
            lm.display()
        )));
    }
    if layers.is_given("model.projector") && !layers.is_given("model.lm") {
        return Err(CliError::Usage(format!(
            "--init-from {} starts from the projector of that model, which --projector would \
             replace by a random one; leave --projector out, or give the parts with --lm, --vision \
             and --tokenizer",
            folder.display()
        )));
    }
    let entry = find("lm").map(|(setting, _)| (setting, text_of(&weights)));
    let origin = layers.origin(INIT_FROM).cloned().unwrap_or(Origin::Flag);
    layers.add(&origin, entry.into_iter().collect());
    Ok(())
}

fn text_of(path: &Path) -> Value {
    path.display().to_string().into()
}

/// Whether this is a single process, which checks its paths before the run is prepared. With
/// several ranks, paths are checked after the ranks are connected, so that all ranks report a
/// missing path.
fn is_alone(launch: Option<&LaunchEnv>) -> bool {
    launch.is_none_or(|env| env.world_size == 1)
}

/// Checks that the rows and the language model exist, because other settings depend on them.
fn require_rows_and_model(layers: &Layers) -> Result<(), CliError> {
    let paths = layers.get("data.data_path").cloned().unwrap_or_default();
    let paths: DataPaths = serde_json::from_value(paths).unwrap_or_default();
    let weights = paths.weights();
    // If only some of the paths have a weight, a later check reports that.
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

/// Checks that all other paths exist, in the order of the help text.
fn require_other_paths(layers: &Layers) -> Result<(), CliError> {
    for setting in settings().iter().filter(|setting| setting.traits.path.is_some()) {
        if ["data.data_path", "model.lm", INIT_FROM].contains(&setting.path.as_str()) {
            continue;
        }
        if let Some(path) = layers.path(&setting.path) {
            require_setting(&setting.path, &path)?;
        }
    }
    match layers.path("run.resume").filter(|path| path.as_os_str() != "auto") {
        Some(path) => require("resume", &path, Holds::Model, "auto, or the folder of a checkpoint"),
        None => Ok(()),
    }
}

/// Checks that `found`, the value of the setting with the path `path`, exists.
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

/// Number of cores for each of `processes` processes on this machine. `cargo xtask pretrain` binds
/// each process to its own cores; torchrun does not.
fn cores_per_process(processes: usize) -> usize {
    let allowed = available_parallelism().map_or(1, usize::from);
    let of_machine = std::fs::read_dir("/sys/devices/system/cpu").map_or(allowed, |entries| {
        let is_core =
            |name: &str| name.strip_prefix("cpu").is_some_and(|n| n.parse::<u32>().is_ok());
        entries.flatten().filter(|entry| entry.file_name().to_str().is_some_and(is_core)).count()
    });
    allowed.min(of_machine / processes)
}

/// The weights of the language model; `None` for random weights. The default is
/// `{out-dir}/lm_{dim}[_moe].pth`, as in the reference, or for the second stage the weights of the
/// first stage in `{out-dir}`.
///
/// # Errors
/// No weights are given, and the default does not exist.
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
        "--lm is not given, and its default {} does not exist: give {}, or --lm none for random \
         weights",
        path.display(),
        match layers.stage() {
            Stage::Pretrain => "the weights of the language model",
            Stage::Sft => "the weights that `vlm pretrain` wrote",
        }
    )))
}
