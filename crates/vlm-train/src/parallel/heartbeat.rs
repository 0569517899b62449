//! The heartbeat of a rank: a thread regularly writes the rank's step and phase to the store, so
//! that the other ranks can report where a rank hangs or ended.
//!
//! Only this thread uses the store. The rest of the program sends it requests over a channel and
//! waits for a reply for a limited time, because a store on an unreachable machine never replies.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vlm_torch::{GroupOptions, NcclAbort, Store};

use super::peers::{Beat, MAX_SILENT_POLLS, Peers};
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
const DONE_KEY: &str = "done-by-rank-0";
/// Key that is set when a rank that waits for rank 0 is asked to stop.
const STOP_KEY: &str = "asked-to-stop";

fn beat_key(rank: usize) -> String {
    format!("heartbeat/{rank}")
}

fn error_key(rank: usize) -> String {
    format!("error/{rank}")
}

/// A request to the heartbeat thread.
enum Request {
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
struct Position {
    step: u64,
    phase: Phase,
    /// When the phase began, or when the rank last reported progress in it.
    since: Instant,
}

/// State that the heartbeat thread shares with the rest of the program.
#[derive(Debug)]
struct Shared {
    position: Mutex<Position>,
    /// Written by the thread.
    peers: Mutex<Peers>,
    /// Set by the thread when another rank was asked to stop.
    stop_requested: AtomicBool,
    /// Why the thread aborted NCCL.
    abort_reason: Mutex<Option<String>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reports this rank's progress from a separate thread until it is dropped.
#[derive(Debug)]
pub(super) struct Heartbeat {
    requests: Option<Sender<Request>>,
    shared: Arc<Shared>,
    rank: usize,
    budget: TimeoutBudget,
    /// Nothing is sent over this channel; it is closed when the thread ends.
    ended: Receiver<Infallible>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Connects to the store, writes the first heartbeat and starts the thread.
    pub(super) fn start(options: &GroupOptions, budget: TimeoutBudget) -> vlm_torch::Result<Self> {
        let store = Store::connect(options, options.timeout)?;
        let (step, phase, since) = (0, Phase::StartUp, Instant::now());
        let shared = Arc::new(Shared {
            position: Mutex::new(Position { step, phase, since }),
            peers: Mutex::new(Peers::new(options.world_size)),
            stop_requested: AtomicBool::new(false),
            abort_reason: Mutex::new(None),
        });
        let (requests, received) = channel();
        let mut thread = HeartbeatThread {
            store,
            shared: Arc::clone(&shared),
            requests: received,
            rank: options.rank,
            world_size: options.world_size,
            budget,
            number: 0,
            listens_for_stop: false,
            nccl: None,
            aborted: None,
        };
        thread.beat()?;
        let (ending, ended) = channel();
        let spawned = std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
            let _ending: Sender<Infallible> = ending;
            thread.run();
        });
        if let Err(error) = &spawned {
            tracing::warn!("cannot start the heartbeat thread: {error}");
            lock(&shared.peers).is_cut_off = true;
        }
        let (requests, thread) = (Some(requests), spawned.ok());
        Ok(Self { requests, shared, rank: options.rank, budget, ended, thread })
    }

    /// Records the step and phase that this rank enters.
    pub(super) fn set_phase(&self, step: u64, phase: Phase) {
        *lock(&self.shared.position) = Position { step, phase, since: Instant::now() };
    }

    /// Records that this rank made progress in its current phase.
    pub(super) fn report_progress(&self) {
        lock(&self.shared.position).since = Instant::now();
    }

    /// Step and phase of this rank, for a message.
    pub(super) fn position(&self) -> String {
        let position = lock(&self.shared.position);
        format!("step {}, {}", position.step, position.phase.name())
    }

    /// Writes the error that ends this rank to the store, for the messages of the other ranks.
    pub(super) fn publish_error(&self, error: &str) {
        let written = self.write(error_key(self.rank), error.as_bytes().to_vec());
        if !lock(&self.shared.peers).is_cut_off {
            let _ = written.recv_timeout(self.budget.report);
        }
    }

    /// On rank 0: publishes that task number `task` is done.
    pub(super) fn publish_done(&self, task: u64) {
        self.write(DONE_KEY.into(), task.to_string().into_bytes());
    }

    /// On rank 0: starts or ends checking whether another rank was asked to stop.
    pub(super) fn listen_for_stop(&self, listens: bool) {
        self.request(|_| Request::ListenForStop(listens));
    }

    /// On rank 0, after [`Self::listen_for_stop`]: whether another rank was asked to stop.
    pub(super) fn stop_is_requested(&self) -> bool {
        self.shared.stop_requested.load(Ordering::Relaxed)
    }

