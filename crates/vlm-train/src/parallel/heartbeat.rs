//! The heartbeat of a rank: its step and phase, written to the store again and again by a thread of
//! its own, so that the other ranks can say where a rank hangs or died.
//!
//! That thread is the only one that uses the store. The rest of the program sends it requests over a
//! channel and waits for an answer no longer than it can afford, because a store whose machine is cut
//! off never answers.

use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use vlm_torch::{GroupOptions, Store};

use super::peers::{Beat, MAX_SILENT_LOOKS, Peers};
use super::phase::Phase;
use super::timeout_budget::TimeoutBudget;

/// Number of intervals between two looks at the other ranks while nothing is wrong.
const CALM_INTERVALS: u32 = 8;
/// Pause before the first check whether rank 0 is done. It is short so that quick work costs little.
const FIRST_CHECK: Duration = Duration::from_millis(1);
/// Longest pause between two such checks.
const LAST_CHECK: Duration = Duration::from_millis(100);
/// Key of the number of the last work that rank 0 finished alone.
const DONE_KEY: &str = "done-by-rank-0";
/// Key that is set when a rank that waits for rank 0 is asked to stop.
const STOP_KEY: &str = "asked-to-stop";

fn beat_key(rank: usize) -> String {
    format!("heartbeat/{rank}")
}

fn error_key(rank: usize) -> String {
    format!("error/{rank}")
}

/// What the thread is asked to do.
enum Request {
    /// Write a value to the store, and answer when that is done.
    Write { key: String, value: Vec<u8>, reply: Sender<()> },
    /// Look at the other ranks at every interval, and answer after `looks` of them.
    Watch { looks: u64, reply: Sender<()> },
    /// Watch the other ranks, and answer when rank 0 has finished work number `work`.
    WaitForWork { work: u64, reply: Sender<()> },
    /// On rank 0: whether to check for other ranks that are asked to stop.
    ListenForStop(bool),
}

/// Where this rank is. The rest of the program writes it, the thread reads it.
#[derive(Debug)]
struct Place {
    step: u64,
    phase: Phase,
    since: Instant,
}

