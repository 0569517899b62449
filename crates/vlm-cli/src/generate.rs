//! `vlm generate`: answers of a trained model, to one prompt, to many, or in a conversation.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::Args;
use vlm_data::{IMAGE_TAG, Reject, Role, TextStream, Turn};
use vlm_infer::answer::Answerer;
use vlm_model::ImageInput;
use vlm_model::generate::Prompt;
use vlm_model::sampling::Sampling;
use vlm_train::TrainError;

use crate::trained::TrainedArgs;
use crate::{answer_rows, chat};

/// Flags of `vlm generate`.
#[derive(Debug, Args)]
pub struct GenerateArgs {
    #[command(flatten)]
    pub trained: TrainedArgs,
    /// A picture to show; several may be given.
    #[arg(long, value_name = "FILE", num_args = 1..)]
    pub image: Vec<PathBuf>,
    /// What to ask. <image> marks where pictures go, else they come first. Without a prompt:
    /// a conversation, read from the terminal or standard input line by line.
    #[arg(long, value_name = "TEXT", conflicts_with_all = ["prompts_file", "data_path"])]
    pub prompt: Option<String>,
    /// Many prompts, one a line, each asked about the same --image: a JSON line for each answer.
    #[arg(long, value_name = "FILE", conflicts_with = "data_path")]
    pub prompts_file: Option<PathBuf>,
    /// Many rows as for training, of which the first question is asked: a JSON line for each answer.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["image", "system"])]
    pub data_path: Option<PathBuf>,
    /// Root folder of the image names in the rows [default: the folder of the rows].
    #[arg(long, value_name = "DIR", requires = "data_path")]
    pub images_path: Option<PathBuf>,
    /// Where the JSON lines go [default: standard output].
    #[arg(long, value_name = "FILE")]
    pub output: Option<PathBuf>,
    /// Instructions before the conversation [default: the chat template's, if any].
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Prompts answered at once, with --prompts-file and --data-path.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    pub batch_size: usize,
    /// Most new tokens an answer.
    #[arg(long, value_name = "N", default_value_t = 256, value_parser = at_least_one)]
    pub max_new_tokens: usize,
    /// 0: always the most likely token; higher: more variety.
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    pub temperature: f64,
    /// Only the most likely tokens that together have this probability.
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    pub top_p: f64,
    /// Only this many of the most likely tokens; 0: all.
    #[arg(long, value_name = "K", default_value_t = 0)]
    pub top_k: usize,
    /// Above 1: tokens that were there before become less likely.
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    pub repetition_penalty: f64,
    /// Seed of the draws.
    #[arg(long, value_name = "N", default_value_t = 1337)]
    pub seed: u64,
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
        return Err(TrainError::Usage(text).into());
    }
    let images: Result<Vec<Vec<u8>>> = args.image.iter().map(|path| read_image(path)).collect();
    let images = images?;
    let trained = args.trained.open()?;
    let answerer = Answerer {
        model: &trained.model,
        tokenizer: &trained.tokenizer,
        processor: &trained.processor,
        dtype: trained.dtype,
        batch_size: args.batch_size,
        max_new_tokens: args.max_new_tokens,
        sampling,
        blank_pictures: false,
    };
    let system = system_turn(args.system.as_deref());
    if let Some(rows) = &args.data_path {
        let images_path = args.images_path.as_deref();
        return answer_rows::of_data(&answerer, rows, images_path, args.output.as_deref());
    }
    if let Some(file) = &args.prompts_file {
        let asked = answer_rows::Asked { system: &system, images: &images };
        return answer_rows::of_prompts(&answerer, &asked, file, args.output.as_deref());
    }
    let Some(prompt) = &args.prompt else {
        return chat::run(&answerer, system, &images);
    };
    let mut turns = system;
    turns.push(Turn::new(Role::User, with_image_tags(prompt, images.len())));
    let question = answerer.question(&turns, &images).map_err(|e| usage(&e))?;
    let told = tell(&answerer, &question.prompt, answerer.images(&question.pixels))?;
    tracing::info!("{}", told.speed());
    Ok(())
}

/// An answer that was told on standard output.
pub struct Told {
    /// Its text.
    pub text: String,
    num_tokens: usize,
    secs: f64,
}

impl Told {
    /// How fast it came.
    pub fn speed(&self) -> String {
        let rate = self.num_tokens as f64 / self.secs.max(1e-9);
        format!("{} tokens in {:.2} s ({rate:.0} tokens/s)", self.num_tokens, self.secs)
    }
}

/// Answers one prompt on standard output, as the tokens come.
pub fn tell(answerer: &Answerer, prompt: &Prompt, images: ImageInput) -> Result<Told> {
    let started = Instant::now();
    let (mut stream, mut text) = (TextStream::default(), String::new());
    let mut say = |piece: String| {
        text += &piece;
        print!("{piece}");
    };
    let mut num_tokens = 0;
    answerer.generate(std::slice::from_ref(prompt), images, &mut |_, id| {
        num_tokens += 1;
        say(stream.push(answerer.tokenizer, id));
    })?;
    say(stream.finish(answerer.tokenizer));
    say("\n".to_owned());
    let text = text.trim().to_owned();
    Ok(Told { text, num_tokens, secs: started.elapsed().as_secs_f64() })
}

/// The turns before the first question.
fn system_turn(text: Option<&str>) -> Vec<Turn> {
    text.map(|text| Turn::new(Role::System, text)).into_iter().collect()
}

/// The pictures come first where the prompt does not say where they go.
pub fn with_image_tags(prompt: &str, num_images: usize) -> String {
    if prompt.contains(IMAGE_TAG) {
        return prompt.to_owned();
    }
    format!("{IMAGE_TAG}\n").repeat(num_images) + prompt
}

/// The bytes of a picture.
pub fn read_image(path: &Path) -> Result<Vec<u8>> {
    let bytes = std::fs::read(path);
    Ok(bytes.map_err(|e| TrainError::unusable(format!("--image {}: {e}", path.display()), &e))?)
}

/// A prompt that cannot be asked.
pub fn usage(reject: &Reject) -> TrainError {
    TrainError::Usage(format!("this cannot be asked: {reject}"))
}

/// A count that may not be 0.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) => Err("it must be at least 1".into()),
        Ok(number) => Ok(number),
        Err(e) => Err(format!("expected a whole number: {e}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_come_first_unless_the_prompt_says_where() {
        assert_eq!(with_image_tags("What?", 2), "<image>\n<image>\nWhat?");
        assert_eq!(with_image_tags("Is <image> red?", 1), "Is <image> red?");
        assert_eq!(with_image_tags("Hello", 0), "Hello");
    }
}
