//! `vlm generate` without a prompt: a conversation in the terminal, or line by line from standard
//! input.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use tch::Tensor;
use vlm_data::{IMAGE_TAG, Role, Turn};
use vlm_infer::{Generator, InferError, user_turn};
use vlm_model::ImageInput;

use crate::inputs::{check_image, read_image};
use crate::printed::print_streaming;

const HELP: &str = "/image FILE adds an image to the next question, /reset starts a new \
                    conversation, /help shows this, /exit or the end of input quits";

/// A conversation: its turns and images.
struct Conversation<'a> {
    generator: &'a Generator<'a>,
    /// The turns before the first question.
    opening: Vec<Turn>,
    /// All turns so far.
    turns: Vec<Turn>,
    /// Patch features `[1, P, V]` of each image of `turns`, kept so that an image is encoded only
    /// once.
    shown: Vec<Tensor>,
    /// Patch features of the images for the next question.
    waiting: Vec<Tensor>,
}

/// Reads questions and prints answers until the input ends. `images` belong to the first question.
pub fn run(generator: &Generator, opening: Vec<Turn>, images: &[Vec<u8>]) -> Result<()> {
    let mut conversation = Conversation {
        generator,
        turns: opening.clone(),
        opening,
        shown: Vec::new(),
        waiting: Vec::new(),
    };
    for image in images {
        conversation.add_image(&generator.processor.preprocess(image)?)?;
    }
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        eprintln!("{HELP}");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if is_terminal {
            eprint!("> ");
            // If the prompt sign cannot be written, the conversation continues without it.
            let _ = std::io::stderr().flush();
        }
        let Some(line) = lines.next() else { return Ok(()) };
        let line = line.context("reading standard input")?;
        match line.trim() {
            "" => {}
            "/exit" => return Ok(()),
            "/help" => eprintln!("{HELP}"),
            "/reset" => {
                conversation.turns = conversation.opening.clone();
                conversation.shown.clear();
                conversation.waiting.clear();
            }
            command if command.starts_with('/') => {
                let shown = match command.split_once(char::is_whitespace) {
                    Some(("/image", path)) => conversation.add_image_file(Path::new(path.trim())),
                    _ => Err(anyhow::anyhow!("{command} is not a command; {HELP}")),
                };
                if let Err(error) = shown {
                    eprintln!("{error:#}");
                }
            }
            question => conversation.ask(question)?,
        }
    }
}

impl Conversation<'_> {
    /// Adds the image of a file to the next question.
    fn add_image_file(&mut self, path: &Path) -> Result<()> {
        let bytes = read_image("/image", path)?;
        self.add_image(&check_image(self.generator, "/image", path, &bytes)?)
    }

    /// Adds an image to the next question, by its preprocessed pixels `[3, S, S]`.
    fn add_image(&mut self, pixels: &[f32]) -> Result<()> {
        self.waiting.extend(self.generator.encode_images(pixels)?);
        Ok(())
    }

    /// Generates the answer to a question and prints it on standard output. A question that cannot
    /// be used is reported and removed from the conversation.
    fn ask(&mut self, question: &str) -> Result<()> {
        let num_tags = question.matches(IMAGE_TAG).count();
        let (num_turns, num_shown) = (self.turns.len(), self.shown.len());
        self.turns.push(user_turn(question, self.waiting.len()));
        self.shown.extend(self.waiting.iter().map(Tensor::shallow_clone));
        match self.generate() {
            Ok(text) => {
                self.waiting.clear();
                self.turns.push(Turn::new(Role::Assistant, text));
            }
            Err(error) => {
                eprintln!("{error:#}; the question is ignored");
                if num_tags > 0 {
                    eprintln!("each {IMAGE_TAG} stands for an image that was added with /image");
                }
                self.turns.truncate(num_turns);
                self.shown.truncate(num_shown);
            }
        }
        Ok(())
    }

    /// Generates the next turn, prints it as it is generated, and returns it.
    fn generate(&self) -> Result<String> {
        let prompt = self
            .generator
            .encode_prompt(&self.turns, self.shown.len())
            .map_err(InferError::from)?;
        let images = if self.shown.is_empty() {
            ImageInput::None
        } else {
            ImageInput::Features(Tensor::cat(&self.shown, 0))
        };
        let printed = print_streaming(self.generator, &prompt, images)?;
        tracing::debug!("{}", printed.speed());
        Ok(printed.text)
    }
}