#[derive(Debug)]
struct Shared {
    place: Mutex<Place>,
    /// Written by the thread.
    peers: Mutex<Peers>,
    /// Set by the thread when another rank was asked to stop.
    stop_requested: AtomicBool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Reports this rank's progress from a thread of its own until dropped.
#[derive(Debug)]
pub(super) struct Heartbeat {
    requests: Option<Sender<Request>>,
    shared: Arc<Shared>,
    rank: usize,
    budget: TimeoutBudget,
    /// Nothing is ever sent here: it is closed when the thread ends.
    ended: Receiver<Infallible>,
    thread: Option<JoinHandle<()>>,
}

impl Heartbeat {
    /// Connects to the store and writes the first heartbeat.
    pub(super) fn start(options: &GroupOptions, budget: TimeoutBudget) -> vlm_torch::Result<Self> {
        let store = Store::connect(options, options.timeout)?;
        let (step, phase, since) = (0, Phase::StartUp, Instant::now());
        let shared = Arc::new(Shared {
            place: Mutex::new(Place { step, phase, since }),
            peers: Mutex::new(Peers::new(options.world_size)),
            stop_requested: AtomicBool::new(false),
        });
        let (requests, received) = channel();
        let mut thread = HeartbeatThread {
            store,
            shared: Arc::clone(&shared),
            requests: received,
            rank: options.rank,
            world_size: options.world_size,
            interval: budget.interval,
            number: 0,
            listens_for_stop: false,
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

    /// Records which step and phase this rank is in now.
    pub(super) fn set_phase(&self, step: u64, phase: Phase) {
        *lock(&self.shared.place) = Place { step, phase, since: Instant::now() };
    }

    /// Records that this rank made progress in its present phase.
    pub(super) fn report_progress(&self) {
        lock(&self.shared.place).since = Instant::now();
    }

    /// Step and phase that this rank is in, for a message.
    pub(super) fn place(&self) -> String {
        let place = lock(&self.shared.place);
        format!("step {}, {}", place.step, place.phase.name())
    }

    /// Publishes why this rank ends, for the messages of the other ranks.
    pub(super) fn publish_error(&self, error: &str) {
        let written = self.write(error_key(self.rank), error.as_bytes().to_vec());
        if !lock(&self.shared.peers).is_cut_off {
            let _ = written.recv_timeout(self.budget.report);
        }
    }

    /// On rank 0: tells the other ranks that work number `work` is done.
    pub(super) fn publish_done(&self, work: u64) {
        self.write(DONE_KEY.into(), work.to_string().into_bytes());
    }

    /// On rank 0: whether to check for other ranks that are asked to stop.
    pub(super) fn listen_for_stop(&self, listens: bool) {
        self.request(|_| Request::ListenForStop(listens));
    }

    /// On rank 0, while it listens: whether another rank was asked to stop.
    pub(super) fn stop_is_requested(&self) -> bool {
        self.shared.stop_requested.load(Ordering::Relaxed)
    }

    /// On the other ranks: waits for rank 0's work number `work`, however long it takes, as long as
    /// rank 0 makes progress. Tells rank 0 when this rank is asked to stop.
    pub(super) fn wait_for_first_rank(
        &self,
        work: u64,
        stop_is_requested: &dyn Fn() -> bool,
    ) -> Result<(), &'static str> {
        let limit = self.budget.wait;
        let done = self.request(|reply| Request::WaitForWork { work, reply });
        let started = Instant::now();
        let (mut number, mut changed) = (None, started);
        let mut has_told = false;
        loop {
            if !has_told && stop_is_requested() {
                self.write(STOP_KEY.into(), vec![1]);
                has_told = true;
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
            // A heartbeat from before the wait belongs to another phase.
            if in_phase.min(started.elapsed()) >= limit {
                return Err("it made no progress within the timeout");
            }
        }
    }

    /// What is known about the other ranks: the errors that they published, and whose heartbeat has
    /// stopped. Watches them for a moment first.
    pub(super) fn describe_peers(&self) -> String {
        let looks = MAX_SILENT_LOOKS + 1;
        let watched = self.request(|reply| Request::Watch { looks, reply });
        let limit = self.budget.report;
        if !lock(&self.shared.peers).is_cut_off {
            let _ = watched.recv_timeout(limit);
        }
        let mut peers = lock(&self.shared.peers);
        // A store that did not answer once in this time will not answer later.
        peers.is_cut_off |= peers.answered.elapsed() >= limit;
        peers.describe(self.rank)
    }

    fn write(&self, key: String, value: Vec<u8>) -> Receiver<()> {
        self.request(|reply| Request::Write { key, value, reply })
    }

    /// Sends a request. The channel that it returns carries the answer, or is closed when the thread
    /// has ended.
    fn request(&self, make: impl FnOnce(Sender<()>) -> Request) -> Receiver<()> {
        let (reply, answer) = channel();
        if let Some(requests) = &self.requests {
            // Whoever waits for the answer notices that the thread has ended.
            let _ = requests.send(make(reply));
        }
        answer
    }
}

impl Drop for Heartbeat {
    fn drop(&mut self) {
        // The thread ends when it has handled every request that was sent before.
        self.requests = None;
        // A thread that waits for a store that is gone must not delay the end of the process.
        let is_cut_off = lock(&self.shared.peers).is_cut_off;
        let wait = if is_cut_off { Duration::ZERO } else { self.budget.report };
        let has_ended = self.ended.recv_timeout(wait) == Err(RecvTimeoutError::Disconnected);
        if let Some(thread) = self.thread.take().filter(|_| has_ended) {
            let _ = thread.join();
        }
    }
}

/// The thread, which owns the connection to the store.
struct HeartbeatThread {
    store: Store,
    shared: Arc<Shared>,
    requests: Receiver<Request>,
    rank: usize,
    world_size: usize,
    interval: Duration,
    /// Number of the last heartbeat.
    number: u64,
    listens_for_stop: bool,
}

/// A request to wait for rank 0.
struct Wait {
    work: u64,
    reply: Sender<()>,
    /// Pause before the next check.
    pause: Duration,
}

impl HeartbeatThread {
    /// Works until nobody can send a request any more, or until the store is gone. A store that is gone
    /// shows in the next operation of the process group too, so the error is not reported here.
    fn run(mut self) {
        if self.serve().is_err() {
            lock(&self.shared.peers).is_cut_off = true;
        }
    }

    fn serve(&mut self) -> vlm_torch::Result<()> {
        let (mut next_beat, mut next_look) = (Instant::now() + self.interval, Instant::now());
        let mut watch: Option<(u64, Sender<()>)> = None;
        let mut wait: Option<Wait> = None;
        loop {
            let now = Instant::now();
            if now >= next_beat {
                self.beat()?;
                self.check_for_stop()?;
                next_beat = now + self.interval;
            }
            let is_watching = watch.is_some() || wait.is_some();
            if now >= next_look {
                self.look(is_watching)?;
                next_look = now + if is_watching { self.interval } else { self.calm_interval() };
                watch = watch.and_then(|(looks, reply)| match looks {
                    // Nobody may be waiting for the answer any more.
                    1 => reply.send(()).err().and(None),
                    looks => Some((looks - 1, reply)),
                });
            }
            let mut sleep = next_beat.min(next_look).saturating_duration_since(Instant::now());
            if let Some(Wait { work, reply, pause }) = wait.take() {
                if self.is_done(work)? {
                    let _ = reply.send(());
                } else {
                    sleep = sleep.min(pause);
                    wait = Some(Wait { work, reply, pause: LAST_CHECK.min(2 * pause) });
                }
            }
            match self.requests.recv_timeout(sleep) {
                Ok(Request::Write { key, value, reply }) => {
                    self.store.set(&key, &value)?;
                    let _ = reply.send(());
                }
                Ok(Request::Watch { looks, reply }) => {
                    (watch, next_look) = (Some((looks, reply)), Instant::now());
                }
                Ok(Request::WaitForWork { work, reply }) => {
                    wait = Some(Wait { work, reply, pause: FIRST_CHECK });
                    next_look = Instant::now();
                }
                Ok(Request::ListenForStop(listens)) => self.listens_for_stop = listens,
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
        }
    }

    /// The store answers one request at a time, so with many ranks each looks less often.
    fn calm_interval(&self) -> Duration {
        self.interval * CALM_INTERVALS.max(self.world_size as u32)
    }

    /// Writes where this rank is.
    fn beat(&mut self) -> vlm_torch::Result<()> {
        self.number += 1;
        let beat = {
            let place = lock(&self.shared.place);
            Beat {
                number: self.number,
                step: place.step,
                phase: place.phase.name().into(),
                phase_ms: place.since.elapsed().as_millis() as u64,
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

    /// Reads the heartbeats of the other ranks, and while watching also the errors they published.
    fn look(&self, is_watching: bool) -> vlm_torch::Result<()> {
        for rank in (0..self.world_size).filter(|&rank| rank != self.rank) {
            let beat = self.store.get(&beat_key(rank))?;
            let beat = beat.and_then(|bytes| serde_json::from_slice(&bytes).ok());
            let error = if is_watching { self.store.get(&error_key(rank))? } else { None };
            let mut peers = lock(&self.shared.peers);
            peers.answered = Instant::now();
            let peer = &mut peers.ranks[rank];
            peer.saw(beat);
            if !is_watching {
                peer.silent_looks = 0;
            }
            peer.error = error.map(|error| String::from_utf8_lossy(&error).into_owned());
        }
        lock(&self.shared.peers).answered = Instant::now();
        Ok(())
    }

    /// Whether rank 0 has finished work number `work`.
    fn is_done(&self, work: u64) -> vlm_torch::Result<bool> {
        let done = self.store.get(DONE_KEY)?;
        let done = done.and_then(|bytes| std::str::from_utf8(&bytes).ok()?.parse::<u64>().ok());
        lock(&self.shared.peers).answered = Instant::now();
        Ok(done.unwrap_or(0) >= work)
    }
}
