//! The heartbeat thread: writes this rank's heartbeats, polls those of the other ranks, and handles
//! the requests of the rest of the program. Only this thread uses the store.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vlm_torch::{NcclAbort, Store};

use super::peers::{Beat, Peers};
use super::phase::Phase;
use super::timeout_budget::TimeoutBudget;

/// Number of intervals between two polls of the other ranks while nothing is wrong.
const IDLE_POLL_INTERVALS: u32 = 8;
/// Pause before the first check whether rank 0 is done. It is short so that a quick task costs
/// little.
const FIRST_CHECK: Duration = Duration::from_millis(1);
/// Longest pause between two such checks.
const LAST_CHECK: Duration = Duration::from_millis(100);
/// Key of the number of the last task that rank 0 finished while the other ranks waited.
pub(super) const DONE_KEY: &str = "done-by-rank-0";
/// Key that is set when a rank that waits for rank 0 is asked to stop.
pub(super) const STOP_KEY: &str = "asked-to-stop";

/// Key of a rank's last heartbeat.
fn beat_key(rank: usize) -> String {
    format!("heartbeat/{rank}")
}

/// Key of the error that a rank published.
pub(super) fn error_key(rank: usize) -> String {
    format!("error/{rank}")
}

/// A request to the heartbeat thread.
pub(super) enum Request {
    /// Write a value to the store, and reply when it is written.
    Write { key: String, value: Vec<u8>, reply: Sender<()> },
    /// Poll the other ranks at every interval, and reply after `polls` polls.
    Watch { polls: u64, reply: Sender<()> },
    /// Poll the other ranks at every interval, and reply when rank 0 has finished task number
    /// `task`.
    WaitForTask { task: u64, reply: Sender<()> },
    /// On rank 0: start (`true`) or end checking whether another rank was asked to stop.
    ListenForStop(bool),
    /// Abort NCCL with the given handle when another rank ended or hangs; `None` ends this.
    WatchNccl(Option<NcclAbort>),
}

/// Step and phase of this rank. The rest of the program writes it, the heartbeat thread reads it.
#[derive(Debug)]
pub(super) struct Position {
    pub(super) step: u64,
    pub(super) phase: Phase,
    /// When the phase began, or when the rank last reported progress in it.
    pub(super) since: Instant,
}

/// State that the heartbeat thread shares with the rest of the program.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) position: Mutex<Position>,
    /// Written by the thread.
    pub(super) peers: Mutex<Peers>,
    /// Set by the thread when another rank was asked to stop.
    pub(super) stop_requested: AtomicBool,
    /// Why the thread aborted NCCL.
    pub(super) abort_reason: Mutex<Option<String>>,
}

/// Locks a mutex, even if another thread ended while it held it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The heartbeat thread, which owns the connection to the store.
pub(super) struct HeartbeatThread {
    pub(super) store: Store,
    pub(super) shared: Arc<Shared>,
    pub(super) requests: Receiver<Request>,
    pub(super) rank: usize,
    pub(super) world_size: usize,
    pub(super) budget: TimeoutBudget,
    /// Number of the last heartbeat.
    pub(super) number: u64,
    pub(super) listens_for_stop: bool,
    /// The handle that aborts NCCL, while it is used.
    pub(super) nccl: Option<NcclAbort>,
    /// When NCCL was aborted.
    pub(super) aborted: Option<Instant>,
}

/// A request to wait for rank 0 that has not been replied to.
struct Wait {
    task: u64,
    reply: Sender<()>,
    /// Pause before the next check.
    pause: Duration,
}

impl HeartbeatThread {
    /// Handles requests until the channel is closed or the store fails. A failed store also shows
    /// in the next operation of the process group, so its error is not reported here.
    pub(super) fn run(mut self) {
        if let Err(error) = self.serve() {
            lock(&self.shared.peers).is_cut_off = true;
            if self.nccl.is_some() {
                self.abort(format!("the store of rank 0 does not respond ({error})"));
                self.end_process_if_blocked();
            }
        }
    }

    /// Aborts NCCL if another rank ended or hangs while this rank may wait for it, and ends the
    /// process if that does not help.
    fn abort_if_needed(&mut self) {
        if self.aborted.is_some_and(|since| since.elapsed() >= 3 * self.budget.report) {
            self.end_process();
        }
        let (phase, since) = {
            let position = lock(&self.shared.position);
            (position.phase, position.since)
        };
        if self.nccl.is_none() || !phase.uses_nccl() {
            return;
        }
        let reason = lock(&self.shared.peers).why_not_to_wait(self.budget.wait / 2);
        let is_late = since.elapsed() >= self.budget.wait;
        let late = || "this rank made no progress within the timeout".to_owned();
        if let Some(reason) = reason.or_else(|| is_late.then(late)) {
            self.abort(reason);
        }
    }

    /// Aborts NCCL, so that the rest of the program no longer waits in it. Its next operation of the
    /// group then returns an error with this reason.
    fn abort(&mut self, reason: String) {
        let Some(nccl) = self.nccl.take() else { return };
        *lock(&self.shared.abort_reason) = Some(reason);
        self.aborted = Some(Instant::now());
        // In a thread of its own, because this may take long, and the heartbeat must continue.
        let aborted = std::thread::Builder::new().name("nccl-abort".into()).spawn(move || {
            if let Err(error) = nccl.abort() {
                tracing::warn!("{error}");
            }
        });
        if let Err(error) = aborted {
            tracing::warn!("cannot start a thread to abort NCCL: {error}");
        }
    }

