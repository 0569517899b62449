//! The thread of a rank that speaks to the store: it writes where the rank is, reads where the others
//! are, and passes on what is left for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use vlm_torch::Store;

use super::progress::{Report, Shared};

/// Intervals between two looks at the others while nothing is the matter.
const CALM_INTERVALS: u32 = 8;
/// Between two questions whether rank 0 is done: short at first, so that quick work costs little.
const FIRST_QUESTION: Duration = Duration::from_millis(1);
/// The longest such pause.
const LAST_QUESTION: Duration = Duration::from_millis(100);
/// Number of the last work that rank 0 did alone.
pub(super) const DONE_KEY: &str = "done-by-rank-0";
/// There as soon as a rank that waits for rank 0 was asked to stop.
pub(super) const STOP_KEY: &str = "asked-to-stop";

/// The only thread that speaks to the store.
pub(super) struct Reporter {
    pub(super) store: Store,
    pub(super) shared: Arc<Shared>,
    pub(super) rank: usize,
    pub(super) world_size: usize,
    pub(super) interval: Duration,
    pub(super) number: u64,
}

impl Reporter {
    /// Until it is told to stop, or the store is gone.
    pub(super) fn run(mut self) {
        // A store that is gone shows in the next operation of the group, too.
        let is_over = self.speak_until_told();
        self.shared.tell(|state| {
            state.is_cut_off |= is_over.is_err();
            state.has_ended = true;
        });
    }

    fn speak_until_told(&mut self) -> vlm_torch::Result<()> {
        let (mut next_report, mut next_look) = (Instant::now() + self.interval, Instant::now());
        let (mut question, mut was_watching) = (FIRST_QUESTION, false);
        loop {
            self.send_notes()?;
            let now = Instant::now();
            if now >= next_report {
                self.report()?;
                self.listen()?;
                next_report = now + self.interval;
            }
            let (is_watching, awaited, stop) = {
                let state = self.shared.lock();
                (state.is_watching, state.awaited, state.stop)
            };
            if stop {
                return self.send_notes();
            }
            if is_watching && !was_watching {
                next_look = now;
            }
            was_watching = is_watching;
            if now >= next_look {
                self.look(is_watching)?;
                next_look = now + if is_watching { self.interval } else { self.calm_interval() };
            }
            let mut sleep = next_report.min(next_look).saturating_duration_since(Instant::now());
            if awaited == 0 {
                question = FIRST_QUESTION;
            } else if !self.ask_whether_done(awaited)? {
                sleep = sleep.min(question);
                question = LAST_QUESTION.min(2 * question);
            }
            drop(self.shared.wait(sleep, |state| {
                state.notes.is_empty()
                    && !state.stop
                    && (state.is_watching, state.awaited) == (is_watching, awaited)
            }));
        }
    }

    /// The store answers one question at a time: many ranks ask less often.
    fn calm_interval(&self) -> Duration {
        self.interval * CALM_INTERVALS.max(self.world_size as u32)
    }

    fn send_notes(&self) -> vlm_torch::Result<()> {
        let notes = self.shared.lock().notes.clone();
        for (key, value) in &notes {
            self.store.set(key, value)?;
        }
        if !notes.is_empty() {
            self.shared.tell(|state| drop(state.notes.drain(..notes.len())));
        }
        Ok(())
    }

    /// Writes where this rank is.
    pub(super) fn report(&mut self) -> vlm_torch::Result<()> {
        self.number += 1;
        let report = {
            let state = self.shared.lock();
            Report {
                number: self.number,
                step: state.step,
                phase: state.phase.name().into(),
                phase_ms: state.since.elapsed().as_millis() as u64,
            }
        };
        self.store.set(&report_key(self.rank), &serde_json::to_vec(&report).unwrap_or_default())
    }

    /// On rank 0, while it works alone: whether another rank was asked to stop.
    fn listen(&self) -> vlm_torch::Result<()> {
        if self.shared.lock().listens && self.store.get(STOP_KEY)?.is_some() {
            self.shared.tell(|state| state.stop_is_asked = true);
        }
        Ok(())
    }

    /// Reads what the others have reported, and their last words where that is of interest.
    fn look(&self, is_watching: bool) -> vlm_torch::Result<()> {
        for rank in (0..self.world_size).filter(|&rank| rank != self.rank) {
            let report = self.store.get(&report_key(rank))?;
            let report = report.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let word = if is_watching { self.store.get(&word_key(rank))? } else { None };
            let mut state = self.shared.lock();
            state.answered = Instant::now();
            let other = &mut state.others[rank];
            other.saw(report);
            if !is_watching {
                other.silent_looks = 0;
            }
            other.word = word.map(|word| String::from_utf8_lossy(&word).into_owned());
        }
        self.shared.tell(|state| {
            state.answered = Instant::now();
            state.looks += u64::from(is_watching);
        });
        Ok(())
    }

    fn ask_whether_done(&self, work: u64) -> vlm_torch::Result<bool> {
        let done = self.store.get(DONE_KEY)?;
        let done = done.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse().ok());
        let done = done.unwrap_or(0);
        self.shared.tell(|state| (state.done, state.answered) = (done, Instant::now()));
        Ok(done >= work)
    }
}

fn report_key(rank: usize) -> String {
    format!("progress/{rank}")
}

pub(super) fn word_key(rank: usize) -> String {
    format!("last-word/{rank}")
}
