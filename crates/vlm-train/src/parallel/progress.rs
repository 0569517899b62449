//! What each rank is doing, written to the store twice a second, so that the others can say where a
//! rank hangs or died. A process that is stopped or gone no longer writes.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vlm_torch::{GroupOptions, Store};

/// Between two reports.
const INTERVAL: Duration = Duration::from_millis(500);
/// How long a store that answers takes at most. A rank whose network is cut waits this long, once,
/// beyond its timeout.
const STORE_TIMEOUT: Duration = Duration::from_secs(4);

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
    /// Writing a checkpoint.
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
            Self::Save => "saving",
            Self::End => "end of training",
        }
    }
}

/// A rank's word about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Report {
    /// Counts the reports: one that does not change comes from a process that is stopped or gone.
    number: u64,
    step: u64,
    phase: String,
    /// How long it has been in that phase.
    phase_secs: u64,
}

impl std::fmt::Display for Report {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "step {}, {} (for {} s)", self.step, self.phase, self.phase_secs)
    }
}

#[derive(Debug)]
struct Now {
    step: u64,
    phase: Phase,
    since: Instant,
}

/// Reports this rank's progress from a thread of its own until dropped.
#[derive(Debug)]
pub(super) struct Progress {
    store: Arc<Store>,
    rank: usize,
    world_size: usize,
    now: Arc<Mutex<Now>>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// The store has kept this rank waiting before: nobody waits for it again.
    is_cut_off: AtomicBool,
}

impl Progress {
    /// Connects to the store and begins to report.
    pub(super) fn start(options: &GroupOptions) -> vlm_torch::Result<Self> {
        let store = Arc::new(Store::connect(options, STORE_TIMEOUT.max(options.timeout))?);
        let now = Now { step: 0, phase: Phase::StartUp, since: Instant::now() };
        let (now, stop) = (Arc::new(Mutex::new(now)), Arc::new(AtomicBool::new(false)));
        let reporter = Reporter {
            store: Arc::clone(&store),
            key: report_key(options.rank),
            now: Arc::clone(&now),
            stop: Arc::clone(&stop),
            number: AtomicU64::new(0),
        };
        reporter.report();
        let thread = std::thread::Builder::new().name("progress".into());
        let thread = thread
            .spawn(move || reporter.run())
            .map_err(|e| tracing::warn!("cannot start the thread that reports progress: {e}"))
            .ok();
        let (rank, world_size) = (options.rank, options.world_size);
        let is_cut_off = AtomicBool::new(false);
        Ok(Self { store, rank, world_size, now, stop, thread, is_cut_off })
    }

    /// Notes where this rank is now.
    pub(super) fn reached(&self, step: u64, phase: Phase) {
        if let Ok(mut now) = self.now.lock() {
            *now = Now { step, phase, since: Instant::now() };
        }
    }

    /// Where this rank is.
    pub(super) fn place(&self) -> String {
        self.now
            .lock()
            .map_or(String::new(), |now| format!("step {}, {}", now.step, now.phase.name()))
    }

    /// Leaves word of why this rank ends, for those that notice.
    pub(super) fn leave_word(&self, reason: &str) {
        let (store, key) = (Arc::clone(&self.store), word_key(self.rank));
        let value = reason.as_bytes().to_vec();
        self.ask(move || store.set(&key, &value).is_ok());
    }

    /// `within` the store's time, unless it has let that pass before.
    fn ask<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        if self.is_cut_off.load(Ordering::Relaxed) {
            return None;
        }
        let found = within(STORE_TIMEOUT, work);
        self.is_cut_off.store(found.is_none(), Ordering::Relaxed);
        found
    }

    /// What is known of the others: their last words, and which of them report no more.
    pub(super) fn of_the_others(&self) -> String {
        let (store, rank, world_size) = (Arc::clone(&self.store), self.rank, self.world_size);
        let ranks: Vec<usize> = (0..world_size).filter(|&other| other != rank).collect();
        let found = self.ask(move || {
            let first: Vec<_> = ranks.iter().map(|&rank| read(&store, rank)).collect();
            std::thread::sleep(3 * INTERVAL);
            let lines = ranks.iter().zip(first).map(|(&rank, first)| describe(&store, rank, first));
            lines.collect::<Vec<_>>().join("; ")
        });
        found.unwrap_or_else(|| {
            "the store, which rank 0 or the launcher keeps, does not answer: that process is stopped \
             or gone, or the network to it is"
                .into()
        })
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // A reporter that waits for a store that is gone must not hold up the end.
            self.ask(move || thread.join().is_ok());
        }
    }
}

struct Reporter {
    store: Arc<Store>,
    key: String,
    now: Arc<Mutex<Now>>,
    stop: Arc<AtomicBool>,
    number: AtomicU64,
}

impl Reporter {
    fn run(&self) {
        while !self.stop.load(Ordering::Relaxed) {
            std::thread::park_timeout(INTERVAL);
            // A store that is gone shows in the next operation of the group.
            if !self.report() {
                return;
            }
        }
    }

    fn report(&self) -> bool {
        let Ok(report) = self.now.lock().map(|now| Report {
            number: self.number.fetch_add(1, Ordering::Relaxed),
            step: now.step,
            phase: now.phase.name().into(),
            phase_secs: now.since.elapsed().as_secs(),
        }) else {
            return false;
        };
        let value = serde_json::to_vec(&report).unwrap_or_default();
        self.store.set(&self.key, &value).is_ok()
    }
}

fn report_key(rank: usize) -> String {
    format!("progress/{rank}")
}

fn word_key(rank: usize) -> String {
    format!("last-word/{rank}")
}

fn read(store: &Store, rank: usize) -> Option<Report> {
    serde_json::from_slice(&store.get(&report_key(rank)).ok()??).ok()
}

fn describe(store: &Store, rank: usize, first: Option<Report>) -> String {
    let word = store.get(&word_key(rank)).ok().flatten();
    if let Some(word) = word {
        return format!("rank {rank} ended: {}", String::from_utf8_lossy(&word));
    }
    match (first, read(store, rank)) {
        (Some(first), Some(now)) if now.number > first.number => format!("rank {rank} is at {now}"),
        (Some(last), _) => {
            format!("rank {rank} is stopped, gone or cut off; it last reported {last}")
        }
        (None, _) => format!("rank {rank} never reported"),
    }
}

/// What `work` gives, if it does so in time; else it is left to itself.
fn within<T: Send + 'static>(
    time: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let (sender, receiver) = std::sync::mpsc::channel();
    std::thread::Builder::new()
        .spawn(move || {
            // Nobody may listen any more.
            let _ = sender.send(work());
        })
        .ok()?;
    receiver.recv_timeout(time).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_takes_too_long_is_left_to_itself() {
        assert_eq!(within(Duration::from_secs(60), || 7), Some(7));
        let (_keeps_it_waiting, never) = std::sync::mpsc::channel::<()>();
        assert_eq!(within(Duration::from_millis(10), move || never.recv().is_ok()), None);
    }

    #[test]
    fn a_report_reads_as_a_place() {
        let report =
            Report { number: 4, step: 37, phase: Phase::Data.name().into(), phase_secs: 9 };
        assert_eq!(report.to_string(), "step 37, waiting for data (for 9 s)");
    }
}
