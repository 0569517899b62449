//! What each rank is doing, written to the store all the time, so that the others can say where a
//! rank hangs or died. A process that is stopped or gone no longer writes.
//!
//! One thread of each rank speaks to the store. Whoever else wants something of it leaves a note and
//! waits for no longer than it can afford: a store whose machine is cut off never answers.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vlm_torch::{GroupOptions, Store};

use super::patience::Patience;
use super::reporter::{DONE_KEY, Reporter, STOP_KEY, word_key};

/// Looks at the others, an interval apart, after which one whose reports have not changed is taken
/// for ended.
const LOOKS_OF_SILENCE: u64 = 3;

/// Parts of a step, as messages name them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Before the first step.
    StartUp,
    /// Waiting for the loader.
    Data,
    /// Telling the other ranks what this one brings.
    Meeting,
    /// Forward and backward pass, gradients on their way.
    ForwardBackward,
    /// Clipping and optimizer.
    Update,
    /// Losses and counters for the log.
    Log,
    /// Judging the model on other rows: rank 0 does, the others wait for it.
    Evaluate,
    /// Writing a checkpoint: rank 0 does, the others wait for it.
    Save,
    /// After the last step.
    End,
}

impl Phase {
    /// As a message says it.
    pub fn name(self) -> &'static str {
        match self {
            Self::StartUp => "start-up",
            Self::Data => "waiting for data",
            Self::Meeting => "meeting the other ranks before the step",
            Self::ForwardBackward => "forward and backward pass",
            Self::Update => "update",
            Self::Log => "collecting the log",
            Self::Evaluate => "evaluation by rank 0",
            Self::Save => "saving by rank 0",
            Self::End => "end of training",
        }
    }
}

/// A rank's word about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Report {
    /// Counts the reports: one that does not change comes from a process that is stopped or gone.
    pub(super) number: u64,
    pub(super) step: u64,
    pub(super) phase: String,
    /// How long it has been in that phase, or since it last showed that it goes on there.
    pub(super) phase_ms: u64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step {}, {} (for {} s)", self.step, self.phase, self.phase_ms / 1000)
    }
}

/// What this rank knows of another.
#[derive(Debug, Clone, Default)]
pub(super) struct Other {
    pub(super) report: Option<Report>,
    /// Looks since the report last changed, while watching.
    pub(super) silent_looks: u64,
    /// Why it ended, in its own words.
    pub(super) word: Option<String>,
}

impl Other {
    pub(super) fn saw(&mut self, report: Option<Report>) {
        let number = |report: &Option<Report>| report.as_ref().map(|report| report.number);
        let has_changed = number(&report) != number(&self.report);
        self.silent_looks = if has_changed { 0 } else { self.silent_looks + 1 };
        self.report = report.or(self.report.take());
    }

    fn describe(&self, rank: usize) -> String {
        match (&self.word, &self.report) {
            (Some(word), _) => format!("rank {rank} ended: {word}"),
            (None, None) => format!("rank {rank} never reported"),
            (None, Some(report)) if self.silent_looks < LOOKS_OF_SILENCE => {
                format!("rank {rank} is at {report}")
            }
            (None, Some(report)) => {
                format!("rank {rank} is stopped, gone or cut off; it last reported {report}")
            }
        }
    }
}

/// What the threads of this rank tell each other.
#[derive(Debug)]
pub(super) struct State {
    pub(super) step: u64,
    pub(super) phase: Phase,
    pub(super) since: Instant,
    pub(super) others: Vec<Other>,
    /// Looks at the others that were answered.
    pub(super) looks: u64,
    /// Whether to look at the others at every interval.
    pub(super) is_watching: bool,
    /// When the store last answered.
    pub(super) answered: Instant,
    /// The store has broken the connection, or has kept this rank waiting for too long: nobody waits
    /// for it again.
    pub(super) is_cut_off: bool,
    /// What to write to the store, by key.
    pub(super) notes: Vec<(String, Vec<u8>)>,
    /// The work of rank 0 that is waited for; 0: none.
    pub(super) awaited: u64,
    /// The last work of rank 0 that is known to be done.
    pub(super) done: u64,
    /// On rank 0: whether it does work that another rank's being asked to stop ends.
    pub(super) listens: bool,
    /// Whether a rank that waits for rank 0 was asked to stop.
    pub(super) stop_is_asked: bool,
    /// Asked of the thread, and said by it.
    pub(super) stop: bool,
    pub(super) has_ended: bool,
}

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) state: Mutex<State>,
    /// Something of the state has changed that is worth looking at.
    pub(super) changed: Condvar,
}

