//! What a run measures of itself: `metrics.jsonl`, and the line on the terminal.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;

use crate::TrainError;
use crate::event_file::EventFile;
use vlm_infer::eval::EvalReport;

/// What a run has done so far, over all epochs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub struct Counters {
    /// Micro-batches done.
    pub step: u64,
    /// Updates of the weights.
    pub update: u64,
    /// Rows trained on.
    pub samples: u64,
    /// Their tokens, without padding.
    pub tokens: u64,
    /// Their supervised tokens.
    pub supervised_tokens: u64,
    /// Updates left out because loss or gradient was not finite.
    pub skipped_updates: u64,
    /// Micro-batches without anything to learn.
    pub empty_steps: u64,
    /// Distinct rejected rows.
    pub rejected_rows: u64,
}

/// One line of `metrics.jsonl`.
#[derive(Debug, Clone, Serialize)]
pub struct LogLine {
    /// Micro-batches done, from 1.
    pub step: u64,
    /// Updates done.
    pub update: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Loss of this micro-batch in nats a supervised token; absent when it had none.
    pub loss: Option<f64>,
    /// The experts' auxiliary loss; absent without experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_loss: Option<f64>,
    /// Learning rate of this micro-batch.
    pub lr: f64,
    /// Gradient norm before clipping, where an update ended.
    pub grad_norm: Option<f64>,
    /// Rows trained on so far.
    pub samples: u64,
    /// Their tokens.
    pub tokens: u64,
    /// Their supervised tokens.
    pub supervised_tokens: u64,
    /// Rows a second since the line before.
    pub samples_per_sec: f64,
    /// Tokens a second since the line before.
    pub tokens_per_sec: f64,
    /// Time a micro-batch waited for data, mean since the line before.
    pub data_wait_ms: f64,
    /// Time a micro-batch took, waiting included, mean since the line before.
    pub step_ms: f64,
    /// Most memory used at once.
    pub peak_memory_bytes: u64,
    /// Updates left out so far.
    pub skipped_updates: u64,
    /// Rejected rows so far.
    pub rejected_rows: u64,
}

/// A line of `metrics.jsonl` with a judgement on the way. It has no `loss`, so that the two kinds
/// can be told apart.
#[derive(Debug, Clone, Serialize)]
pub struct EvalLine {
    /// Micro-batches done.
    pub step: u64,
    /// Updates done.
    pub update: u64,
    /// Epoch, from 0.
    pub epoch: u64,
    /// Cross-entropy in nats a supervised token.
    pub eval_loss: Option<f64>,
    /// e to the loss.
    pub eval_perplexity: Option<f64>,
    /// Rows that the loss is of.
    pub eval_rows: u64,
    /// Rows that could not be used.
    pub eval_rejected_rows: u64,
    /// Tokens that the loss is of.
    pub eval_supervised_tokens: u64,
    /// Rows answered.
    pub eval_captions: u64,
    /// Share of these answered to the last character.
    pub eval_exact: Option<f64>,
    /// Mean F1 of their words.
    pub eval_token_f1: Option<f64>,
    /// How long it took.
    pub eval_secs: f64,
}

impl EvalLine {
    /// Of a judgement after `counters`.
    pub fn new(counters: Counters, epoch: u64, report: &EvalReport) -> Self {
        Self {
            step: counters.step,
            update: counters.update,
            epoch,
            eval_loss: report.loss,
            eval_perplexity: report.perplexity,
            eval_rows: report.rows,
            eval_rejected_rows: report.rejected_rows,
            eval_supervised_tokens: report.supervised_tokens,
            eval_captions: report.captions,
            eval_exact: report.exact,
            eval_token_f1: report.token_f1,
            eval_secs: report.secs,
        }
    }
}

/// Appends [`LogLine`]s and [`EvalLine`]s to a file.
#[derive(Debug)]
pub struct MetricsFile {
    path: PathBuf,
    file: File,
    events: Option<EventFile>,
}

impl MetricsFile {
    /// Opens the file for appending.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn open(path: &Path) -> Result<Self, TrainError> {
        let file = File::options().create(true).append(true).open(path);
        Ok(Self {
            path: path.to_owned(),
            file: file.map_err(|e| TrainError::at(path, format!("cannot write metrics: {e}")))?,
            events: None,
        })
    }

    /// Opens the file to go on after `step`: lines of later steps, which a run that ended hard may
    /// have left, are dropped, and will be written anew.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn open_after(path: &Path, step: u64) -> Result<Self, TrainError> {
        let text = match std::fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(TrainError::at(path, format!("cannot read metrics: {error}")));
            }
        };
        // A line torn by the end does not parse.
        let is_kept = |line: &&[u8]| {
            line.ends_with(b"\n")
                && serde_json::from_slice::<Step>(line).is_ok_and(|line| line.step <= step)
        };
        let kept: Vec<&[u8]> =
            text.split_inclusive(|&byte| byte == b'\n').filter(is_kept).collect();
        let kept = kept.concat();
        if kept != text {
            vlm_torch::write_atomically(path, |file| {
                file.write_all(&kept).map_err(|e| TrainError::at(path, e))
            })?;
        }
        Self::open(path)
    }

    /// Writes every number of a line to `events` too, under the names that it has here.
    pub fn with_events(self, events: EventFile) -> Self {
        Self { events: Some(events), ..self }
    }

    /// Writes one line, whole.
    ///
    /// # Errors
    /// The system's, with the path (a full disk, say); the file was removed meanwhile.
    pub fn append(&mut self, line: &impl Serialize) -> Result<(), TrainError> {
        // What is written to a removed file succeeds and is lost.
        if self.file.metadata().is_ok_and(|found| found.nlink() == 0) {
            return Err(TrainError::at(
                &self.path,
                "the file was removed while the run was writing to it, and nothing more is written",
            ));
        }
        let value = serde_json::to_value(line).map_err(|e| TrainError::at(&self.path, e))?;
        self.file
            .write_all(format!("{value}\n").as_bytes())
            .map_err(|e| TrainError::at(&self.path, format!("cannot write metrics: {e}")))?;
        let (Some(events), Some(fields)) = (&mut self.events, value.as_object()) else {
            return Ok(());
        };
        let scalars: Vec<(&str, f64)> = fields
            .iter()
            .filter(|(name, _)| *name != "step")
            .filter_map(|(name, value)| Some((name.as_str(), value.as_f64()?)))
            .collect();
        let step = value["step"].as_u64().unwrap_or(0);
        events.scalars(step, &scalars)
    }
}

