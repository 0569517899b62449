//! `cargo xtask prepare-data`: writes a data set as prepared shards, or makes the demo's data set.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::{ArgGroup, Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::Value;
use vlm_config::{ConfigError, Layers, MAX_THREADS, Origin, Stage, find};
use vlm_data::{
    ChatTokenizer, DEFAULT_MAX_REJECTED_FRACTION, DataError, DataPaths, ImageLimits,
    ImagePlaceholder, ImageProcessor, ImageStore, PrepareSettings, RowOptions, prepare,
};
use vlm_display::count;
use vlm_shapes::{ForeignModel, ProjectorConfig, ProjectorKind, ShapeError, VisionConfig};

use crate::workspace::{Workspace, usage_error};
use crate::{demo, sys};

/// Default image tokens; the first one that is a single token of the tokenizer is used.
const IMAGE_TOKENS: [&str; 5] = ["<|image_pad|>", "<|image|>", "<image>", "<empty_output>", "@"];

#[derive(Args)]
#[command(group = ArgGroup::new("rows").args(["input", "config"]).multiple(true))]
pub struct PrepareDataArgs {
    /// Rows to prepare, in any format of docs/data.md except prepared rows; without --input and
    /// --config the demo's dataset is made
    #[arg(long, value_name = "PATH", num_args = 1..)]
    input: Vec<String>,
    /// Configuration file of the training run that the data is for. Its data-path, images-path,
    /// tokenizer, image-token, vision, projector, max-seq-len and batch-size are used unless a flag
    /// is given
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Root folder of the image names in the rows [default: the folder of the rows]
    #[arg(long, alias = "images_path", value_name = "DIR", requires = "rows")]
    images_path: Option<PathBuf>,
    /// Folder for the shards
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Folder with tokenizer.json and tokenizer_config.json [default: the demo's]
    #[arg(long, value_name = "DIR", requires = "rows")]
    tokenizer: Option<PathBuf>,
    /// Token that stands for an image in the prompt [default: the first of <|image_pad|>,
    /// <|image|>, <image>, <empty_output>, @ that is a single token]
    #[arg(long, alias = "image_token", value_name = "TOKEN", requires = "rows")]
    image_token: Option<String>,
    /// Folder of the vision encoder in Hugging Face form; it determines the number of tokens per
    /// image [default: the demo's, only with the demo's tokenizer]
    #[arg(long, value_name = "DIR", requires = "rows")]
    vision: Option<PathBuf>,
    /// Number of tokens per image, instead of that from --vision and the projector of --config
    #[arg(long, alias = "tokens_per_image", value_name = "N", requires = "rows")]
    tokens_per_image: Option<usize>,
    /// Length in tokens at which a row is cut [default: 640]
    #[arg(long, alias = "max_seq_len", value_name = "N")]
    max_seq_len: Option<usize>,
    /// Store images unchanged, or resized to the size of --vision as PNG
    #[arg(long, alias = "image_store", value_enum, default_value = "original")]
    image_store: StoreChoice,
    /// Keys or columns that hold the images of a row [default: the known names of docs/data.md]
    #[arg(long, alias = "image_key", value_name = "NAME", num_args = 1..)]
    image_key: Vec<String>,
    /// Text of the user after the image in rows that have only a caption [default: only the image]
    #[arg(long, alias = "caption_question", value_name = "TEXT")]
    caption_question: Option<String>,
    /// Smallest rating of a turn in rows with ratings, such as relevance=3 [default: every turn]
    #[arg(long, alias = "min_rating", value_name = "NAME=NUMBER", num_args = 1..)]
    min_rating: Vec<String>,
    /// Do not follow symbolic links that lead out of the folder of the images
    #[arg(long, alias = "no_follow_links")]
    no_follow_links: bool,
    /// Number of input rows per shard
    #[arg(long, alias = "rows_per_shard", value_name = "N", default_value_t = 8192)]
    rows_per_shard: usize,
    /// Fraction of the rows that may be rejected; with more, the command fails [default: 0.05]
    #[arg(long, alias = "max_rejected_fraction", value_name = "SHARE")]
    max_rejected_fraction: Option<f64>,
    /// Number of threads [default: the number of cores]
    #[arg(long, alias = "num_workers", value_name = "N")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_THREADS)))]
    num_workers: Option<u32>,
    /// Batch size for which the fraction of padding is reported at the end [default: 16]
    #[arg(long, alias = "batch_size", value_name = "N")]
    batch_size: Option<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum StoreChoice {
    Original,
    Resized,
}

/// Runs the command. After an interruption the same command continues from the last finished shard.
pub fn run(workspace: &Workspace, args: PrepareDataArgs) -> Result<ExitCode> {
    if args.input.is_empty() && args.config.is_none() {
        demo::write(&args.output)?;
        return Ok(ExitCode::SUCCESS);
    }
    let row_settings = args.row_settings();
    let run = args.config.as_deref().map(read_config).transpose()?;
    let of_run = |path: &str| run.as_ref()?.path(path);
    let value_of_run = |path: &str| run.as_ref()?.get(path).cloned();
    let of_run_data = value_of_run("data.data_path").map(serde_json::from_value).transpose()?;
    let given = Some(args.input).filter(|input| !input.is_empty()).map(DataPaths::from);
    let paths = given.or(of_run_data).ok_or_else(|| {
        usage_error("the file of --config has no data-path; give the rows with --input")
    })?;
    let demo_start = workspace.data_dir().join("demo-start");
    // The folder of an exported model, or of a whole model of another program, has all parts.
    let lm = of_run("model.init_from").or_else(|| of_run("model.lm"));
    let foreign = lm.as_deref().and_then(ForeignModel::beside);
    let within_lm = |name: &str, file: &str| {
        let folder = lm.as_ref()?.join(name);
        folder.join(file).is_file().then_some(folder)
    };
    let tokenizer_dir = args.tokenizer.or_else(|| of_run("model.tokenizer"));
    let tokenizer_dir = tokenizer_dir.or_else(|| within_lm("", "tokenizer.json"));
    let is_demo = tokenizer_dir.is_none();
    let tokenizer_dir = tokenizer_dir.unwrap_or_else(|| demo_start.clone());
    let image_token = value_of_run("model.image_token");
    let image_token = args.image_token.as_deref().or(image_token.as_ref().and_then(Value::as_str));
    let tokenizer = tokenizer(&tokenizer_dir, image_token).map_err(usage_or_disk_error)?;
    let vision = args.vision.or_else(|| of_run("model.vision"));
    let is_whole = vision.is_none() && foreign.is_some();
    let vision = vision.or_else(|| within_lm("vision", "config.json"));
    let vision = vision.or_else(|| lm.clone().filter(|_| is_whole));
    let vision = vision.or_else(|| is_demo.then(|| demo_start.join("vision")));
    let image_size = value_of_run("model.image_size").and_then(|value| value.as_i64());
    let tokens_per_image = match (args.tokens_per_image, &vision) {
        (Some(count), _) => count,
        (None, Some(_)) if is_whole => tokens_of_whole(foreign.as_ref(), image_size)?,
        (None, Some(vision)) => tokens_per_image(vision, image_size, projector_of(run.as_ref()))?,
        (None, None) => {
            return Err(usage_error(
                "the number of tokens per image is unknown: give --vision, the encoder of the run, \
                 or --tokens-per-image",
            ));
        }
    };
    let count_of_run =
        |path: &str| value_of_run(path).and_then(|value| value.as_u64()?.try_into().ok());
    let max_seq_len = args.max_seq_len.or_else(|| count_of_run("data.max_seq_len")).unwrap_or(640);
    let image_store = match args.image_store {
        StoreChoice::Original => ImageStore::Original,
        StoreChoice::Resized => {
            let vision = vision.ok_or_else(|| {
                usage_error("--image-store resized needs --vision, which determines the size")
            })?;
            let file = vision.join("preprocessor_config.json");
            let processor = ImageProcessor::from_file(&file).and_then(|processor| match image_size
                .and_then(|size| u32::try_from(size).ok())
            {
                Some(size) => processor.scaled_to(size),
                None => Ok(processor),
            });
            ImageStore::Resized(Arc::new(processor.map_err(usage_or_disk_error)?))
        }
    };
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let images_path = args.images_path.or_else(|| of_run("data.images_path"));
    let row_options = row_options(run.as_ref(), row_settings)?;
    let source =
        paths.open_with(images_path.as_deref(), &row_options).map_err(usage_or_disk_error)?;
    eprintln!(
        "{} to {}, cut at {}; an image takes {} {:?}",
        count(source.len(), "row"),
        args.output.display(),
        count(max_seq_len, "token"),
        count(tokens_per_image, "token"),
        tokenizer.placeholder().token(),
    );
    for line in source.describe() {
        eprintln!("{line}");
    }
    let settings = PrepareSettings {
        input_files: paths.file_states().map_err(usage_or_disk_error)?,
        row_options,
        tokenizer: Arc::new(tokenizer),
        tokens_per_image,
        max_seq_len,
        image_store,
        limits: ImageLimits::default(),
        rows_per_shard: args.rows_per_shard,
        max_rejected_fraction: args.max_rejected_fraction.unwrap_or(DEFAULT_MAX_REJECTED_FRACTION),
        num_workers: args.num_workers.map_or(cores, |threads| threads as usize),
        output: args.output,
    };
    let bar = ProgressBar::new(source.len() as u64).with_style(ProgressStyle::with_template(
        "{wide_bar} {pos}/{len} rows, {per_sec}, {eta} left",
    )?);
    let mut started_at = None;
    let prepared = prepare(&source, &settings, &mut |done, _| {
        if started_at.is_none() {
            started_at = Some(done);
            // Rows that an earlier call finished must not count for the speed of this one.
            bar.set_position(done as u64);
            bar.reset_eta();
        }
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    let manifest = prepared.map_err(preparation_error)?;
    let num_done = source.len() - started_at.unwrap_or(0);
    let seconds = bar.elapsed().as_secs_f64();
    let peak = sys::peak_resident_bytes().unwrap_or(0) as f64 / 1e6;
    print!(
        "{}: {} in {seconds:.1} s ({:.0} rows/s), peak memory {peak:.0} MB\n{}",
        settings.output.display(),
        count(num_done, "row"),
        num_done as f64 / seconds.max(1e-3),
        manifest.report(args.batch_size.or_else(|| count_of_run("optim.batch_size")).unwrap_or(16))
    );
    let num_rejected: usize = manifest.rejected.values().sum();
    if num_rejected > 0 {
        println!("rejected rows: {}", settings.output.join("rejected.jsonl").display());
    }
    Ok(ExitCode::SUCCESS)
}

fn tokenizer(dir: &Path, image_token: Option<&str>) -> Result<ChatTokenizer, DataError> {
    match image_token {
        Some(token) => ChatTokenizer::with_placeholder(dir, ImagePlaceholder::new(token)),
        None => {
            ChatTokenizer::with_first_placeholder(dir, &IMAGE_TOKENS.map(ImagePlaceholder::new))
        }
    }
}

impl PrepareDataArgs {
    /// The flags about the reading of rows, as settings of a run.
    fn row_settings(&self) -> Vec<(&'static str, Value)> {
        let mut given = Vec::new();
        if !self.image_key.is_empty() {
            given.push(("image-key", self.image_key.clone().into()));
        }
        if let Some(question) = &self.caption_question {
            given.push(("caption-question", question.as_str().into()));
        }
        if !self.min_rating.is_empty() {
            given.push(("min-rating", self.min_rating.clone().into()));
        }
        if self.no_follow_links {
            given.push(("follow-links", false.into()));
        }
        given
    }
}

/// How rows are read: the settings of the run, overridden by the flags.
fn row_options(run: Option<&Layers>, flags: Vec<(&'static str, Value)>) -> Result<RowOptions> {
    let mut layers = run.cloned().unwrap_or_else(|| Layers::new(Stage::Pretrain));
    let entries = flags.into_iter().filter_map(|(name, value)| Some((find(name)?.0, value)));
    layers.add(&Origin::Flag, entries.collect());
    let wrong = |error: ConfigError| usage_error(error.to_string().replace('`', ""));
    layers.settle().map_err(wrong)?;
    layers.resolve().and_then(|config| config.data.row_options()).map_err(wrong)
}

/// The settings in the configuration file of a run.
fn read_config(path: &Path) -> Result<Layers> {
    Layers::of_file(path).map_err(|error| usage_error(format!("--config {error}")))
}

/// The projector of the run: its setting, else that in the `config.json` of its language model,
/// else a linear one.
fn projector_of(run: Option<&Layers>) -> ProjectorKind {
    let setting = || serde_json::from_value(run?.get("model.projector")?.clone()).ok();
    let of_lm = || {
        let lm = run?.path("model.lm")?;
        let folder = if lm.is_dir() { lm.as_path() } else { lm.parent()? };
        let text = std::fs::read_to_string(folder.join("config.json")).ok()?;
        let config: Value = serde_json::from_str(&text).ok()?;
        serde_json::from_value(config["projector"]["kind"].clone()).ok()
    };
    setting().or_else(of_lm).unwrap_or(ProjectorKind::Linear)
}

/// Number of tokens per image with an encoder for images of `image_size` and a projector.
///
/// # Errors
/// An unreadable configuration of the encoder; a number of patches that does not fit the projector.
fn tokens_per_image(
    vision: &Path,
    image_size: Option<i64>,
    projector: ProjectorKind,
) -> Result<usize> {
    let wrong = |problem: ShapeError| usage_error(format!("{problem}; or give --tokens-per-image"));
    let vision = VisionConfig::from_folder(vision);
    let vision = vision.and_then(|vision| vision.with_image_size(image_size)).map_err(wrong)?;
    let projector = ProjectorConfig::new(projector, &vision).map_err(wrong)?;
    usize::try_from(projector.tokens_per_image).context("number of tokens per image")
}

/// Number of tokens per image of a whole model of another program, for images of `image_size`.
///
/// # Errors
/// Its projector is not supported.
fn tokens_of_whole(model: Option<&ForeignModel>, image_size: Option<i64>) -> Result<usize> {
    let wrong = |problem: ShapeError| usage_error(format!("{problem}; or give --tokens-per-image"));
    let count = |model: &ForeignModel| {
        let trained = model.vision()?;
        let patches_per_token = trained.num_patches() / model.projector()?.tokens_per_image;
        Ok(trained.with_image_size(image_size)?.num_patches() / patches_per_token)
    };
    let tokens = model.map_or(Ok(0), count).map_err(wrong)?;
    usize::try_from(tokens).context("number of tokens per image")
}

/// A usage error, unless a disk failed.
fn usage_or_disk_error(error: DataError) -> anyhow::Error {
    if error.is_disk_failure() { error.into() } else { usage_error(error.to_string()) }
}

/// The error of a preparation that has started. It is a usage error (such as an output folder with
/// other content), unless a disk failed or is full, or too many rows were rejected.
fn preparation_error(error: DataError) -> anyhow::Error {
    match error {
        DataError::Io { .. }
        | DataError::Row { .. }
        | DataError::WorkerPanic { .. }
        | DataError::TooManyRejected(_) => error.into(),
        other => usage_error(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_per_image_are_read_from_the_configuration_of_the_encoder() {
        let folder = tempfile::tempdir().unwrap();
        let count = |text: &str| {
            std::fs::write(folder.path().join("config.json"), text).unwrap();
            tokens_per_image(folder.path(), None, ProjectorKind::Linear).map_err(|e| e.to_string())
        };
        assert_eq!(count(r#"{"image_size": 224, "patch_size": 16}"#), Ok(196));
        assert_eq!(count(r#"{"vision_config": {"image_size": 224, "patch_size": 32}}"#), Ok(49));
        for damaged in ["{", "{\"image_size\": 224, \"patch_size\": 0}"] {
            assert!(count(damaged).unwrap_err().contains("--tokens-per-image"), "{damaged}");
        }
        count(r#"{"image_size": 224, "patch_size": 16}"#).unwrap();
        let larger = tokens_per_image(folder.path(), Some(336), ProjectorKind::Linear);
        assert_eq!(larger.unwrap(), 441);
    }
}
