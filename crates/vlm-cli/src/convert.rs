//! `vlm convert`: writes weights in another format, or exports a model for this program or for
//! others.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use vlm_infer::{Container, ExportSource, export_hf, export_to, is_exported_name};
use vlm_model::weights::{self, Format, Weights, WeightsError, save_shards};

use crate::error::CliError;

/// Flags of `vlm convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A .pth or .safetensors file, an index of shards, or a folder with one of these.
    pub input: PathBuf,
    /// File to write, which ends in .pth or .safetensors; or a folder for model.safetensors or its
    /// shards.
    #[arg(required_unless_present_any = ["export_hf", "to"], conflicts_with = "export_hf")]
    pub output: Option<PathBuf>,
    /// Export the whole model for other programs: llava, smolvlm or lfm2-vl for transformers, gguf
    /// for llama.cpp, auto for the first of these that holds the model exactly. Without an output
    /// folder, its name is that of the input with the container's name, such as out/first-llava.
    #[arg(long, value_name = "CONTAINER", value_parser = parse_container)]
    pub to: Option<Target>,
    /// With --to gguf: export only the language model.
    #[arg(long, requires = "to")]
    pub without_vision: bool,
    /// Largest size of a file, such as 500MB, 5GB or a number of bytes; larger weights are split
    /// into shards with an index. Only for a folder [default: 5GB].
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub max_shard_size: Option<u64>,
    /// Replace an existing file or folder.
    #[arg(long)]
    pub force: bool,
    /// Export the model to this folder in Hugging Face format: config.json, weights, tokenizer,
    /// preprocessor_config.json, and the vision encoder in vision/. --lm and --model accept the
    /// folder.
    #[arg(long, value_name = "DIR")]
    pub export_hf: Option<PathBuf>,
    /// With --export-hf or --to: folder of the tokenizer [default: the one that the model was
    /// trained with].
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// With --export-hf or --to: folder of the vision encoder [default: the one that the model was
    /// trained with].
    #[arg(long, value_name = "DIR")]
    pub vision: Option<PathBuf>,
}

/// Default of `--max-shard-size`, as in Hugging Face's writer.
const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Runs the command.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let shard_bytes = args.max_shard_size.unwrap_or(DEFAULT_SHARD_BYTES);
    let source = ExportSource {
        model: args.input.clone(),
        vision: args.vision.clone(),
        tokenizer: args.tokenizer.clone(),
        without_vision: args.without_vision,
    };
    if let Some(target) = args.to {
        return run_export(args, &source, target, shard_bytes);
    }
    if let Some(folder) = &args.export_hf {
        check_folder(folder, args.force)?;
        create_parent(folder)?;
        export_hf(&source, folder, shard_bytes)?;
        println!("{}", folder.display());
        return Ok(());
    }
    if args.vision.is_some() || args.tokenizer.is_some() {
        return Err(CliError::Usage(
            "--vision and --tokenizer are for --export-hf and --to; weights are converted without \
             them"
                .into(),
        )
        .into());
    }
    let output = args.output.as_deref().unwrap_or(Path::new(""));
    let format = format_of(output, args)?;
    let weights = Weights::open(&args.input)?;
    if let Some(key) = weights.nested_under() {
        tracing::info!("only the tensors under the key {key:?} are converted");
    }
    let tensors = weights.all()?;
    create_parent(output)?;
    match format {
        Some(format) => weights::save(output, &tensors, format)?,
        None => vlm_torch::write_folder_atomically::<WeightsError>(output, |folder| {
            save_shards(folder, &tensors, shard_bytes)
        })?,
    }
    println!("{}: {} tensors", output.display(), tensors.len());
    Ok(())
}

/// Runs the command with `--to`.
fn run_export(
    args: &ConvertArgs,
    source: &ExportSource,
    target: Target,
    shard_bytes: u64,
) -> Result<()> {
    let given = match target {
        Target::Auto => None,
        Target::Container(container) => Some(container),
    };
    if args.without_vision && given.is_some_and(|container| container != Container::Gguf) {
        return Err(CliError::Usage(
            "--without-vision is for --to gguf; --export-hf exports a language model alone".into(),
        )
        .into());
    }
    let container = given.map_or_else(|| Container::for_model(source), Ok)?;
    let folder = match &args.output {
        Some(folder) => folder.clone(),
        None => default_output(&args.input, container)?,
    };
    check_folder(&folder, args.force)?;
    create_parent(&folder)?;
    export_to(source, container, &folder, shard_bytes)?;
    println!("{}", folder.display());
    Ok(())
}

