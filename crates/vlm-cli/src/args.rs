//! The command line and the configuration file: the same names, and the same structure.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use serde::{Deserialize, Serialize};
use vlm_data::Padding;
use vlm_infer::Dtype;
use vlm_train::config::LossAverage;

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
    /// Train on instruction rows, from what pretraining left: all but the vision encoder. The flags
    /// are those of pretrain, with the defaults --epochs 6 --batch-size 8 --learning-rate 1e-6
    /// --max-seq-len 1536 --train-lm; --lm is {out-dir}/pretrain_vlm_{dim}[_moe].pth.
    Sft(Box<PretrainArgs>),
    /// Make the embedded demo's starting weights anew (takes an hour or more).
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
        !matches!(self, Self::Init(_) | Self::Inspect(_) | Self::Convert(_))
    }
}

/// Flags of `vlm pretrain`. A configuration file holds the same names; flags win.
#[derive(Debug, Default, Args, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct PretrainArgs {
    /// Rows: .jsonl, .json (a list), .parquet, .tar (WebDataset), a folder of these, or a prepared
    /// one. Several paths, or a quoted pattern such as 'data/*.parquet', are read one after another;
    /// with a weight each (PATH:0.7) they are mixed. Without it, the embedded demo.
    #[arg(long, value_name = "PATH[:WEIGHT]", num_args = 1..)]
    #[serde(deserialize_with = "one_or_many")]
    pub data_path: Option<Vec<String>>,
    /// Root folder of the image names in the rows.
    #[arg(long, value_name = "DIR")]
    pub images_path: Option<PathBuf>,
    /// Language-model weights, .pth or .safetensors, a folder with them, or the --out-dir of a run;
    /// "none": random [default: {out-dir}/lm_{dim}.pth].
    #[arg(long, value_name = "FILE|none")]
    pub lm: Option<PathBuf>,
    /// Vision encoder, a folder in Hugging Face form [default: the one that --lm was trained with].
    #[arg(long, value_name = "DIR")]
    pub vision: Option<PathBuf>,
    /// Folder with tokenizer.json and tokenizer_config.json [default: the one that --lm was trained
    /// with].
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// How an image is spelled in the prompt: a single token of the tokenizer [default: that of the
    /// language model's family].
    #[arg(long, value_name = "TOKEN")]
    pub image_token: Option<String>,
    /// linear, mlp, merged-mlp or pixel-shuffle [default: that of the weights, else of the language model's
    /// family].
    #[arg(long, value_name = "KIND", value_parser = parse_named::<vlm_model::ProjectorKind>)]
    pub projector: Option<vlm_model::ProjectorKind>,
    /// Folder for all that the run writes [default: out].
    #[arg(long, value_name = "DIR")]
    pub out_dir: Option<PathBuf>,
    /// Passes over the data [default: 4].
    #[arg(long, value_name = "N")]
    pub epochs: Option<u64>,
    /// Rows a micro-batch (a process) [default: 16].
    #[arg(long, value_name = "N")]
    pub batch_size: Option<usize>,
    /// Reference rate of the schedule, which starts at 1.1 and ends near 0.1 times it [default:
    /// 4e-4].
    #[arg(long, value_name = "RATE", allow_negative_numbers = true)]
    pub learning_rate: Option<f64>,
    /// Micro-batches an update [default: 1].
    #[arg(long, value_name = "N")]
    pub accumulation_steps: Option<u64>,
    /// Largest gradient norm; 0: no clipping [default: 1.0].
    #[arg(long, value_name = "NORM", allow_negative_numbers = true)]
    pub grad_clip: Option<f64>,
    /// Micro-batches over which the rate rises at the start [default: 0].
    #[arg(long, value_name = "N")]
    pub warmup_iters: Option<u64>,
    /// Hidden size [default: 512, or config.json's beside the weights; the next five likewise].
    #[arg(long, value_name = "N", alias = "hidden-size")]
    pub dim: Option<i64>,
    /// Transformer blocks [default: 8].
    #[arg(long, value_name = "N", alias = "num-hidden-layers")]
    pub n_layers: Option<i64>,
    /// Query heads [default: 8].
    #[arg(long, value_name = "N", alias = "num-attention-heads")]
    pub n_heads: Option<i64>,
    /// Key and value heads [default: 2].
    #[arg(long, value_name = "N", alias = "num-key-value-heads")]
    pub n_kv_heads: Option<i64>,
    /// Tokens a row is cut at [default: 640].
    #[arg(long, value_name = "N")]
    pub max_seq_len: Option<usize>,
    /// Mixture of experts.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    pub use_moe: Option<bool>,
    /// Dropout probability [default: 0].
    #[arg(long, value_name = "P", allow_negative_numbers = true)]
    pub dropout: Option<f64>,
    /// Last blocks trained beside the projector; 0: the projector only [default: 1].
    #[arg(long, value_name = "N")]
    pub unfreeze_last_layers: Option<i64>,
    /// First blocks trained beside the projector [default: 0].
    #[arg(long, value_name = "N")]
    pub unfreeze_first_layers: Option<i64>,
    /// Train all of the language model.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    pub train_lm: Option<bool>,
    /// Keep each block's input only and compute the rest again in the backward pass: less memory,
    /// more time.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    pub activation_checkpointing: Option<bool>,
    /// Train the vision encoder too.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    pub train_vision: Option<bool>,
    /// auto, cpu, cuda or cuda:N [default: auto].
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<String>,
    /// float32, bfloat16 or float16 [default: bfloat16 on CUDA, float32 on the CPU].
    #[arg(long, value_name = "TYPE", value_parser = parse_named::<Dtype>)]
    pub dtype: Option<Dtype>,
    /// Loader threads [default: cores].
    #[arg(long, value_name = "N")]
    pub num_workers: Option<usize>,
    /// Batches that the loader makes ahead [default: 4].
    #[arg(long, value_name = "N")]
    pub prefetch_batches: Option<usize>,
    /// Features made by `vlm cache-features`; the encoder is then not loaded.
    #[arg(long, value_name = "DIR")]
    pub features: Option<PathBuf>,
    /// Draw the order of the rows anew each epoch, from (seed, epoch) [default].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, overrides_with = "no_shuffle")]
    pub shuffle: Option<bool>,
    /// Take the rows in the order of the file.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, overrides_with = "shuffle")]
    pub no_shuffle: Option<bool>,
    /// Rows within which similar lengths are put together; 0: none [default: 2048, with --no-shuffle
    /// 0].
    #[arg(long, value_name = "ROWS")]
    pub bucket_window: Option<usize>,
    /// Leave out an epoch's last batch when it is not full.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, overrides_with = "no_drop_last")]
    pub drop_last: Option<bool>,
    /// Train on an epoch's last batch though it is not full [default].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, overrides_with = "drop_last")]
    pub no_drop_last: Option<bool>,
    /// longest (row of the batch) or max (--max-seq-len) [default: longest].
    #[arg(long, value_name = "TO", value_parser = parse_named::<Padding>)]
    pub padding: Option<Padding>,
    /// Put the rows of a micro-batch end to end, each seeing only itself, instead of filling them up:
    /// the same losses for less arithmetic. As --padding none.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    pub pack: Option<bool>,
    /// batch: mean of each micro-batch; token: per supervised token of the whole update
    /// [default: batch].
    #[arg(long, value_name = "OVER", value_parser = parse_named::<LossAverage>)]
    pub loss_average: Option<LossAverage>,
    /// Fail when more than this share of the rows seen cannot be used; 0 allows none
    /// [default: 0.05].
    #[arg(long, value_name = "SHARE", allow_negative_numbers = true)]
    pub max_rejected_fraction: Option<f64>,
    /// Stop after this many updates in a row were not finite [default: 10].
    #[arg(long, value_name = "N")]
    pub max_skipped_updates: Option<u64>,
    /// Rows to judge the model on while it is trained: loss, perplexity, captions.
    #[arg(long, value_name = "FILE")]
    pub eval_data: Option<PathBuf>,
    /// Root folder of the image names in --eval-data [default: that of the training rows].
    #[arg(long, value_name = "DIR")]
    pub eval_images_path: Option<PathBuf>,
    /// Steps between two judgements [default: --save-interval]; there is one at the end, too.
    #[arg(long, value_name = "N")]
    pub eval_interval: Option<u64>,
    /// Rows of --eval-data that are answered, too [default: 50].
    #[arg(long, value_name = "N")]
    pub eval_captions: Option<usize>,
    /// Steps between two log lines [default: 100].
    #[arg(long, value_name = "N")]
    pub log_interval: Option<u64>,
    /// Steps between two checkpoints [default: 100].
    #[arg(long, value_name = "N")]
    pub save_interval: Option<u64>,
    /// Checkpoints kept [default: 2].
    #[arg(long, value_name = "N")]
    pub keep_checkpoints: Option<usize>,
    /// Stop after this many steps; the schedule is that of all epochs.
    #[arg(long, value_name = "N")]
    pub max_steps: Option<u64>,
    /// Seed of random weights and of the order of the rows [default: 1337].
    #[arg(long, value_name = "N")]
    pub seed: Option<u64>,
    /// Write TensorBoard's event files into --out-dir [default].
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, overrides_with = "no_tensorboard")]
    pub tensorboard: Option<bool>,
    /// Write no event files.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool, overrides_with = "tensorboard")]
    pub no_tensorboard: Option<bool>,
    /// Continue: "auto" (the newest good checkpoint in --out-dir) or a checkpoint's folder.
    #[arg(long, value_name = "auto|DIR")]
    pub resume: Option<PathBuf>,
    /// CPU arithmetic threads [default: cores].
    #[arg(long, value_name = "N")]
    pub num_threads: Option<i32>,
    /// A TOML file with these names; flags win over it.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,
    /// Seconds that a process waits for the others of its run [default: 600].
    #[arg(long, value_name = "SECS")]
    pub timeout_secs: Option<u64>,
    /// Train in a process group even alone (WORLD_SIZE 1); with several processes the launch
    /// environment decides.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, default_missing_value = "true", value_parser = parse_bool)]
    pub ddp: Option<bool>,
}

