//! The command line: the commands of `vlm`.

use clap::{Parser, Subcommand};

use crate::log::LogFormat;
use crate::settings_args::{PretrainArgs, SftArgs};

/// Pretrain small vision-language models.
#[derive(Debug, Parser)]
#[command(name = "vlm", version, args_override_self = true)]
pub struct Cli {
    /// Log more details.
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Format of the log on standard error: text, or json for one JSON object a line, with the
    /// numbers of metrics.jsonl.
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Train the projector (and the last layers of the language model) on images with captions.
    Pretrain(Box<PretrainArgs>),
    /// Train the projector and the whole language model on instruction rows, starting from the
    /// weights of the pretraining.
    Sft(Box<SftArgs>),
    /// Show the settings of a training and their origins, the recipes, or the JSON schema of
    /// configuration files.
    #[command(subcommand)]
    Config(crate::config::ConfigCommand),
    /// Train the starting weights of the embedded demo from random weights (takes an hour or more).
    DemoWeights(crate::demo::DemoWeightsArgs),
    /// Compute the vision encoder's features of every image once, for training with --features.
    CacheFeatures(crate::cache_features::CacheFeaturesArgs),
    /// Write random weights of a given shape, for tests.
    Init(crate::init::InitArgs),
    /// Generate text about images with a trained model: for one prompt, for many, or in a
    /// conversation.
    Generate(Box<crate::generate::GenerateArgs>),
    /// Answer requests over HTTP with a trained model, in the form of OpenAI's chat completions, and
    /// serve a page to talk about a picture.
    Serve(Box<crate::serve::ServeArgs>),
    /// Evaluate a trained model on rows: loss, perplexity, image gain, captions.
    Eval(Box<crate::eval::EvalArgs>),
    /// Show names, shapes, types and sums of the tensors in a weights file, the rows of a dataset,
    /// or what the model sees of one row.
    Inspect(Box<crate::inspect::InspectArgs>),
    /// Serve a page with the curves and samples of runs, which follows runs that are trained.
    Board(crate::board::BoardArgs),
    /// Write weights in another format, with the same names, types and values; or export a model as
    /// a folder in Hugging Face format.
    Convert(crate::convert::ConvertArgs),
    /// Print completions for a shell: `vlm completions bash`.
    Completions(crate::shell::CompletionsArgs),
    /// Write a manual page for each command.
    Man(crate::shell::ManArgs),
}

impl Command {
    /// Whether the command runs a model. The other commands only read and write files.
    pub fn computes(&self) -> bool {
        !matches!(
            self,
            Self::Init(_)
                | Self::Inspect(_)
                | Self::Convert(_)
                | Self::Config(_)
                | Self::Board(_)
                | Self::Completions(_)
                | Self::Man(_)
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_of_all_commands_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn only_the_flags_about_rows_are_under_the_heading_rows() {
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
