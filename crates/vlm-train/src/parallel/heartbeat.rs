//! The heartbeat of a rank: a thread regularly writes the rank's step and phase to the store, so
//! that the other ranks can report where a rank hangs or ended.
//!
//! Only this thread uses the store. The rest of the program sends it requests over a channel and
//! waits for a reply for a limited time, because a store on an unreachable machine never replies.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vlm_torch::{GroupOptions, NcclAbort, Store};

use super::heartbeat_thread::{
    DONE_KEY, HeartbeatThread, Position, Request, STOP_KEY, Shared, error_key, lock,
};
use super::peers::{MAX_SILENT_POLLS, Peers};
use super::phase::Phase;
use super::timeout_budget::TimeoutBudget;

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