impl Shared {
    pub(super) fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes the state, and wakes those that wait for it.
    pub(super) fn tell(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// Waits while it `is_so`, no longer than `time`; the state after that.
    pub(super) fn wait(
        &self,
        time: Duration,
        is_so: impl Fn(&State) -> bool,
    ) -> MutexGuard<'_, State> {
        let waited = self.changed.wait_timeout_while(self.lock(), time, |state| is_so(state));
        waited.unwrap_or_else(PoisonError::into_inner).0
    }
}

/// Reports this rank's progress from a thread of its own until dropped.
#[derive(Debug)]
pub(super) struct Progress {
    shared: Arc<Shared>,
    rank: usize,
    patience: Patience,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Connects to the store and begins to report.
    pub(super) fn start(options: &GroupOptions, patience: Patience) -> vlm_torch::Result<Self> {
        let store = Store::connect(options, options.timeout)?;
        let now = Instant::now();
        let state = State {
            step: 0,
            phase: Phase::StartUp,
            since: now,
            others: vec![Other::default(); options.world_size],
            looks: 0,
            is_watching: false,
            answered: now,
            is_cut_off: false,
            notes: Vec::new(),
            awaited: 0,
            done: 0,
            listens: false,
            stop_is_asked: false,
            stop: false,
            has_ended: false,
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let mut reporter = Reporter {
            store,
            shared: Arc::clone(&shared),
            rank: options.rank,
            world_size: options.world_size,
            interval: patience.interval,
            number: 0,
        };
        reporter.report()?;
        let thread = std::thread::Builder::new().name("progress".into());
        let thread = thread.spawn(move || reporter.run());
        if let Err(error) = &thread {
            tracing::warn!("cannot start the thread that reports progress: {error}");
            shared.tell(|state| (state.is_cut_off, state.has_ended) = (true, true));
        }
        Ok(Self { shared, rank: options.rank, patience, thread: thread.ok() })
    }

    /// Notes where this rank is now.
    pub(super) fn reached(&self, step: u64, phase: Phase) {
        let mut state = self.shared.lock();
        (state.step, state.phase, state.since) = (step, phase, Instant::now());
    }

    /// Notes that this rank goes on where it is.
    pub(super) fn goes_on(&self) {
        self.shared.lock().since = Instant::now();
    }

    /// Where this rank is.
    pub(super) fn place(&self) -> String {
        let state = self.shared.lock();
        format!("step {}, {}", state.step, state.phase.name())
    }

    /// Leaves word of why this rank ends, for those that notice.
    pub(super) fn leave_word(&self, reason: &str) {
        self.note(word_key(self.rank), reason.as_bytes().to_vec());
        let is_pending = |state: &State| !state.notes.is_empty() && !state.is_cut_off;
        drop(self.shared.wait(self.patience.report, is_pending));
    }

    /// On rank 0: tells the others that its work number `work` is done.
    pub(super) fn is_done(&self, work: u64) {
        self.note(DONE_KEY.into(), work.to_string().into_bytes());
    }

    /// On rank 0: whether to hear of other ranks that are asked to stop.
    pub(super) fn listens(&self, listens: bool) {
        self.shared.tell(|state| state.listens = listens);
    }

    /// On rank 0, while it listens: whether another rank was asked to stop.
    pub(super) fn another_is_asked_to_stop(&self) -> bool {
        self.shared.lock().stop_is_asked
    }

    fn note(&self, key: String, value: Vec<u8>) {
        self.shared.tell(|state| state.notes.push((key, value)));
    }

    /// On the others: waits for rank 0's work number `work`, however long it takes, as long as rank 0
    /// shows that it goes on, and lets it know when this rank is asked to stop.
    pub(super) fn await_done(
        &self,
        work: u64,
        is_asked_to_stop: &dyn Fn() -> bool,
    ) -> Result<(), &'static str> {
        let patience = self.patience.wait;
        let mut has_told = false;
        self.shared.tell(|state| (state.awaited, state.is_watching) = (work, true));
        let started = Instant::now();
        let (mut number, mut changed) = (None, started);
        let result = loop {
            if !has_told && is_asked_to_stop() {
                self.note(STOP_KEY.into(), vec![1]);
                has_told = true;
            }
            let is_pending = |state: &State| state.done < work && !state.is_cut_off;
            let state = self.shared.wait(self.patience.interval, is_pending);
            if state.done >= work {
                break Ok(());
            }
            let first = &state.others[0];
            let report = first.report.as_ref();
            if report.map(|report| report.number) != number {
                (number, changed) = (report.map(|report| report.number), Instant::now());
            }
            if state.is_cut_off {
                break Err("the connection to the store broke");
            }
            if first.word.is_some() {
                break Err("it ended");
            }
            if changed.elapsed() >= patience {
                break Err("it no longer says that it is alive");
            }
            let stands = Duration::from_millis(report.map_or(0, |report| report.phase_ms));
            // A report from before the wait is of another phase.
            if stands.min(started.elapsed()) >= patience {
                break Err("it does not get on");
            }
        };
        self.shared.tell(|state| (state.awaited, state.is_watching) = (0, false));
        result
    }