/// The input's path without extension, with the container's name.
fn default_output(input: &Path, container: Container) -> Result<PathBuf> {
    let stem = if input.is_dir() { input.file_name() } else { input.file_stem() };
    let Some(stem) = stem else {
        return Err(CliError::Usage(format!(
            "{} has no name that the output could be called by; give an output folder",
            input.display()
        ))
        .into());
    };
    let name = format!("{}-{}", stem.to_string_lossy(), container.name());
    Ok(input.with_file_name(name))
}

/// The value of `--to`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// The first container that holds the model exactly.
    Auto,
    /// This container.
    Container(Container),
}

fn parse_container(text: &str) -> Result<Target, String> {
    if text == "auto" {
        return Ok(Target::Auto);
    }
    let found = Container::ALL.into_iter().find(|container| container.name() == text);
    found.map(Target::Container).ok_or_else(|| {
        let names: Vec<_> = Container::ALL.into_iter().map(Container::name).collect();
        format!("expected {} or auto", names.join(", "))
    })
}

/// Creates the folder that contains the output.
fn create_parent(output: &Path) -> Result<()> {
    let folder = output.parent().unwrap_or(output);
    fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))
}

/// The format of the file to write; `None` for a folder.
///
/// # Errors
/// An output that exists and may not be replaced; flags that contradict each other.
fn format_of(output: &Path, args: &ConvertArgs) -> Result<Option<Format>> {
    if output.extension().is_none() || output.is_dir() {
        check_folder(output, args.force)?;
        return Ok(None);
    }
    let format = Format::of(output)?;
    if args.max_shard_size.is_some() {
        return Err(CliError::Usage(format!(
            "--max-shard-size: shards are written to a folder, but {} has the extension of a file; \
             give a name without extension",
            output.display()
        ))
        .into());
    }
    if output.exists() && !args.force {
        return Err(occupied(output));
    }
    Ok(Some(format))
}

/// Checks that the folder may be written: it does not exist or is empty, or it holds only files of
/// this command and `--force` is given.
fn check_folder(folder: &Path, force: bool) -> Result<()> {
    if !folder.exists() {
        return Ok(());
    }
    if !folder.is_dir() {
        return Err(CliError::Usage(format!(
            "{} is a file; expected a folder, or a path that does not exist yet",
            folder.display()
        ))
        .into());
    }
    let entries = std::fs::read_dir(folder)?.flatten();
    let names: Vec<String> =
        entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    if names.is_empty() {
        return Ok(());
    }
    if !force {
        return Err(occupied(folder));
    }
    let is_own = |name: &str| {
        is_exported_name(name)
            || name == "model.safetensors.index.json"
            || name.starts_with("model") && name.ends_with(".safetensors")
    };
    match names.iter().find(|name| !is_own(name)) {
        None => Ok(()),
        Some(name) => Err(CliError::Usage(format!(
            "{} holds {name}, which this command did not write; --force replaces the whole folder, \
             so choose another one",
            folder.display()
        ))
        .into()),
    }
}

fn occupied(path: &Path) -> anyhow::Error {
    CliError::Usage(format!(
        "{} already exists; give --force to replace it, or choose another name",
        path.display()
    ))
    .into()
}

/// Parses a size such as `500MB` or `5GB` in bytes. The units are powers of ten, as in Hugging
/// Face.
fn parse_size(text: &str) -> Result<u64, String> {
    let split = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let factor = match unit.to_ascii_uppercase().as_str() {
        "" | "B" => 1,
        "KB" => 1_000,
        "MB" => 1_000_000,
        "GB" => 1_000_000_000,
        _ => return Err("expected a number with B, KB, MB or GB".into()),
    };
    let bytes = number.parse::<u64>().ok().and_then(|number| number.checked_mul(factor));
    bytes.filter(|&bytes| bytes > 0).ok_or_else(|| "expected a number of bytes above 0".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_with_decimal_units_are_parsed() {
        assert_eq!(parse_size("500MB"), Ok(500_000_000));
        assert_eq!(parse_size("2gb"), Ok(2_000_000_000));
        assert_eq!(parse_size("17"), Ok(17));
        for wrong in ["", "GB", "0", "5TB", "-1", "99999999999999GB"] {
            assert!(parse_size(wrong).is_err(), "{wrong}");
        }
    }
}
