//! Shows progress on standard error: a progress bar with log lines above it on a terminal, and only
//! log lines otherwise.

use std::io::IsTerminal;

use indicatif::{ProgressBar, ProgressStyle};
use vlm_display::count;
use vlm_train::{EvalLine, Event, EventSink, LogLine, StepReport, TrainError};

/// A progress bar of the given style on standard error; hidden if that is not a terminal.
pub fn progress_bar(style: &str) -> ProgressBar {
    let is_visible = std::io::stderr().is_terminal();
    let bar = if is_visible { ProgressBar::new(0) } else { ProgressBar::hidden() };
    bar.with_style(
        ProgressStyle::with_template(style).unwrap_or_else(|_| ProgressStyle::default_bar()),
    )
}

/// An event sink that shows the progress of a training run.
#[derive(Debug)]
pub struct TrainingProgress {
    bar: ProgressBar,
    smoothed_loss: Option<f64>,
}

impl TrainingProgress {
    /// A bar that appears when the training starts.
    pub fn new() -> Self {
        Self { bar: progress_bar("{bar:24} {pos}/{len}  {msg}  left {eta}"), smoothed_loss: None }
    }

    fn show_step(&mut self, report: &StepReport) {
        if let Some(loss) = report.loss {
            self.smoothed_loss =
                Some(self.smoothed_loss.map_or(loss, |old| 0.9 * old + 0.1 * loss));
        }
        self.bar.set_message(format!(
            "loss {}  lr {:.2e}  {:.1} samples/s",
            decimal(self.smoothed_loss),
            report.lr,
            report.samples_per_sec
        ));
        self.bar.set_position(report.step);
    }

    /// Prints a line above the bar, or logs it if the bar is hidden.
    fn print(&self, line: &str) {
        if self.bar.is_hidden() {
            tracing::info!("{line}");
        } else {
            self.bar.println(line);
        }
    }
}

impl EventSink for TrainingProgress {
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        match event {
            Event::Started { done_steps, last_step } => {
                self.bar.set_length(*last_step);
                self.bar.set_position(*done_steps);
                self.bar.reset_eta();
            }
            Event::Step(report) => self.show_step(report),
            Event::Log(line) => self.print(&step_line(line)),
            Event::Evaluation(line) => self.print(&evaluation_line(line)),
            Event::Ended => self.bar.finish_and_clear(),
            _ => {}
        }
        Ok(())
    }
}

fn step_line(line: &LogLine) -> String {
    let mfu = line.mfu.map_or(String::new(), |mfu| format!("  mfu {:.0}%", 100.0 * mfu));
    format!(
        "step {}  epoch {}  loss {}  lr {:.3e}  {:.1} samples/s{mfu}",
        line.step,
        line.epoch,
        decimal(line.loss),
        line.lr,
        line.samples_per_sec
    )
}

fn evaluation_line(line: &EvalLine) -> String {
    let rejected = match line.eval_rejected_rows {
        0 => String::new(),
        rows => format!(", {rows} rejected"),
    };
    let image_gain =
        line.eval_image_gain.map_or(String::new(), |gain| format!("  image gain {gain:.4}"));
    format!(
        "step {}  held-out loss {}{image_gain}  exact {}  token F1 {}  ({}, {}{rejected})",
        line.step,
        decimal(line.eval_loss),
        decimal(line.eval_exact),
        decimal(line.eval_token_f1),
        count(line.eval_rows, "row"),
        count(line.eval_captions, "caption"),
    )
}

/// The number with four decimals, or a dash for `None`.
fn decimal(value: Option<f64>) -> String {
    value.map_or("–".into(), |value| format!("{value:.4}"))
}