    /// What is known of the others: their last words, and which of them report no more.
    pub(super) fn of_the_others(&self) -> String {
        let mut wanted = 0;
        self.shared.tell(|state| {
            state.is_watching = true;
            wanted = state.looks + LOOKS_OF_SILENCE + 1;
        });
        let is_pending = |state: &State| state.looks < wanted && !state.is_cut_off;
        let mut state = self.shared.wait(self.patience.report, is_pending);
        // Where the store has not answered once in this time, it will not later.
        state.is_cut_off |= state.answered.elapsed() >= self.patience.report;
        let ranks = state.others.iter().enumerate().filter(|(rank, _)| *rank != self.rank);
        let known: Vec<String> = ranks.map(|(rank, other)| other.describe(rank)).collect();
        let known = known.join("; ");
        if !state.is_cut_off {
            return known;
        }
        format!(
            "the store, which rank 0 or the launcher keeps, does not answer: that process is stopped \
             or gone, or the network to it is. As of {} s ago: {known}",
            state.answered.elapsed().as_secs()
        )
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.shared.tell(|state| state.stop = true);
        // A reporter that waits for a store that is gone must not hold up the end.
        let is_pending = |state: &State| !state.has_ended && !state.is_cut_off;
        let state = self.shared.wait(self.patience.report, is_pending);
        let has_ended = state.has_ended;
        drop(state);
        if let Some(thread) = self.thread.take().filter(|_| has_ended) {
            // It has nothing left to do that could panic.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(number: u64) -> Report {
        Report { number, step: 37, phase: Phase::Data.name().into(), phase_ms: 9_400 }
    }

    #[test]
    fn a_report_reads_as_a_place() {
        assert_eq!(report(4).to_string(), "step 37, waiting for data (for 9 s)");
    }

    #[test]
    fn a_rank_is_taken_for_ended_when_its_reports_do_not_change() {
        let mut other = Other::default();
        assert_eq!(other.describe(2), "rank 2 never reported");
        for number in [1, 2, 2, 2] {
            other.saw(Some(report(number)));
            assert_eq!(other.describe(2), format!("rank 2 is at {}", report(1)));
        }
        other.saw(Some(report(2)));
        assert!(other.describe(2).contains("stopped, gone or cut off; it last reported step 37"));
        other.word = Some("no memory".into());
        assert_eq!(other.describe(2), "rank 2 ended: no memory");
    }
}
