//! `vlm generate`: generates text with a trained model, for one prompt, for many, or in a
//! conversation.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use vlm_data::{Role, Turn, open_source_with};
use vlm_infer::{InferError, user_turn};
use vlm_model::sampling::Sampling;

use crate::error::CliError;
use crate::flag_values::at_least_one;
use crate::inputs::{check_image, read_image};
use crate::model_args::ModelArgs;
use crate::printed::print_streaming;
use crate::row_args::RowArgs;
use crate::{chat, generate_rows};

/// Flags of `vlm generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Image of the prompt or conversation; several may be given.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub image: Vec<PathBuf>,
    /// Prompt to answer. <image> marks the place of each image; without it the images come first.
    /// Without a prompt a conversation is read line by line from the terminal or standard input.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompts_file", "data_path"])]
    pub prompt: Option<String>,
    /// File with one prompt per line, each with the images of --image; writes a JSON line for each.
    #[arg(long, value_name = "FILE", conflicts_with = "data_path")]
    pub prompts_file: Option<PathBuf>,
    /// Rows, in the formats of the training; answers the first question of each row and writes a
    /// JSON line for it.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "system"])]
    pub data_path: Option<PathBuf>,
    /// Folder that the image names in the rows are relative to [default: the folder of the rows].
    #[arg(long, value_name = "DIR", requires = "data_path")]
    pub images_path: Option<PathBuf>,
    /// File for the JSON lines [default: standard output].
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// System message before the conversation [default: that of the chat template, if any].
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Number of prompts in one batch, with --prompts-file or --data-path.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    pub batch_size: usize,
    /// Largest number of tokens that are generated for a prompt.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub max_new_tokens: usize,
    /// Sampling temperature; 0 always chooses the most likely token.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Sample from the smallest set of most likely tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f64,
    /// Sample from this number of most likely tokens; 0 for all tokens.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Penalty for tokens that have already occurred, as in Hugging Face; 1 turns it off.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f64,
    /// Seed of the sampling.
    #[arg(long, value_name = "N", default_value_t = 1337)]
    pub seed: u64,
    // Last, because its heading would apply to the flags after it.
    #[command(flatten)]
    pub rows: RowArgs,
}

/// Runs the command.
pub fn run(args: &GenerateArgs) -> Result<()> {
    let sampling = Sampling {
        temperature: args.temperature,
        top_k: args.top_k,
        top_p: args.top_p,
        repetition_penalty: args.repetition_penalty,
        seed: args.seed,
    };
    sampling.validate()?;
    if args.output.is_some() && args.prompts_file.is_none() && args.data_path.is_none() {
        let text = "--output is for the JSON lines of --prompts-file or --data-path".to_owned();
        return Err(CliError::Usage(text).into());
    }
    if args.data_path.is_none() {
        args.rows.refuse("without --data-path no rows are read")?;
    }
    let images: Result<Vec<Vec<u8>>> =
        args.image.iter().map(|path| read_image("--image", path)).collect();
    let images = images?;
    let model = args.model.open()?;
    let mut generator = model.generator();
    generator.batch_size = args.batch_size;
    generator.max_new_tokens = args.max_new_tokens;
    generator.sampling = sampling;
    for (path, bytes) in args.image.iter().zip(&images) {
        check_image(&generator, "--image", path, bytes)?;
    }
    let system = system_turn(args.system.as_deref());
    if let Some(rows) = &args.data_path {
        let images_path = args.images_path.as_deref();
        let source = open_source_with(rows, images_path, &args.rows.options()?)?;
        return generate_rows::for_rows(&generator, source.as_ref(), args.output.as_deref());
    }
    if let Some(file) = &args.prompts_file {
        let context = generate_rows::PromptContext { system: &system, images: &images };
        return generate_rows::for_prompts(&generator, &context, file, args.output.as_deref());
    }
    let Some(prompt) = &args.prompt else {
        return chat::run(&generator, system, &images);
    };
    let mut turns = system;
    turns.push(user_turn(prompt, images.len()));
    let prepared = generator.prepare(&turns, &images).map_err(InferError::from)?;
    let images = generator.image_input(&prepared.pixels);
    let printed = print_streaming(&generator, &prepared.prompt, images)?;
    tracing::info!("{}", printed.speed());
    Ok(())
}

/// The turns before the first question.
fn system_turn(text: Option<&str>) -> Vec<Turn> {
    text.map(|text| Turn::new(Role::System, text)).into_iter().collect()
}
