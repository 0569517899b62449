//! Profiles some steps of a run: a trace of their operators, and a table of where their time goes.

use std::io::Write;
use std::path::PathBuf;

use tch::Device;
use vlm_display::{Align, Table, count};
use vlm_torch::{Profiler, SpanTime};

use crate::TrainError;

/// Name of the trace in a run's folder.
pub const TRACE_FILE: &str = "trace.json";
/// Name of the table in a run's folder.
pub const TABLE_FILE: &str = "profile.txt";
/// Steps before the profile, in which threads start and memory is allocated.
const WARMUP_STEPS: u64 = 3;

/// The profile of a run's first steps.
#[derive(Debug)]
pub struct StepProfile {
    folder: PathBuf,
    device: Device,
    /// Number of steps to profile.
    num_steps: u64,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Starts after this number of steps.
    Waiting {
        steps: u64,
    },
    /// Runs, and has recorded this number of steps.
    Running {
        profiler: Profiler,
        steps: u64,
    },
    Done,
}

impl StepProfile {
    /// A profile of `num_steps` steps, with its files in `folder`. It leaves out the first steps of
    /// the `steps_left` of the run, if there are enough.
    pub fn new(folder: PathBuf, device: Device, num_steps: u64, steps_left: u64) -> Self {
        let steps = WARMUP_STEPS.min(steps_left.saturating_sub(num_steps));
        Self { folder, device, num_steps, state: State::Waiting { steps } }
    }

    /// Call it before each step, outside of any span: starts the recording or ends it.
    ///
    /// # Errors
    /// A failure of libtorch or of the file system, with the path.
    pub fn before_step(&mut self) -> Result<(), TrainError> {
        match &mut self.state {
            State::Waiting { steps: 0 } => {
                self.state = State::Running { profiler: Profiler::start(self.device)?, steps: 0 };
            }
            State::Waiting { steps } => *steps -= 1,
            State::Running { steps, .. } => {
                *steps += 1;
                if *steps == self.num_steps {
                    return self.finish(self.num_steps);
                }
            }
            State::Done => {}
        }
        Ok(())
    }

    /// Call it after the last step, outside of any span: ends a recording that is not complete.
    ///
    /// # Errors
    /// As [`Self::before_step`].
    pub fn after_last_step(&mut self) -> Result<(), TrainError> {
        match &self.state {
            State::Running { steps, .. } => self.finish(steps + 1),
            State::Waiting { .. } | State::Done => Ok(()),
        }
    }

    fn finish(&mut self, num_steps: u64) -> Result<(), TrainError> {
        let State::Running { profiler, .. } = std::mem::replace(&mut self.state, State::Done)
        else {
            return Ok(());
        };
        let (trace, path) = (self.folder.join(TRACE_FILE), self.folder.join(TABLE_FILE));
        let times = profiler.finish(&trace).map_err(|e| TrainError::at(&trace, e))?;
        let steps = count(num_steps, "step");
        let text =
            format!("{steps}, with the profiler, which slows them\n{}", table(&times, num_steps));
        vlm_torch::write_atomically(&path, |file| {
            file.write_all(text.as_bytes()).map_err(|e| TrainError::at(&path, e))
        })?;
        tracing::info!("profile of {text}{} and {}", path.display(), trace.display());
        Ok(())
    }
}

/// For each part its time per step and its share, the longest first.
fn table(times: &[SpanTime], num_steps: u64) -> Table {
    let total: f64 = times.iter().map(|time| time.own.as_secs_f64()).sum();
    let mut sorted = times.to_vec();
    sorted.sort_by_key(|time| std::cmp::Reverse(time.own));
    let head = ["part of a step", "ms", "share"];
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Right]).with_head(&head);
    let rows = sorted.iter().map(|time| (time.name, time.own.as_secs_f64()));
    for (name, secs) in rows.chain([("whole step", total)]) {
        let ms = format!("{:.1}", secs * 1e3 / num_steps as f64);
        table.push(&[&name, &ms, &format!("{:.1}%", 100.0 * secs / total)]);
    }
    table
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn warm_up_is_left_out_only_if_enough_steps_are_left() {
        for (num_steps, steps_left, expected) in [(5, 100, 3), (5, 6, 1), (5, 5, 0), (5, 2, 0)] {
            let profile = StepProfile::new(PathBuf::new(), Device::Cpu, num_steps, steps_left);
            assert!(matches!(profile.state, State::Waiting { steps } if steps == expected));
        }
    }

    #[test]
    fn the_table_has_times_per_step_and_their_sum() {
        let time = |name, ms| SpanTime { name, own: Duration::from_millis(ms) };
        let table = table(&[time("loss", 10), time("backward pass", 30)], 2);
        assert_eq!(table.rows[0], ["backward pass", "15.0", "75.0%"]);
        assert_eq!(table.rows[2], ["whole step", "20.0", "100.0%"]);
    }
}
