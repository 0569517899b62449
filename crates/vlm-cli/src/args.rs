//! The command line and the configuration file: the same names, and the same structure.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use vlm_demo_train::Part;

use crate::settings_args::{PretrainArgs, SftArgs};

/// Pretrain small vision-language models.
#[derive(Debug, Parser)]
#[command(name = "vlm", version, args_override_self = true)]
pub struct Cli {
    /// Say more in the log.
    #[arg(short, long, global = true)]
    pub verbose: bool,
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train the projector (and the last layers of the language model) on images with captions.
    Pretrain(Box<PretrainArgs>),
    /// Train everything but the vision encoder on instruction rows, from the weights that
    /// pretraining left.
    Sft(Box<SftArgs>),
    /// Show the settings of a training and where they come from, the recipes, or the JSON schema of
    /// configuration files.
    #[command(subcommand)]
    Config(crate::config::ConfigCommand),
    /// Train the embedded demo's starting weights from random ones (takes an hour or more).
    DemoWeights(DemoWeightsArgs),
    /// Write the vision encoder's features of every picture, once, for training with --features.
    CacheFeatures(crate::cache_features::CacheFeaturesArgs),
    /// Write random weights of a given shape, for trials.
    Init(crate::init::InitArgs),
    /// Answer about pictures, with a trained model: one prompt, many, or a conversation.
    Generate(Box<crate::generate::GenerateArgs>),
    /// Judge a trained model on rows: loss, perplexity, captions.
    Eval(Box<crate::eval::EvalArgs>),
    /// Show names, shapes, types and sums of a weight file, and the model's configuration.
    Inspect(crate::inspect::InspectArgs),
    /// Write weights in another format, every name, dtype and value kept; or a whole model as a
    /// folder in Hugging Face form.
    Convert(crate::convert::ConvertArgs),
}

impl Command {
    /// Whether a model runs: the others read and write files.
    pub fn computes(&self) -> bool {
        !matches!(self, Self::Init(_) | Self::Inspect(_) | Self::Convert(_) | Self::Config(_))
    }
}

/// Flags of `vlm demo-weights`.
#[derive(Debug, Args)]
pub struct DemoWeightsArgs {
    /// Folder for the weights [default: the project's data/demo-start].
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
    /// Make only this part, vision or language [default: both].
    #[arg(long, value_name = "PART", value_parser = parse_named::<Part>)]
    pub part: Option<Part>,
    /// Language model to continue from, a weight file of the same shape [default: random weights].
    #[arg(long, value_name = "FILE")]
    pub language_from: Option<PathBuf>,
    /// Number of chats that the language model is trained on [default: 100000].
    #[arg(long, value_name = "N")]
    pub num_chats: Option<usize>,
}

/// The reference spells its flags with underscores: `--data_path` is `--data-path` here.
pub fn with_dashes(args: impl Iterator<Item = OsString>) -> Vec<OsString> {
    let respell = |arg: OsString| {
        let Some(flag) = arg.to_str().filter(|text| text.starts_with("--")) else { return arg };
        match flag.split_once('=') {
            Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
            None => flag.replace('_', "-").into(),
        }
    };
    args.map(respell).collect()
}

pub fn parse_bool(text: &str) -> Result<bool, String> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" => Ok(true),
        "false" | "0" | "no" => Ok(false),
        _ => Err("expected true or false".into()),
    }
}

/// Reads a value by the name that the configuration file gives it.
pub fn parse_named<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, String> {
    serde_json::from_value(text.into()).map_err(|e| e.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn only_the_flags_about_rows_stand_under_the_heading_of_rows() {
        use clap::CommandFactory;
        let cli = Cli::command();
        for name in ["cache-features", "eval", "generate", "inspect"] {
            let command = cli.find_subcommand(name).unwrap();
            let rows = command.get_arguments().filter(|arg| arg.get_help_heading() == Some("Rows"));
            let mut flags: Vec<_> = rows.filter_map(|arg| arg.get_long()).collect();
            flags.sort_unstable();
            let expected = ["caption-question", "image-key", "min-rating", "no-follow-links"];
            assert_eq!(flags, expected, "{name}");
        }
    }
}
