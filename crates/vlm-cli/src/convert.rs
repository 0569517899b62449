//! `vlm convert`: writes weights in another format, or exports a model in Hugging Face format.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Args;
use vlm_infer::{ExportSource, export_hf, is_exported_name};
use vlm_model::weights::{self, Format, Weights, WeightsError, save_shards};

use crate::error::CliError;

/// Flags of `vlm convert`.
#[derive(Debug, Args)]
pub struct ConvertArgs {
    /// A .pth or .safetensors file, an index of shards, or a folder with one of these.
    pub input: PathBuf,
    /// File to write, which ends in .pth or .safetensors; or a folder for model.safetensors or its
    /// shards.
    #[arg(required_unless_present = "export_hf", conflicts_with = "export_hf")]
    pub output: Option<PathBuf>,
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
    /// With --export-hf: folder of the tokenizer [default: the one that the model was trained
    /// with].
    #[arg(long, value_name = "DIR", requires = "export_hf")]
    pub tokenizer: Option<PathBuf>,
    /// With --export-hf: folder of the vision encoder [default: the one that the model was trained
    /// with].
    #[arg(long, value_name = "DIR", requires = "export_hf")]
    pub vision: Option<PathBuf>,
}

/// Default of `--max-shard-size`, as in Hugging Face's writer.
const DEFAULT_SHARD_BYTES: u64 = 5_000_000_000;

/// Runs the command.
pub fn run(args: &ConvertArgs) -> Result<()> {
    let shard_bytes = args.max_shard_size.unwrap_or(DEFAULT_SHARD_BYTES);
    if let Some(folder) = &args.export_hf {
        check_folder(folder, args.force)?;
        let source = ExportSource {
            model: args.input.clone(),
            vision: args.vision.clone(),
            tokenizer: args.tokenizer.clone(),
        };
        create_parent(folder)?;
        export_hf(&source, folder, shard_bytes)?;
        println!("{}", folder.display());
        return Ok(());
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
