//! Generates text for many prompts or rows, and writes a JSON line for each.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::ops::ControlFlow;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use vlm_data::{RowSource, Turn};
use vlm_display::count;
use vlm_infer::{Generator, InferError, user_turn};

use crate::error::CliError;

/// The system message and the images that all prompts share.
pub struct PromptContext<'a> {
    /// The turns before each prompt.
    pub system: &'a [Turn],
    /// The encoded bytes (JPEG, PNG, …) of the images.
    pub images: &'a [Vec<u8>],
}

/// Generates text for each line of `file`, and writes `{"prompt", "answer"}` to `output`, or to
/// standard output.
pub fn for_prompts(
    generator: &Generator,
    context: &PromptContext,
    file: &Path,
    output: Option<&Path>,
) -> Result<()> {
    let text = std::fs::read_to_string(file)
        .map_err(|e| CliError::unusable(format!("--prompts-file {}: {e}", file.display()), &e))?;
    let prompts: Vec<&str> = text.lines().filter(|line| !line.trim().is_empty()).collect();
    if prompts.is_empty() {
        let text = format!(
            "--prompts-file {}: the file has no prompt; expected one prompt per line",
            file.display()
        );
        return Err(CliError::Usage(text).into());
    }
    let mut lines = Lines::open(output)?;
    for prompts in prompts.chunks(generator.batch_size) {
        let prepared: Result<Vec<_>, _> = prompts
            .iter()
            .map(|prompt| {
                let mut turns = context.system.to_vec();
                turns.push(user_turn(prompt, context.images.len()));
                generator.prepare(&turns, context.images)
            })
            .collect();
        let prepared = prepared.map_err(InferError::from)?;
        for (prompt, answer) in prompts.iter().zip(generator.generate_batch(&prepared)?) {
            lines.write(&json!({ "prompt": prompt, "answer": answer }))?;
        }
    }
    lines.finish()
}

/// Generates text for the first question of each row of `source`, and writes `{"row", "answer",
/// "expected"}`, or `{"row", "error"}` for a rejected row. `row` is the location of the row, such
/// as `captions.jsonl:17`.
pub fn for_rows(
    generator: &Generator,
    source: &dyn RowSource,
    output: Option<&Path>,
) -> Result<()> {
    let mut lines = Lines::open(output)?;
    let all: Vec<usize> = (0..source.len()).collect();
    generator.generate_rows(source, &all, &mut |first, completions| -> Result<_> {
        for (k, completion) in completions.iter().enumerate() {
            let row = source.locate(first + k);
            let line = match completion {
                Ok(completion) => {
                    json!({ "row": row, "answer": completion.text, "expected": completion.expected })
                }
                Err(reject) => json!({ "row": row, "error": reject.to_string() }),
            };
            lines.write(&line)?;
        }
        Ok(ControlFlow::Continue(()))
    })?;
    lines.finish()
}

/// Writes JSON lines to a file or standard output.
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
                    CliError::unusable(format!("--output {}: {e}", path.display()), &e)
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
        let lines = count(self.num_lines, "line");
        tracing::info!("wrote {lines} to {} in {secs:.1} s", self.name);
        Ok(())
    }
}