    /// Ends the process after some time, unless the rest of the program ends this thread before.
    fn end_process_if_blocked(&self) {
        let end = Instant::now() + 3 * self.budget.report;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            match self.requests.recv_timeout(left) {
                // The reply channel is closed, which the caller notices.
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => self.end_process(),
            }
        }
    }

    /// Ends the process with an explanation. A library should not do this, but the main thread does
    /// not return from a call of the CUDA driver, so that nothing else could end this rank.
    fn end_process(&self) -> ! {
        let position = {
            let position = lock(&self.shared.position);
            format!("step {}, {}", position.step, position.phase.name())
        };
        let reason = lock(&self.shared.abort_reason).clone().unwrap_or_default();
        tracing::error!(
            "rank {} of {}, {position}: the exchange between the GPUs was aborted, because \
             {reason}, but the GPU did not respond. Other ranks: {}. Earlier checkpoints are \
             unaffected",
            self.rank,
            self.world_size,
            lock(&self.shared.peers).describe(self.rank)
        );
        std::process::exit(1)
    }

    fn serve(&mut self) -> vlm_torch::Result<()> {
        let (mut next_beat, mut next_poll) =
            (Instant::now() + self.budget.interval, Instant::now());
        let mut watch: Option<(u64, Sender<()>)> = None;
        let mut wait: Option<Wait> = None;
        loop {
            let now = Instant::now();
            if now >= next_beat {
                self.beat()?;
                self.check_for_stop()?;
                next_beat = now + self.budget.interval;
                self.abort_if_needed();
            }
            let is_watching = watch.is_some() || wait.is_some();
            if now >= next_poll {
                self.poll_peers(is_watching)?;
                let interval = self.budget.interval;
                next_poll = now + if is_watching { interval } else { self.idle_poll_interval() };
                watch = watch.and_then(|(polls, reply)| match polls {
                    // The caller may have given up waiting for the reply.
                    1 => reply.send(()).err().and(None),
                    polls => Some((polls - 1, reply)),
                });
            }
            let mut sleep = next_beat.min(next_poll).saturating_duration_since(Instant::now());
            if let Some(Wait { task, reply, pause }) = wait.take() {
                if self.is_done(task)? {
                    let _ = reply.send(());
                } else {
                    sleep = sleep.min(pause);
                    wait = Some(Wait { task, reply, pause: LAST_CHECK.min(2 * pause) });
                }
            }
            match self.requests.recv_timeout(sleep) {
                Ok(Request::Write { key, value, reply }) => {
                    self.store.set(&key, &value)?;
                    let _ = reply.send(());
                }
                Ok(Request::Watch { polls, reply }) => {
                    (watch, next_poll) = (Some((polls, reply)), Instant::now());
                }
                Ok(Request::WaitForTask { task, reply }) => {
                    wait = Some(Wait { task, reply, pause: FIRST_CHECK });
                    next_poll = Instant::now();
                }
                Ok(Request::ListenForStop(listens)) => self.listens_for_stop = listens,
                Ok(Request::WatchNccl(nccl)) => self.nccl = nccl,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Time between two polls while nothing is wrong. The store handles one request at a time, so
    /// with many ranks each of them polls less often.
    fn idle_poll_interval(&self) -> Duration {
        self.budget.interval * IDLE_POLL_INTERVALS.max(self.world_size as u32)
    }

    /// Writes this rank's heartbeat to the store.
    pub(super) fn beat(&mut self) -> vlm_torch::Result<()> {
        self.number += 1;
        let beat = {
            let position = lock(&self.shared.position);
            Beat {
                number: self.number,
                step: position.step,
                phase: position.phase.name().into(),
                phase_ms: position.since.elapsed().as_millis() as u64,
            }
        };
        self.store.set(&beat_key(self.rank), &serde_json::to_vec(&beat).unwrap_or_default())
    }

    fn check_for_stop(&self) -> vlm_torch::Result<()> {
        if self.listens_for_stop && self.store.get(STOP_KEY)?.is_some() {
            self.shared.stop_requested.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Reads the heartbeats of the other ranks, and with `is_watching` or NCCL also their published
    /// errors.
    fn poll_peers(&self, is_watching: bool) -> vlm_torch::Result<()> {
        for rank in (0..self.world_size).filter(|&rank| rank != self.rank) {
            let beat = self.store.get(&beat_key(rank))?;
            let beat = beat.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let error = if is_watching || self.nccl.is_some() {
                self.store.get(&error_key(rank))?
            } else {
                None
            };
            let mut peers = lock(&self.shared.peers);
            peers.replied = Instant::now();
            let peer = &mut peers.ranks[rank];
            peer.record_beat(beat);
            if !is_watching {
                peer.silent_polls = 0;
            }
            peer.error = error.map(|error| String::from_utf8_lossy(&error).into_owned());
        }
        lock(&self.shared.peers).replied = Instant::now();
        Ok(())
    }

    /// Whether rank 0 has finished task number `task`.
    fn is_done(&self, task: u64) -> vlm_torch::Result<bool> {
        let done = self.store.get(DONE_KEY)?;
        let done = done.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse::<u64>().ok());
        lock(&self.shared.peers).replied = Instant::now();
        Ok(done.unwrap_or(0) >= task)
    }
}