/// The part of a line that says which step it is of.
#[derive(serde::Deserialize)]
struct Step {
    step: u64,
}

/// The last step that the file at `path` has a line of; `None` where there is no file or no line.
pub fn last_step(path: &Path) -> Option<u64> {
    let text = std::fs::read(path).ok()?;
    let lines = text.split(|&byte| byte == b'\n');
    lines.filter_map(|line| serde_json::from_slice::<Step>(line).ok()).map(|line| line.step).max()
}

/// Measures speed between two log lines.
#[derive(Debug)]
pub struct Meter {
    since: Instant,
    at: Counters,
    data_wait: Duration,
}

/// What a [`Meter`] found.
#[derive(Debug, Clone, Copy)]
pub struct Speed {
    /// Rows a second.
    pub samples_per_sec: f64,
    /// Tokens a second.
    pub tokens_per_sec: f64,
    /// Mean wait for data, milliseconds a micro-batch.
    pub data_wait_ms: f64,
    /// Mean time, milliseconds a micro-batch.
    pub step_ms: f64,
}

impl Meter {
    /// Starts measuring from these counts on.
    pub fn start(counters: Counters) -> Self {
        Self { since: Instant::now(), at: counters, data_wait: Duration::ZERO }
    }

    /// Adds time spent waiting for a batch.
    pub fn waited(&mut self, time: Duration) {
        self.data_wait += time;
    }

    /// Leaves out time that was not training.
    pub fn paused(&mut self, time: Duration) {
        self.since += time;
    }

    /// Speed since the last call, and starts anew.
    pub fn lap(&mut self, now: Counters) -> Speed {
        let secs = self.since.elapsed().as_secs_f64().max(1e-9);
        let steps = (now.step - self.at.step).max(1) as f64;
        let speed = Speed {
            samples_per_sec: (now.samples - self.at.samples) as f64 / secs,
            tokens_per_sec: (now.tokens - self.at.tokens) as f64 / secs,
            data_wait_ms: self.data_wait.as_secs_f64() * 1e3 / steps,
            step_ms: secs * 1e3 / steps,
        };
        *self = Self::start(now);
        speed
    }
}

/// The line on the terminal, or nothing where there is none.
#[derive(Debug)]
pub struct Display {
    bar: ProgressBar,
    smoothed_loss: Option<f64>,
}

impl Display {
    /// A bar over `total_steps` of which `done` are behind.
    pub fn new(total_steps: u64, done: u64, visible: bool) -> Self {
        let bar = if visible { ProgressBar::new(total_steps) } else { ProgressBar::hidden() };
        let style = "{bar:24} {pos}/{len}  {msg}  left {eta}";
        bar.set_style(
            ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        bar.set_position(done);
        bar.reset_eta();
        Self { bar, smoothed_loss: None }
    }

    /// Moves the bar to a step just done.
    pub fn step(&mut self, step: u64, loss: Option<f64>, lr: f64, samples_per_sec: f64) {
        if let Some(loss) = loss {
            self.smoothed_loss =
                Some(self.smoothed_loss.map_or(loss, |old| 0.9 * old + 0.1 * loss));
        }
        let loss = self.smoothed_loss.map_or("–".into(), |loss| format!("{loss:.4}"));
        self.bar.set_message(format!("loss {loss}  lr {lr:.2e}  {samples_per_sec:.1} samples/s"));
        self.bar.set_position(step);
    }

    /// Prints a line above the bar, or through the log where there is no bar.
    pub fn say(&self, text: &str) {
        if self.bar.is_hidden() {
            tracing::info!("{text}");
        } else {
            self.bar.println(text);
        }
    }

    /// Takes the bar away.
    pub fn finish(&self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_goes_on_after_its_checkpoint_without_repeating_steps() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        std::fs::write(&path, "{\"step\":1}\n{\"step\":2}\n{\"step\":3}\n{\"st").unwrap();
        MetricsFile::open_after(&path, 2).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{\"step\":1}\n{\"step\":2}\n");
        let none = folder.path().join("none.jsonl");
        MetricsFile::open_after(&none, 0).unwrap();
        assert_eq!(std::fs::read_to_string(&none).unwrap(), "");
    }
}
