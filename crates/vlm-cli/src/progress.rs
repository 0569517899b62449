//! Shows the progress of a training on standard error: a line that is renewed on a terminal, lines of
//! the log otherwise, or JSON objects.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use terminal_size::{Width, terminal_size_of};
use vlm_display::count;
use vlm_train::{EvalLine, Event, EventSink, LogLine, StepReport, TrainError};

use crate::log;

/// Where no line is renewed, the log has a line at least this often. Where one is, it has a line at
/// most this often.
const BETWEEN_LINES: Duration = Duration::from_secs(10);

/// How often in a second the line on a terminal is renewed, at most: more often, its numbers could
/// not be read.
const RENEWALS_PER_SEC: u8 = 4;

/// A terminal with fewer columns shows no bar beside the numbers.
const COLUMNS_WITH_BAR: usize = 72;

/// A progress bar of the given style on standard error; hidden if that is not a terminal.
pub fn progress_bar(style: &str) -> ProgressBar {
    let is_visible = std::io::stderr().is_terminal() && !log::is_json();
    let target = match is_visible {
        true => ProgressDrawTarget::stderr_with_hz(RENEWALS_PER_SEC),
        false => ProgressDrawTarget::hidden(),
    };
    ProgressBar::with_draw_target(Some(0), target).with_style(style_of(style))
}