    /// Lets the thread abort NCCL when another rank ended or hangs. On a GPU, an operation with such a
    /// rank never ends, and the CPU, which waits for the GPU, does not notice it.
    pub(super) fn watch_nccl(&self, nccl: NcclAbort) {
        self.request(|_| Request::WatchNccl(Some(nccl)));
    }

    /// Ends [`Self::watch_nccl`], when no operation of NCCL follows.
    pub(super) fn end_watching_nccl(&self) {
        self.request(|_| Request::WatchNccl(None));
    }

    /// Why NCCL was aborted, if it was.
    pub(super) fn abort_reason(&self) -> Option<String> {
        lock(&self.shared.abort_reason).clone()
    }

    /// On the other ranks: waits until rank 0 has finished task number `task`. There is no limit as
    /// long as rank 0 makes progress. Notifies rank 0 when this rank is asked to stop. The error is
    /// the reason why the wait ended early.
    pub(super) fn wait_for_first_rank(
        &self,
        task: u64,
        stop_is_requested: &dyn Fn() -> bool,
    ) -> Result<(), &'static str> {
        let limit = self.budget.wait;
        let done = self.request(|reply| Request::WaitForTask { task, reply });
        let started = Instant::now();
        let (mut number, mut changed) = (None, started);
        let mut is_notified = false;
        loop {
            if !is_notified && stop_is_requested() {
                self.write(STOP_KEY.into(), vec![1]);
                is_notified = true;
            }
            match done.recv_timeout(self.budget.interval) {
                Ok(()) => return Ok(()),
                Err(RecvTimeoutError::Disconnected) => {
                    return Err("the connection to the store broke");
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            let peers = lock(&self.shared.peers);
            let first = &peers.ranks[0];
            let beat = first.beat.as_ref();
            if beat.map(|beat| beat.number) != number {
                (number, changed) = (beat.map(|beat| beat.number), Instant::now());
            }
            if first.error.is_some() {
                return Err("it ended");
            }
            if changed.elapsed() >= limit {
                return Err("its heartbeat stopped");
            }
            let in_phase = Duration::from_millis(beat.map_or(0, |beat| beat.phase_ms));
            // A heartbeat from before the wait is about another phase.
            if in_phase.min(started.elapsed()) >= limit {
                return Err("it made no progress within the timeout");
            }
        }
    }

    /// A description of the other ranks for a message: the errors that they published, their steps
    /// and phases, and which heartbeats have stopped. Polls them a few times first.
    pub(super) fn describe_peers(&self) -> String {
        let polls = MAX_SILENT_POLLS + 1;
        let watched = self.request(|reply| Request::Watch { polls, reply });
        let limit = self.budget.report;
        if !lock(&self.shared.peers).is_cut_off {
            let _ = watched.recv_timeout(limit);
        }
        let mut peers = lock(&self.shared.peers);
        // A store that did not reply once in this time will not reply later.
        peers.is_cut_off |= peers.replied.elapsed() >= limit;
        peers.describe(self.rank)
    }

    fn write(&self, key: String, value: Vec<u8>) -> Receiver<()> {
        self.request(|reply| Request::Write { key, value, reply })
    }

    /// Sends a request. The returned channel carries the reply, or is closed if the thread has
    /// ended.
    fn request(&self, make: impl FnOnce(Sender<()>) -> Request) -> Receiver<()> {
        let (reply, replies) = channel();
        if let Some(requests) = &self.requests {
            // If the thread has ended, the caller sees a closed channel.
            let _ = requests.send(make(reply));
        }
        replies
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        // Closing the channel ends the thread after it has handled all earlier requests.
        self.requests = None;
        // A thread that waits for an unreachable store must not delay the end of the process.
        let is_cut_off = lock(&self.shared.peers).is_cut_off;
        let wait = if is_cut_off { Duration::ZERO } else { self.budget.report };
        let has_ended = self.ended.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
        if let Some(thread) = self.thread.take().filter(|_| has_ended) {
            let _ = thread.join();
        }
    }
}

/// The heartbeat thread, which owns the connection to the store.
struct HeartbeatThread {
    store: Store,
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    rank: usize,
    world_size: usize,
    budget: TimeoutBudget,
    /// Number of the last heartbeat.
    number: u64,
    listens_for_stop: bool,
    /// The handle that aborts NCCL, while it is used.
    nccl: Option<NcclAbort>,
    /// When NCCL was aborted.
    aborted: Option<Instant>,
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
    fn run(mut self) {
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
    fn beat(&mut self) -> vlm_torch::Result<()> {
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
