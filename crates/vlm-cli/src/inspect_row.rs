//! `vlm inspect ROWS --row N`: shows what the model sees of a row. The row is made by the loader of
//! the training.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result};
use clap::Args;
use vlm_data::{
    ChatTokenizer, DataPaths, ImageProcessor, ImageProcessorClass, LoadedImage, Loader,
    LoaderConfig, MANIFEST_FILE, Manifest, write_atomically,
};
use vlm_display::count;
use vlm_infer::{LoadOptions, ModelFiles, ModelInputs, open_tokenizer};

use crate::error::CliError;
use crate::flag_values::at_least_one;
use crate::inputs::{Holds, require};
use crate::row_args::RowArgs;
use crate::row_view::{Markers, RowView};

/// Flags of `vlm inspect` for one row.
#[derive(Debug, Args)]
#[command(next_help_heading = "One row")]
pub struct InspectRowArgs {
    /// Show what the model sees of this row: the prompt, its token ids, the supervised tokens and
    /// the images. Rows are numbered from 0, as `row` in rejected.jsonl.
    #[arg(long, value_name = "N")]
    pub row: Option<usize>,
    /// The --out-dir of a run or the weights of a language model: its tokenizer, image token,
    /// tokens per image and image preprocessing are used.
    #[arg(long, value_name = "DIR|FILE", requires = "row")]
    model: Option<PathBuf>,
    /// Folder with tokenizer.json and tokenizer_config.json [default: that of --model].
    #[arg(long, value_name = "DIR", requires = "row")]
    tokenizer: Option<PathBuf>,
    /// Folder of the vision encoder, which decides the preprocessing and the number of tokens per
    /// image [default: that of --model, else CLIP at 224 × 224 pixels with 196 tokens per image].
    #[arg(long, value_name = "DIR", requires = "row")]
    vision: Option<PathBuf>,
    /// Token that stands for an image in the prompt [default: that of --model or of the prepared
    /// rows, else @].
    #[arg(long, value_name = "TOKEN", requires = "row")]
    image_token: Option<String>,
    /// Number of tokens to which the row is truncated [default: that of the run of --model or of the
    /// prepared rows, else 640].
    #[arg(long, value_name = "TOKENS", requires = "row", value_parser = at_least_one)]
    max_seq_len: Option<usize>,
    /// Folder that the image names in the rows are relative to [default: the folder of the rows].
    #[arg(long, value_name = "DIR", requires = "row")]
    images_path: Option<PathBuf>,
    /// Write the images after resizing and cropping, before the normalization: to this .png file,
    /// or to row-N-image-K.png in this folder.
    #[arg(long, value_name = "FILE.png|DIR", requires = "row")]
    image_out: Option<PathBuf>,
}

/// What a row's tokens and pixels are made with.
struct Inputs {
    tokenizer: Arc<ChatTokenizer>,
    processor: Arc<ImageProcessor>,
    tokens_per_image: usize,
    max_seq_len: usize,
    /// Where the number of tokens per image is from.
    origin: String,
}

/// Runs the command for row `row` of the rows at `path`.
pub fn run(
    args: &InspectRowArgs,
    row: usize,
    path: &Path,
    rows: &RowArgs,
    json: bool,
) -> Result<()> {
    let manifest = path.join(MANIFEST_FILE);
    let manifest = manifest.exists().then(|| Manifest::read(path)).transpose()?;
    if manifest.is_some() {
        rows.refuse("the rows were prepared with their own settings")?;
    }
    let source = DataPaths::from(path).open_with(args.images_path.as_deref(), &rows.options()?)?;
    if row >= source.len() {
        return Err(CliError::Usage(format!(
            "--row {row}: {} has {}; expected a number from 0 to {}",
            path.display(),
            count(source.len() as u64, "row"),
            source.len().saturating_sub(1)
        ))
        .into());
    }
    let inputs = Inputs::open(args, manifest.as_ref())?;
    let mut config = LoaderConfig::default();
    config.batch_size = 1;
    config.max_seq_len = inputs.max_seq_len;
    config.tokens_per_image = inputs.tokens_per_image;
    config.num_workers = 0;
    let (tokenizer, processor) = (Arc::clone(&inputs.tokenizer), Arc::clone(&inputs.processor));
    let loader = Loader::new(Arc::clone(&source), tokenizer, Some(processor), config)?;
    let loaded = loader.load_row(row)?.map_err(|rejected| {
        CliError::Failed(format!(
            "row {row} ({}) is rejected: {}: {}",
            rejected.location, rejected.reason, rejected.detail
        ))
    })?;
    if let Some(output) = &args.image_out {
        write_images(&loaded.images, row, output)?;
    }
    let view = RowView {
        row,
        location: source.locate(row),
        readers: source.describe(),
        loaded: &loaded,
        tokenizer: &inputs.tokenizer,
        tokens_per_image: inputs.tokens_per_image,
        tokens_per_image_origin: inputs.origin,
        max_seq_len: inputs.max_seq_len,
    };
    if json {
        println!("{}", view.to_json());
    } else {
        let no_color = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let is_coloured = std::io::stdout().is_terminal() && !no_color;
        print!("{}", view.to_text(if is_coloured { Markers::Colours } else { Markers::Brackets }));
    }
    Ok(())
}