/// Flags of `vlm demo-weights`.
#[derive(Debug, Args)]
pub struct DemoWeightsArgs {
    /// Folder for the weights [default: the project's data/demo-start].
    #[arg(long, value_name = "DIR")]
    pub output: Option<PathBuf>,
}

/// A text, or a list of them.
fn one_or_many<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum OneOrMany {
        One(String),
        Many(Vec<String>),
    }
    let paths = Option::<OneOrMany>::deserialize(from)?;
    Ok(paths.map(|paths| match paths {
        OneOrMany::One(path) => vec![path],
        OneOrMany::Many(paths) => paths,
    }))
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

    fn parse(args: &[&str]) -> PretrainArgs {
        let all = ["vlm", "pretrain"].iter().chain(args).map(OsString::from);
        match Cli::try_parse_from(with_dashes(all)).unwrap().command {
            Command::Pretrain(args) => *args,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_references_spelling_is_understood() {
        let args = parse(&["--data_path", "a_b.jsonl", "--batch_size=4", "--use_moe", "False"]);
        assert_eq!(args.data_path.unwrap(), ["a_b.jsonl"]);
        assert_eq!((args.batch_size, args.use_moe), (Some(4), Some(false)));
    }

    #[test]
    fn the_last_of_a_flag_given_twice_wins() {
        let args = parse(&["--batch-size", "4", "--batch_size=8", "--pack", "--pack", "false"]);
        assert_eq!((args.batch_size, args.pack), (Some(8), Some(false)));
    }

    #[test]
    fn data_path_takes_several_words_and_may_be_repeated() {
        let args = parse(&["--data-path", "a.jsonl", "b.jsonl", "--epochs", "1", "--data-path=c"]);
        assert_eq!(args.data_path.unwrap(), ["a.jsonl", "b.jsonl", "c"]);
    }

    #[test]
    fn hugging_faces_names_of_the_shape_are_understood() {
        let args = parse(&["--hidden_size", "768", "--num-hidden-layers=16"]);
        assert_eq!((args.dim, args.n_layers), (Some(768), Some(16)));
    }

    #[test]
    fn the_later_of_two_opposite_flags_wins() {
        let args = parse(&["--shuffle", "--no-shuffle"]);
        assert_eq!((args.shuffle, args.no_shuffle), (None, Some(true)));
    }

    #[test]
    fn the_commands_flags_are_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }
}
