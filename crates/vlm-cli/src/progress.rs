//! Shows the progress of a training on standard error: a line that is renewed on a terminal, lines of
//! the log otherwise, or JSON objects.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use vlm_display::count;
use vlm_train::{EvalLine, Event, EventSink, LogLine, StepReport, TrainError};

use crate::exit::logs_json;

/// Where no line is renewed, the log has a line at least this often. Where one is, it has a line at
/// most this often.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// A progress bar of the given style on standard error; hidden if that is not a terminal.
pub fn progress_bar(style: &str) -> ProgressBar {
    let is_visible = std::io::stderr().is_terminal() && !logs_json();
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
    num_epochs: u64,
    last_step: u64,
    /// The first step of this process, and when it began.
    started: (u64, Instant),
    last_line: Instant,
    mfu: Option<f64>,
}

impl TrainingProgress {
    /// A line that appears when the training of `num_epochs` epochs starts.
    pub fn new(num_epochs: u64) -> Self {
        Self {
            bar: progress_bar("{bar:24} {pos}/{len}  {msg}"),
            smoothed_loss: None,
            num_epochs,
            last_step: 0,
            started: (0, Instant::now()),
            last_line: Instant::now(),
            mfu: None,
        }
    }

    fn show_step(&mut self, report: &StepReport, now: Instant) {
        if let Some(loss) = report.loss {
            self.smoothed_loss =
                Some(self.smoothed_loss.map_or(loss, |old| 0.9 * old + 0.1 * loss));
        }
        let speed = self.speed(report.step, report.samples_per_sec, now);
        let state = format!("loss {}  lr {:.2e}  {speed}", decimal(self.smoothed_loss), report.lr);
        if self.bar.is_hidden() && self.is_line_due(now) {
            self.print(&format!("step {}/{}  {state}", report.step, self.last_step), now);
        }
        self.bar.set_message(state);
        self.bar.set_position(report.step);
    }

    fn show_log_line(&mut self, line: &LogLine, now: Instant) {
        self.mfu = line.mfu;
        let is_end = line.step == self.last_step || line.step == self.started.0 + 1;
        if self.bar.is_hidden() || is_end || self.is_line_due(now) {
            self.print(&self.step_line(line, now), now);
        }
    }

    fn is_line_due(&self, now: Instant) -> bool {
        now - self.last_line >= BETWEEN_LINES
    }

    fn step_line(&self, line: &LogLine, now: Instant) -> String {
        format!(
            "step {}/{}  epoch {}/{}  loss {}  lr {:.3e}  {}",
            line.step,
            self.last_step,
            line.epoch + 1,
            self.num_epochs,
            decimal(line.loss),
            line.lr,
            self.speed(line.step, line.samples_per_sec, now)
        )
    }

    /// Rate, MFU and the time left after `step`, as far as they are known.
    fn speed(&self, step: u64, samples_per_sec: f64, now: Instant) -> String {
        let mfu = self.mfu.map_or(String::new(), |mfu| format!("  MFU {:.1}%", 100.0 * mfu));
        let (first, since) = self.started;
        let left = match step.saturating_sub(first) {
            0 => 0.0,
            done => {
                let steps_left = self.last_step.saturating_sub(step) as f64;
                (now - since).as_secs_f64() / done as f64 * steps_left
            }
        };
        let left = if left > 0.0 { format!("  left {}", duration(left)) } else { String::new() };
        format!("{samples_per_sec:.1} rows/s{mfu}{left}")
    }

    /// Prints a line above the bar, or logs it if the bar is hidden.
    fn print(&mut self, line: &str, now: Instant) {
        self.last_line = now;
        if self.bar.is_hidden() {
            tracing::info!("{line}");
        } else {
            self.bar.println(line);
        }
    }

    fn show(&mut self, event: &Event, now: Instant) {
        match event {
            Event::Started { done_steps, last_step } => {
                (self.started, self.last_step) = ((*done_steps, now), *last_step);
                self.last_line = now;
                self.bar.set_length(*last_step);
                self.bar.set_position(*done_steps);
            }
            Event::Step(report) => self.show_step(report, now),
            Event::Log(line) => self.show_log_line(line, now),
            Event::Evaluation(line) => self.print(&evaluation_line(line), now),
            Event::Ended => self.bar.finish_and_clear(),
            _ => {}
        }
    }
}

impl EventSink for TrainingProgress {
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        match event.to_json_line() {
            Ok(Some(line)) if logs_json() => {
                let mut all = serde_json::json!({ "level": "INFO", "message": "metrics" });
                if let (Some(all), Some(line)) = (all.as_object_mut(), line.as_object()) {
                    all.extend(line.clone());
                }
                eprintln!("{all}");
            }
            _ => self.show(event, Instant::now()),
        }
        Ok(())
    }
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

/// A duration in its largest fitting unit: `45 s`, `12 min`, `3.4 h`.
fn duration(secs: f64) -> String {
    match secs {
        _ if secs >= 7200.0 => format!("{:.1} h", secs / 3600.0),
        _ if secs >= 120.0 => format!("{:.0} min", secs / 60.0),
        _ => format!("{secs:.0} s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_left_follows_from_the_steps_of_this_process() {
        let began = Instant::now();
        let mut progress = TrainingProgress::new(3);
        progress.show(&Event::Started { done_steps: 100, last_step: 400 }, began);
        let secs = |secs: u64| began + Duration::from_secs(secs);
        assert!(!progress.is_line_due(secs(9)) && progress.is_line_due(secs(10)));
        let after = secs(50);
        assert_eq!(progress.speed(150, 8.0, after), "8.0 rows/s  left 4 min");
        assert_eq!(progress.speed(400, 8.0, after), "8.0 rows/s");
        progress.mfu = Some(0.345);
        assert_eq!(progress.speed(100, 8.0, began), "8.0 rows/s  MFU 34.5%");
    }

    #[test]
    fn durations_are_in_units_that_fit() {
        assert_eq!(
            [4.6, 119.0, 750.0, 12_240.0].map(duration),
            ["5 s", "119 s", "12 min", "3.4 h"]
        );
    }
}