fn style_of(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

/// Number of columns of the terminal on standard error; `usize::MAX` if it is none or unknown.
fn terminal_columns() -> usize {
    match terminal_size_of(std::io::stderr()) {
        Some((Width(columns), _)) if columns > 0 => columns.into(),
        _ => usize::MAX,
    }
}

/// The parts in their order with two spaces between them, without those for which `columns` are too
/// few. An earlier part has precedence.
fn fitting<const N: usize>(parts: [String; N], columns: usize) -> String {
    let mut line = String::new();
    for part in parts.into_iter().filter(|part| !part.is_empty()) {
        let gap = if line.is_empty() { "" } else { "  " };
        if line.chars().count() + gap.len() + part.chars().count() <= columns {
            line = line + gap + &part;
        }
    }
    line
}

/// An event sink that shows the progress of a training run.
#[derive(Debug)]
pub struct TrainingProgress {
    bar: ProgressBar,
    /// Whether the line begins with a bar.
    has_bar: bool,
    smoothed_loss: Option<f64>,
    num_epochs: u64,
    last_step: u64,
    /// Number of the first step of this process.
    first_step: u64,
    /// Number of steps done when the measurement of the time began, and when that was: at the start,
    /// and again after the first step, which is slower than all others.
    measured_from: (u64, Instant),
    last_line: Instant,
}

/// The numbers of a step that a line shows.
#[derive(Debug, Clone, Copy)]
struct StepNumbers {
    step: u64,
    epoch: u64,
    loss: Option<f64>,
    lr: f64,
    samples_per_sec: f64,
    mfu: Option<f64>,
}

impl From<&StepReport> for StepNumbers {
    fn from(report: &StepReport) -> Self {
        let StepReport { step, epoch, loss, lr, samples_per_sec, mfu, .. } = *report;
        Self { step, epoch, loss, lr, samples_per_sec, mfu }
    }
}

impl From<&LogLine> for StepNumbers {
    fn from(line: &LogLine) -> Self {
        let LogLine { step, epoch, loss, lr, samples_per_sec, mfu, .. } = *line;
        Self { step, epoch, loss, lr, samples_per_sec, mfu }
    }
}

impl TrainingProgress {
    /// A line that appears when the training of `num_epochs` epochs starts.
    pub fn new(num_epochs: u64) -> Self {
        Self {
            bar: progress_bar("{msg}"),
            has_bar: false,
            smoothed_loss: None,
            num_epochs,
            last_step: 0,
            first_step: 1,
            measured_from: (0, Instant::now()),
            last_line: Instant::now(),
        }
    }

    fn show_step(&mut self, report: &StepReport, now: Instant) {
        if report.step == self.first_step {
            self.measured_from = (report.step, now);
        }
        if let Some(loss) = report.loss {
            self.smoothed_loss =
                Some(self.smoothed_loss.map_or(loss, |old| 0.9 * old + 0.1 * loss));
        }
        let loss = report.loss.or(self.smoothed_loss);
        let numbers = StepNumbers { loss, ..report.into() };
        if self.bar.is_hidden() {
            if self.is_line_due(now) && !report.is_logged {
                self.print(&self.step_line(numbers, now), now);
            }
            return;
        }
        let columns = terminal_columns();
        let has_bar = columns >= COLUMNS_WITH_BAR;
        if has_bar != self.has_bar {
            self.has_bar = has_bar;
            self.bar.set_style(style_of(if has_bar { "{bar:8} {msg}" } else { "{msg}" }));
        }
        let columns = columns.saturating_sub(if has_bar { 9 } else { 0 });
        let numbers = StepNumbers { loss: self.smoothed_loss, ..numbers };
        let parts = self.bar_parts(numbers, now);
        self.bar.set_message(fitting(parts, columns));
        self.bar.set_position(report.step);
    }

    /// What the renewed line shows, the most important part first.
    fn bar_parts(&self, numbers: StepNumbers, now: Instant) -> [String; 6] {
        [
            format!("{}/{}", numbers.step, self.last_step),
            format!("loss {}", decimal(numbers.loss)),
            self.time_left(numbers.step, now),
            format!("{:.1} rows/s", numbers.samples_per_sec),
            utilization(numbers.mfu),
            format!("lr {:.1e}", numbers.lr),
        ]
    }

    fn show_log_line(&mut self, line: &LogLine, now: Instant) {
        let is_end = line.step == self.last_step || line.step == self.first_step;
        if self.bar.is_hidden() || is_end || self.is_line_due(now) {
            self.print(&self.step_line(line.into(), now), now);
        }
    }

    fn is_line_due(&self, now: Instant) -> bool {
        now - self.last_line >= BETWEEN_LINES
    }

    fn step_line(&self, numbers: StepNumbers, now: Instant) -> String {
        let parts = [
            format!("step {}/{}", numbers.step, self.last_step),
            format!("epoch {}/{}", numbers.epoch + 1, self.num_epochs),
            format!("loss {}", decimal(numbers.loss)),
            format!("lr {:.2e}", numbers.lr),
            format!("{:.1} rows/s", numbers.samples_per_sec),
            utilization(numbers.mfu),
            self.time_left(numbers.step, now),
        ];
        // A log keeps all parts; a line above the bar must not be broken.
        fitting(parts, if self.bar.is_hidden() { usize::MAX } else { terminal_columns() })
    }

    /// The time left after `step`; empty where it is not known.
    fn time_left(&self, step: u64, now: Instant) -> String {
        let (from, since) = self.measured_from;
        let done = step.saturating_sub(from);
        let steps_left = self.last_step.saturating_sub(step);
        if done == 0 || steps_left == 0 {
            return String::new();
        }
        let left = (now - since).as_secs_f64() / done as f64 * steps_left as f64;
        format!("left {}", duration(left))
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
                (self.measured_from, self.last_step) = ((*done_steps, now), *last_step);
                self.first_step = done_steps + 1;
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
            Ok(Some(line)) if log::is_json() => {
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

/// The MFU in percent; empty if it is not known.
fn utilization(mfu: Option<f64>) -> String {
    mfu.map_or(String::new(), |mfu| format!("MFU {:.1}%", 100.0 * mfu))
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
        assert_eq!(progress.time_left(150, after), "left 4 min");
        assert_eq!(progress.time_left(400, after), "");
        assert_eq!([None, Some(0.345)].map(utilization), ["", "MFU 34.5%"]);
    }

    #[test]
    fn a_line_fits_the_terminal_without_cut_words() {
        let began = Instant::now();
        let mut progress = TrainingProgress::new(3);
        progress.show(&Event::Started { done_steps: 0, last_step: 12_345 }, began);
        let numbers = StepNumbers {
            step: 1234,
            epoch: 0,
            loss: Some(1.5),
            lr: 4e-4,
            samples_per_sec: 1234.5,
            mfu: Some(0.345),
        };
        let line = |columns: usize| {
            let parts = progress.bar_parts(numbers, began + Duration::from_secs(90));
            fitting(parts, columns)
        };
        let all = "1234/12345  loss 1.5000  left 14 min  1234.5 rows/s  MFU 34.5%  lr 4.0e-4";
        // With the bar and a space these are 81 columns: only such a long run loses a part.
        assert_eq!(line(80), all);
        assert_eq!(line(71), "1234/12345  loss 1.5000  left 14 min  1234.5 rows/s  MFU 34.5%");
        assert_eq!(line(40), "1234/12345  loss 1.5000  left 14 min");
        assert_eq!(line(5), "");
    }

    #[test]
    fn durations_are_in_units_that_fit() {
        assert_eq!(
            [4.6, 119.0, 750.0, 12_240.0].map(duration),
            ["5 s", "119 s", "12 min", "3.4 h"]
        );
    }
}
