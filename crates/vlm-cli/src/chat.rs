//! A conversation in the terminal, or line by line from standard input.

use std::io::{BufRead, IsTerminal, Write};
use std::path::Path;

use anyhow::{Context, Result};
use tch::Tensor;
use vlm_data::{IMAGE_TAG, Role, Turn};
use vlm_infer::answer::Answerer;
use vlm_model::ImageInput;

use crate::generate::{read_image, tell, with_image_tags};

const HELP: &str = "/image FILE shows a picture with the next question, /reset begins anew, /exit \
                    or the end of input ends";

/// What was said, and the pictures that were shown.
struct Conversation<'a> {
    answerer: &'a Answerer<'a>,
    /// The turns before the first question.
    opening: Vec<Turn>,
    turns: Vec<Turn>,
    /// Each picture's patch features `[1, P, V]`: the encoder sees a picture once.
    shown: Vec<Tensor>,
    /// Pictures for the next question.
    waiting: Vec<Tensor>,
}

/// Talks until the input ends. `images` are shown with the first question.
pub fn run(answerer: &Answerer, opening: Vec<Turn>, images: &[Vec<u8>]) -> Result<()> {
    let mut talk = Conversation {
        answerer,
        turns: opening.clone(),
        opening,
        shown: Vec::new(),
        waiting: Vec::new(),
    };
    for image in images {
        talk.show(image)?;
    }
    let is_terminal = std::io::stdin().is_terminal();
    if is_terminal {
        eprintln!("{HELP}");
    }
    let mut lines = std::io::stdin().lock().lines();
    loop {
        if is_terminal {
            eprint!("> ");
            // A prompt that is not seen is no reason to end.
            let _ = std::io::stderr().flush();
        }
        let Some(line) = lines.next() else { return Ok(()) };
        let line = line.context("reading standard input")?;
        match line.trim() {
            "" => {}
            "/exit" => return Ok(()),
            "/reset" => {
                talk.turns = talk.opening.clone();
                talk.shown.clear();
                talk.waiting.clear();
            }
            command if command.starts_with('/') => {
                let shown = match command.split_once(char::is_whitespace) {
                    Some(("/image", path)) => {
                        read_image(Path::new(path.trim())).and_then(|bytes| talk.show(&bytes))
                    }
                    _ => Err(anyhow::anyhow!("{command} is no command; {HELP}")),
                };
                if let Err(error) = shown {
                    eprintln!("{error:#}");
                }
            }
            question => talk.ask(question)?,
        }
    }
}

impl Conversation<'_> {
    fn show(&mut self, image: &[u8]) -> Result<()> {
        let pixels = self.answerer.processor.preprocess(image)?;
        if let ImageInput::Pixels(pixels) = self.answerer.images(&pixels) {
            let model = self.answerer.model;
            let kind = vlm_infer::autocast_kind(self.answerer.dtype);
            let features = tch::no_grad(|| {
                vlm_torch::autocast(model.device(), kind, || model.encode_images(&pixels))
            })??;
            self.waiting.push(features);
        }
        Ok(())
    }

    /// Answers on standard output. What cannot be asked is said and forgotten.
    fn ask(&mut self, question: &str) -> Result<()> {
        let num_tags = question.matches(IMAGE_TAG).count();
        let (num_turns, num_shown) = (self.turns.len(), self.shown.len());
        self.turns.push(Turn::new(Role::User, with_image_tags(question, self.waiting.len())));
        self.shown.extend(self.waiting.iter().map(Tensor::shallow_clone));
        let told = self.answer();
        match told {
            Ok(text) => {
                self.waiting.clear();
                self.turns.push(Turn::new(Role::Assistant, text));
            }
            Err(error) => {
                eprintln!("{error:#}; the question is forgotten");
                if num_tags > 0 {
                    eprintln!("{IMAGE_TAG} stands for a picture given by /image");
                }
                self.turns.truncate(num_turns);
                self.shown.truncate(num_shown);
            }
        }
        Ok(())
    }

    fn answer(&self) -> Result<String> {
        let prompt = self.answerer.prompt(&self.turns, self.shown.len())?;
        let images = if self.shown.is_empty() {
            ImageInput::None
        } else {
            ImageInput::Features(Tensor::cat(&self.shown, 0))
        };
        let told = tell(self.answerer, &prompt, images)?;
        tracing::debug!("{}", told.speed());
        Ok(told.text)
    }
}
