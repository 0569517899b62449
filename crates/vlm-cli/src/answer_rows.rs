//! Many answers at once, a JSON line each.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vlm_data::{Role, Turn, open_source};
use vlm_infer::answer::Answerer;
use vlm_train::TrainError;

use crate::generate::{usage, with_image_tags};

/// What all prompts have in common.
pub struct Asked<'a> {
    /// The turns before the question.
    pub system: &'a [Turn],
    /// The pictures, encoded.
    pub images: &'a [Vec<u8>],
}

/// Answers each line of `file`: `{"prompt", "answer"}`.
pub fn of_prompts(
    answerer: &Answerer,
    asked: &Asked,
    file: &Path,
    output: Option<&Path>,
) -> Result<()> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| TrainError::unusable(format!("--prompts-file {}: {e}", file.display()), &e))?;
    let prompts: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if prompts.is_empty() {
        let text = format!("--prompts-file {}: no line in it", file.display());
        return Err(TrainError::Usage(text).into());
    }
    let mut lines = Lines::open(output)?;
    for prompts in prompts.chunks(answerer.batch_size) {
        let questions: Result<Vec<_>, _> = prompts
            .iter()
            .map(|prompt| {
                let mut turns = asked.system.to_vec();
                turns.push(Turn::new(Role::User, with_image_tags(prompt, asked.images.len())));
                answerer.question(&turns, asked.images)
            })
            .collect();
        let questions = questions.map_err(|e| usage(&e))?;
        for (prompt, answer) in prompts.iter().zip(answerer.answer_batch(&questions)?) {
            lines.write(&json!({ "prompt": prompt, "answer": answer }))?;
        }
    }
    lines.finish()
}

/// Answers the first question of each row of `rows`: `{"row", "answer", "expected"}`, and
/// `{"row", "error"}` where a row cannot be used. `row` is where it stands.
pub fn of_data(
    answerer: &Answerer,
    rows: &Path,
    images_path: Option<&Path>,
    output: Option<&Path>,
) -> Result<()> {
    let source = open_source(rows, images_path)?;
    let mut lines = Lines::open(output)?;
    let all: Vec<usize> = (0..source.len()).collect();
    answerer.answer_rows(source.as_ref(), &all, &mut |first, answers| -> Result<_> {
        for (k, answer) in answers.iter().enumerate() {
            let row = source.locate(first + k);
            let line = match answer {
                Ok(answer) => {
                    json!({ "row": row, "answer": answer.text, "expected": answer.expected })
                }
                Err(reject) => json!({ "row": row, "error": reject.to_string() }),
            };
            lines.write(&line)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    lines.finish()
}

/// JSON lines to a file or standard output.
struct Lines {
    out: Box<dyn Write>,
    name: String,
    num_lines: usize,
    started: Instant,
}

impl Lines {
    fn open(output: Option<&Path>) -> Result<Self> {
        let (out, name): (Box<dyn Write>, String) = match output {
            None => (Box::new(std::io::stdout()), "standard output".into()),
            Some(path) => {
                let file = File::create(path).map_err(|e| {
                    TrainError::unusable(format!("--output {}: {e}", path.display()), &e)
                })?;
                (Box::new(BufWriter::new(file)), path.display().to_string())
            }
        };
        Ok(Self { out, name, num_lines: 0, started: Instant::now() })
    }

    fn write(&mut self, line: &Value) -> Result<()> {
        self.num_lines += 1;
        writeln!(self.out, "{line}").with_context(|| format!("writing to {}", self.name))
    }

    fn finish(mut self) -> Result<()> {
        self.out.flush().with_context(|| format!("writing to {}", self.name))?;
        let secs = self.started.elapsed().as_secs_f64();
        tracing::info!("{} answers in {secs:.1} s, to {}", self.num_lines, self.name);
        Ok(())
    }
}