impl Inputs {
    fn open(args: &InspectRowArgs, manifest: Option<&Manifest>) -> Result<Self> {
        let prepared_len = manifest.map(Manifest::max_seq_len);
        let given = [
            ("model", &args.model, "the out-dir of a run, or weights"),
            ("tokenizer", &args.tokenizer, "a folder with tokenizer.json"),
            ("vision", &args.vision, "the folder of a vision encoder"),
        ];
        for (flag, path, expected) in given {
            if let Some(path) = path {
                require(flag, path, Holds::Model, expected)?;
            }
        }
        if let Some(model) = &args.model {
            let mut options = LoadOptions::new(model);
            options.vision.clone_from(&args.vision);
            options.tokenizer.clone_from(&args.tokenizer);
            options.image_token.clone_from(&args.image_token);
            let opened = ModelInputs::open(&options)?;
            let run_len = prepared_len.or(opened.max_seq_len);
            return Ok(Self::of_model(opened, args.max_seq_len.or(run_len)));
        }
        let Some(tokenizer) = &args.tokenizer else {
            let text = "--row needs a tokenizer: give --model with the out-dir of a run, or \
                        --tokenizer with a folder that has tokenizer.json";
            return Err(CliError::Usage(text.into()).into());
        };
        let prepared_token = || manifest.map(|manifest| manifest.image_placeholder().to_owned());
        let files = ModelFiles {
            tokenizer: tokenizer.clone(),
            vision: args.vision.clone().unwrap_or_default(),
            image_token: args.image_token.clone().or_else(prepared_token),
            ..ModelFiles::default()
        };
        let max_seq_len = args.max_seq_len.or(prepared_len);
        if args.vision.is_some() {
            return Ok(Self::of_model(ModelInputs::of_files(files)?, max_seq_len));
        }
        const SIDE: u32 = 224;
        let processor = ImageProcessor::of_class(ImageProcessorClass::Clip, SIDE)?;
        let defaults = LoaderConfig::default();
        let pixels = format!("images as CLIP takes them, at {SIDE} × {SIDE} pixels");
        let (tokens_per_image, origin) = match manifest {
            Some(manifest) => (
                manifest.tokens_per_image(),
                format!("from the prepared rows; {pixels} by default"),
            ),
            None => (defaults.tokens_per_image, format!("the default; {pixels} by default")),
        };
        Ok(Self {
            tokenizer: Arc::new(open_tokenizer(&files)?),
            processor: Arc::new(processor),
            tokens_per_image,
            max_seq_len: max_seq_len.unwrap_or(defaults.max_seq_len),
            origin: format!("{origin}; --model or --vision give those of a model"),
        })
    }

    /// The inputs of a model. Without `max_seq_len` the row is truncated as by default.
    fn of_model(opened: ModelInputs, max_seq_len: Option<usize>) -> Self {
        Self {
            tokens_per_image: opened.shapes.tokens_per_image(),
            origin: format!("from the {:?} projector", opened.shapes.projector.kind),
            tokenizer: opened.tokenizer,
            processor: opened.processor,
            max_seq_len: max_seq_len.unwrap_or(LoaderConfig::default().max_seq_len),
        }
    }
}

/// Writes the preprocessed images of a row: to the file `output` if its name ends with `.png`, else
/// to that folder.
fn write_images(images: &[LoadedImage], row: usize, output: &Path) -> Result<()> {
    let is_file = output.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("png"));
    let paths: Vec<PathBuf> = match images {
        [] => return Err(CliError::Failed(format!("--image-out: row {row} has no image")).into()),
        [_] if is_file => vec![output.to_owned()],
        _ if is_file => {
            return Err(CliError::Usage(format!(
                "--image-out {}: row {row} has {} images; give a folder",
                output.display(),
                images.len()
            ))
            .into());
        }
        _ => {
            let cannot = |e: std::io::Error| {
                CliError::unusable(format!("--image-out {}: {e}", output.display()), &e)
            };
            std::fs::create_dir_all(output).map_err(cannot)?;
            let name = |k: usize| output.join(format!("row-{row}-image-{k}.png"));
            (0..images.len()).map(name).collect()
        }
    };
    for (image, path) in images.iter().zip(&paths) {
        let png = image.to_png().with_context(|| format!("image {:?}", image.name))?;
        write_atomically(path, |file| file.write_all(&png))
            .map_err(|e| CliError::unusable(format!("--image-out {}: {e}", path.display()), &e))?;
        tracing::info!("wrote {}", path.display());
    }
    Ok(())
}
