//! `vlm pretrain` and `vlm sft`: from flags and configuration file to one training run.

use std::path::{Path, PathBuf};
use std::thread::available_parallelism;

use anyhow::{Context, Result};
use vlm_data::{
    DEFAULT_BUCKET_WINDOW, DEFAULT_MAX_REJECTED_FRACTION, DataPaths, Padding, count_by_reason,
};
use vlm_infer::{part_of_run, shape_of_run, weights_of_run};
use vlm_train::config::{
    DataConfig, EvalConfig, ModelConfig, OptimConfig, Resume, RunConfig, ShapeRequest, Stage,
};
use vlm_train::parallel::LaunchEnv;
use vlm_train::{Run, TrainConfig, TrainError};

use crate::args::PretrainArgs;
use crate::inputs::{Holds, require};
use crate::{demo, interrupt};

/// Runs the command.
pub fn run(flags: PretrainArgs, stage: Stage) -> Result<()> {
    let args = with_config_file(flags)?;
    let stop = interrupt::flag()?;
    if args.data_path.is_none() && stage == Stage::Pretrain {
        return demo::pretrain(args, &stop);
    }
    let mut run = Run::prepare(configuration(args, stage)?)?;
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

/// The flags over the configuration file they name.
fn with_config_file(flags: PretrainArgs) -> Result<PretrainArgs> {
    let Some(path) = &flags.config else { return Ok(flags) };
    let told = |e: &dyn std::fmt::Display| format!("--config {}: {e}", path.display());
    let text = std::fs::read_to_string(path).map_err(|e| TrainError::unusable(told(&e), &e))?;
    let file: PretrainArgs =
        toml::from_str(&text).map_err(|e| TrainError::Usage(told(&in_short_lines(&e))))?;
    let mut merged = serde_json::to_value(file)?;
    if let (Some(merged), serde_json::Value::Object(flags)) =
        (merged.as_object_mut(), serde_json::to_value(&flags)?)
    {
        merged.extend(flags.into_iter().filter(|(_, value)| !value.is_null()));
    }
    serde_json::from_value(merged).context("flags and configuration file")
}

/// Longest line that is shown of a configuration file that cannot be read.
const MAX_LINE: usize = 160;

/// The error, which repeats the line of the file, with long lines cut.
fn in_short_lines(error: &toml::de::Error) -> String {
    let cut = |line: &str| match line.chars().count() {
        length if length <= MAX_LINE => line.to_owned(),
        length => {
            let start: String = line.chars().take(MAX_LINE).collect();
            format!("{start}… ({length} characters)")
        }
    };
    error.to_string().lines().map(cut).collect::<Vec<_>>().join("\n")
}

/// The run's configuration: what was given, else the defaults.
pub fn configuration(args: PretrainArgs, stage: Stage) -> Result<TrainConfig> {
    let launch = LaunchEnv::read()?;
    let is_alone = is_alone(launch.as_ref());
    let processes = launch.map_or(1, |env| env.local_world_size);
    let required = |value: Option<PathBuf>, flag: &str, what: &str| {
        value.ok_or_else(|| TrainError::Usage(format!("--{flag} is missing: {what}")))
    };
    if is_alone {
        require_rows_and_model(&args)?;
    }
    let out_dir = args.out_dir.unwrap_or_else(|| "out".into());
    let shape = ShapeRequest {
        dim: args.dim,
        n_layers: args.n_layers,
        n_heads: args.n_heads,
        n_kv_heads: args.n_kv_heads,
        dropout: args.dropout,
        use_moe: args.use_moe,
    };
    let defaults = stage.optim();
    let eval = EvalConfig::default();
    let lm = language_model(args.lm, &out_dir, &shape, stage)?;
    // What `vlm convert --export-hf` writes holds all parts.
    let within = |name: &str, mark: &str| {
        let folder = lm.as_deref()?.join(name);
        folder.join(mark).is_file().then_some(folder)
    };
    // Weights that a run left are used with the encoder and tokenizer that it trained with.
    let earlier = |part: &str| part_of_run(lm.as_deref()?, part);
    let vision = args.vision.or_else(|| within("vision", "config.json"));
    let vision = vision.or_else(|| earlier("vision"));
    let tokenizer = args.tokenizer.or_else(|| within("", "tokenizer.json"));
    let tokenizer = tokenizer.or_else(|| earlier("tokenizer"));
    let shuffle = args.shuffle.unwrap_or(!args.no_shuffle.unwrap_or(false));
    let default_window = if shuffle { DEFAULT_BUCKET_WINDOW } else { 0 };
    let config = TrainConfig {
        stage,
        data: DataConfig {
            data_path: args.data_path.map(DataPaths::from).ok_or_else(|| {
                TrainError::Usage("--data-path is missing: the rows to train on".into())
            })?,
            images_path: args.images_path,
            max_seq_len: args.max_seq_len.unwrap_or(stage.max_seq_len()),
            padding: padding(args.padding, args.pack)?,
            shuffle,
            bucket_window: args.bucket_window.unwrap_or(default_window),
            drop_last: args.drop_last.unwrap_or(args.no_drop_last == Some(false)),
            num_workers: args.num_workers.unwrap_or_else(|| share_of_cores(processes)).max(1),
            prefetch_batches: args.prefetch_batches.unwrap_or(4),
            max_rejected_fraction: args
                .max_rejected_fraction
                .unwrap_or(DEFAULT_MAX_REJECTED_FRACTION),
        },
        model: ModelConfig {
            lm,
            vision: required(
                vision,
                "vision",
                "a vision encoder's folder in Hugging Face form; `vlm init` makes a random one",
            )?,
            features: args.features,
            tokenizer: required(
                tokenizer,
                "tokenizer",
                "a folder with tokenizer.json and tokenizer_config.json",
            )?,
            image_token: args.image_token,
            projector: args.projector,
            shape,
            activation_checkpointing: args.activation_checkpointing.unwrap_or(false),
            freeze: vlm_model::FreezePolicy {
                train_vision: args.train_vision.unwrap_or(false),
                train_lm: args.train_lm.unwrap_or(stage == Stage::Sft),
                unfreeze_first_layers: args.unfreeze_first_layers.unwrap_or(0),
                unfreeze_last_layers: args.unfreeze_last_layers.unwrap_or(1),
            },
        },
        optim: OptimConfig {
            epochs: args.epochs.unwrap_or(defaults.epochs),
            batch_size: args.batch_size.unwrap_or(defaults.batch_size),
            learning_rate: args.learning_rate.unwrap_or(defaults.learning_rate),
            accumulation_steps: args.accumulation_steps.unwrap_or(defaults.accumulation_steps),
            grad_clip: args.grad_clip.unwrap_or(defaults.grad_clip),
            warmup_iters: args.warmup_iters.unwrap_or(defaults.warmup_iters),
            loss_average: args.loss_average.unwrap_or(defaults.loss_average),
            max_skipped_in_a_row: args.max_skipped_updates.unwrap_or(defaults.max_skipped_in_a_row),
            ..defaults
        },
        run: RunConfig {
            out_dir,
            device: args.device.unwrap_or_else(|| "auto".into()),
            dtype: args.dtype,
            seed: args.seed.unwrap_or(1337),
            log_interval: args.log_interval.unwrap_or(100),
            save_interval: args.save_interval.unwrap_or(100),
            keep_checkpoints: args.keep_checkpoints.unwrap_or(2),
            max_steps: args.max_steps,
            num_threads: args.num_threads,
            progress: std::io::IsTerminal::is_terminal(&std::io::stderr()),
            tensorboard: args.tensorboard.unwrap_or(!args.no_tensorboard.unwrap_or(false)),
            resume: args.resume.map(|path| match path.to_str() {
                Some("auto") => Resume::Auto,
                _ => Resume::Path(path),
            }),
            timeout_secs: args.timeout_secs.unwrap_or(600),
            ddp: args.ddp.unwrap_or(false),
        },
        eval: EvalConfig {
            data_path: args.eval_data,
            images_path: args.eval_images_path,
            interval: args.eval_interval,
            max_captions: args.eval_captions.unwrap_or(eval.max_captions),
            ..eval
        },
    };
    if is_alone {
        // Settings that contradict each other are told before paths that may not matter.
        config.validate()?;
        require_other_paths(&config)?;
    }
    Ok(config)
}

/// Whether this process looks at paths before it meets others. A rank does so afterwards, so that all
/// ranks are told what one of them lacks.
fn is_alone(launch: Option<&LaunchEnv>) -> bool {
    launch.is_none_or(|env| env.world_size == 1)
}

/// Checks the rows and the language model, without which nothing else can be known.
fn require_rows_and_model(args: &PretrainArgs) -> Result<(), TrainError> {
    let rows = "rows to train on (docs/data.md lists their forms)";
    let paths = args.data_path.clone().map(DataPaths::from).unwrap_or_default();
    let weights = paths.weights();
    // Weights for some of the paths are told where they are mixed.
    if weights.iter().all(Option::is_some) || weights.iter().all(Option::is_none) {
        for path in paths.paths() {
            require("data-path", &path, Holds::Data, rows)?;
        }
    }
    match args.lm.as_ref().filter(|path| path.as_os_str() != "none") {
        Some(lm) => {
            require("lm", lm, Holds::Model, "weights, a folder with them, or none for random ones")
        }
        None => Ok(()),
    }
}

/// Checks the other paths, in the order of the help.
fn require_other_paths(config: &TrainConfig) -> Result<(), TrainError> {
    let encoder = "a vision encoder's folder in Hugging Face form; `vlm init` makes a random one";
    let resume = match &config.run.resume {
        Some(Resume::Path(path)) => Some(path),
        _ => None,
    };
    for (flag, path, holds, expected) in [
        ("images-path", config.data.images_path.as_ref(), Holds::Data, "the root of the images"),
        ("vision", Some(&config.model.vision), Holds::Model, encoder),
        (
            "tokenizer",
            Some(&config.model.tokenizer),
            Holds::Model,
            "a folder with tokenizer.json and tokenizer_config.json",
        ),
        (
            "features",
            config.model.features.as_ref(),
            Holds::Data,
            "a folder of `vlm cache-features`",
        ),
        ("eval-data", config.eval.data_path.as_ref(), Holds::Data, "rows to evaluate on"),
        ("eval-images-path", config.eval.images_path.as_ref(), Holds::Data, "a folder of images"),
        ("resume", resume, Holds::Model, "auto, or a checkpoint's folder"),
    ] {
        if let Some(path) = path {
            require(flag, path, holds, expected)?;
        }
    }
    Ok(())
}

/// What `--padding` and `--pack` say together.
fn padding(padding: Option<Padding>, pack: Option<bool>) -> Result<Padding, TrainError> {
    match (padding, pack) {
        (Some(filled @ (Padding::Longest | Padding::Max)), Some(true)) => {
            Err(TrainError::Usage(format!(
                "--pack puts rows end to end, so nothing of them is filled up, and --padding {} \
                 wants that: give one of the two",
                if filled == Padding::Max { "max" } else { "longest" }
            )))
        }
        (Some(Padding::None), Some(false)) => Err(TrainError::Usage(
            "--padding none is what --pack does, and --pack false wants the opposite".into(),
        )),
        (_, Some(true)) => Ok(Padding::None),
        (padding, _) => Ok(padding.unwrap_or_default()),
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

/// `none` is random weights; nothing is the reference's `{out-dir}/lm_{dim}[_moe].pth`, or for the
/// second stage what the first one left in `{out-dir}`; it must then be there.
fn language_model(
    asked: Option<PathBuf>,
    out_dir: &Path,
    shape: &ShapeRequest,
    stage: Stage,
) -> Result<Option<PathBuf>, TrainError> {
    if let Some(path) = asked {
        return Ok((path.as_os_str() != "none").then(|| weights_of_run(&path).unwrap_or(path)));
    }
    let path = match stage {
        Stage::Pretrain => {
            let moe = if shape.use_moe == Some(true) { "_moe" } else { "" };
            out_dir.join(format!("lm_{}{moe}.pth", shape.dim.unwrap_or(512)))
        }
        Stage::Sft => {
            let (dim, use_moe) = shape_of_run(out_dir).unwrap_or((512, false));
            let (dim, use_moe) = (shape.dim.unwrap_or(dim), shape.use_moe.unwrap_or(use_moe));
            out_dir.join(format!("{}.pth", Stage::Pretrain.weights_name(dim, use_moe)))
        }
    };
    if path.exists() {
        Ok(Some(path))
    } else {
        Err(TrainError::Usage(format!(
            "no --lm, and {} is not there: give {}, or --lm none for random ones",
            path.display(),
            match stage {
                Stage::Pretrain => "the language model's weights",
                Stage::Sft => "the weights that `vlm pretrain` left",
            }
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_win_over_the_file_and_the_file_over_the_defaults() {
        let folder = std::env::temp_dir().join(format!("vlm-config-{}", std::process::id()));
        std::fs::write(&folder, "batch-size = 8\nepochs = 2\n").unwrap();
        let flags =
            PretrainArgs { config: Some(folder.clone()), epochs: Some(3), ..Default::default() };
        let merged = with_config_file(flags).unwrap();
        std::fs::remove_file(&folder).unwrap();
        assert_eq!((merged.batch_size, merged.epochs, merged.dim), (Some(8), Some(3), None));
    }

    #[test]
    fn a_long_value_of_the_file_is_not_repeated_whole() {
        let text = format!("padding = \"{}\"", "x y".repeat(2000));
        let error = toml::from_str::<PretrainArgs>(&text).unwrap_err();
        let told = in_short_lines(&error);
        assert!(told.contains("characters)") && told.len() < 1500, "{told}");
    }

    #[test]
    fn unknown_keys_of_the_file_are_errors() {
        let error = toml::from_str::<PretrainArgs>("batch_sizes = 8").unwrap_err();
        assert!(error.to_string().contains("batch_sizes"), "{error}");
    }
}
