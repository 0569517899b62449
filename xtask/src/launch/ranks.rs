//! One attempt of a job: starts the ranks of this machine, forwards their output, and ends all of
//! them when one fails or the user asks to stop.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cores;
use super::layout::Layout;
use super::output::{self, LastLines, forward_lines};
use crate::sys::{self, Signal};
use crate::workspace::usage_error;

/// Interval at which the ranks are checked.
const POLL_INTERVAL: Duration = Duration::from_millis(10);
/// Time between the first failure and SIGKILL to the ranks that did not end on SIGTERM. The
/// launcher promises to end all ranks within ten seconds.
const GRACE: Duration = Duration::from_secs(8);
/// Longest time to wait for the last output of ranks that have ended.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(1);
/// Errors at the start of a program that are usage errors; all others are failures of the system.
const USAGE_KINDS: [io::ErrorKind; 2] = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];

/// The program that every rank runs.
#[derive(Debug, Clone)]
pub struct Job {
    /// Path or name of the program.
    pub program: PathBuf,
    /// Arguments of the program, the same for every rank.
    pub args: Vec<OsString>,
    /// Environment variables that are set in addition to those of torchrun.
    pub env: Vec<(OsString, OsString)>,
}

/// Signals that follow the first one within this time are the same request: batch systems and
/// closing terminals may send several signals at once.
const SAME_REQUEST: Duration = Duration::from_millis(500);

/// Counts how often the user has asked to stop, and notes that a save was asked for (SIGUSR1).
#[derive(Debug, Clone, Default)]
pub struct Signals(Arc<StopRequests>, Arc<AtomicBool>);

#[derive(Debug, Default)]
struct StopRequests {
    count: AtomicUsize,
    first: OnceLock<Instant>,
}

impl Signals {
    /// Starts to count Ctrl-C, SIGTERM and SIGHUP, and to listen for SIGUSR1, which then no longer
    /// end this process.
    ///
    /// # Errors
    /// The signal handler cannot be installed.
    pub fn listen() -> Result<Self> {
        let signals = Self::default();
        let count = signals.clone();
        ctrlc::set_handler(move || count.raise()).context(
            "cannot start the thread that listens for signals; if memory or threads are used up, \
             raise their limits (`ulimit -v`, `ulimit -u`) or end other programs",
        )?;
        signal_hook::flag::register(signal_hook::consts::SIGUSR1, Arc::clone(&signals.1))
            .context("listening for SIGUSR1")?;
        Ok(signals)
    }

    /// Counts one more request, unless it follows the first one immediately.
    pub fn raise(&self) {
        let first = *self.0.first.get_or_init(Instant::now);
        if self.count() == 0 || first.elapsed() >= SAME_REQUEST {
            self.0.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Whether a save was asked for since the last call.
    fn take_save(&self) -> bool {
        self.1.swap(false, Ordering::Relaxed)
    }

    /// Number of requests to stop so far.
    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }
}

/// The rank that failed first.
#[derive(Debug)]
pub struct Failure {
    /// Its rank.
    pub rank: usize,
    /// How it ended.
    pub status: ExitStatus,
    /// The last lines that it printed; empty if it printed directly to the terminal.
    pub last_lines: Vec<String>,
}

impl Failure {
    /// The exit code for the launcher: that of the rank, or 128 + n after signal n, as in shells.
    pub fn code(&self) -> u8 {
        let code = self.status.code().or(self.status.signal().map(|signal| 128 + signal));
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} failed first ({})", self.rank, self.status)?;
        if !self.last_lines.is_empty() {
            write!(f, "; its last output:")?;
        }
        self.last_lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Runs the ranks of this machine until all have ended. Returns the first failure, or `None` if all
/// succeeded.
///
/// # Errors
/// A program that cannot be started.
pub fn run(
    job: &Job,
    layout: &Layout,
    attempt: usize,
    signals: &Signals,
) -> Result<Option<Failure>> {
    let mut group = Group::start(job, layout, attempt)?;
    let mut failed: Option<(usize, ExitStatus)> = None;
    let mut kill_at: Option<Instant> = None;
    let mut seen = signals.count();
    while group.any_alive() {
        let ended = group.reap()?;
        if failed.is_none()
            && let Some(first) = first_failure(&ended)
        {
            failed = Some(first);
            kill_at = Some(Instant::now() + GRACE);
            group.signal(Signal::Terminate);
        }
        let count = signals.count();
        if count > seen {
            // On the first request the ranks save and end; the second one kills them.
            group.signal(if seen == 0 { Signal::Terminate } else { Signal::Kill });
            seen = count;
        }
        if signals.take_save() {
            group.signal(Signal::Save);
        }
        if kill_at.is_some_and(|at| at <= Instant::now()) {
            group.signal(Signal::Kill);
        }
        thread::sleep(POLL_INTERVAL);
    }
    group.drain();
    Ok(failed.map(|(rank, status)| Failure { rank, status, last_lines: group.last_lines(rank) }))
}

/// The first failure among ranks that ended within one interval: a rank that was killed by a signal
/// (others may have failed because they lost their connection to it), else the lowest rank.
fn first_failure(ended: &[(usize, ExitStatus)]) -> Option<(usize, ExitStatus)> {
    let failed = || ended.iter().filter(|(_, status)| !status.success());
    failed().find(|(_, status)| status.signal().is_some()).or_else(|| failed().next()).copied()
}

struct Rank {
    rank: usize,
    child: Child,
    is_alive: bool,
    last_lines: LastLines,
}

/// The ranks of this machine; ends them when dropped.
struct Group {
    ranks: Vec<Rank>,
    streams: Vec<JoinHandle<()>>,
}

impl Group {
    fn start(job: &Job, layout: &Layout, attempt: usize) -> Result<Self> {
        let rendezvous = layout.rendezvous(attempt)?;
        let shares = cores::shares(layout.nproc_per_node);
        print_start(layout, rendezvous.port, shares.as_deref());
        let mut group = Self { ranks: Vec::new(), streams: Vec::new() };
        for (local_rank, rank) in layout.ranks().enumerate() {
            let share = shares.as_ref().map_or(&[][..], |shares| &shares[local_rank]);
            let mut command = Command::new(&job.program);
            command.args(&job.args).stdin(Stdio::null());
            if std::env::var_os("OMP_NUM_THREADS").is_none() {
                command.env("OMP_NUM_THREADS", share.len().max(1).to_string());
            }
            command.envs(job.env.iter().cloned());
            command.envs(layout.environment(rank, &rendezvous));
            // A process group of its own, so that Ctrl-C on the terminal reaches only the launcher,
            // which forwards it once.
            command.process_group(0);
            sys::bind_child(&mut command, share);
            group.spawn(rank, command)?;
        }
        Ok(group)
    }

    fn spawn(&mut self, rank: usize, mut command: Command) -> Result<()> {
        // Rank 0 writes to the terminal directly, for its progress bar. All other output passes
        // through this process.
        let stream = |is_terminal: bool| {
            if rank == 0 && is_terminal { Stdio::inherit() } else { Stdio::piped() }
        };
        command.stdout(stream(io::stdout().is_terminal()));
        command.stderr(stream(io::stderr().is_terminal()));
        let mut child = command.spawn().map_err(|error| {
            let message = format!("starting {}: {error}", command.get_program().to_string_lossy());
            match USAGE_KINDS.contains(&error.kind()) {
                true => usage_error(message),
                false => anyhow::anyhow!(message),
            }
        })?;
        let last_lines = LastLines::default();
        if let Some(stdout) = child.stdout.take() {
            let prefix = output::prefix(rank);
            self.streams.push(forward_lines(stdout, prefix, last_lines.clone(), io::stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            let prefix = output::prefix(rank);
            self.streams.push(forward_lines(stderr, prefix, last_lines.clone(), io::stderr));
        }
        self.ranks.push(Rank { rank, child, is_alive: true, last_lines });
        Ok(())
    }

    fn any_alive(&self) -> bool {
        self.ranks.iter().any(|rank| rank.is_alive)
    }

    /// The ranks that ended since the last call.
    fn reap(&mut self) -> Result<Vec<(usize, ExitStatus)>> {
        let mut ended = Vec::new();
        for rank in self.ranks.iter_mut().filter(|rank| rank.is_alive) {
            let status = rank.child.try_wait();
            let status = status.with_context(|| format!("waiting for rank {}", rank.rank))?;
            if let Some(status) = status {
                rank.is_alive = false;
                // Processes that the rank left behind would keep the pipes open.
                sys::signal_group(rank.child.id(), Signal::Kill);
                ended.push((rank.rank, status));
            }
        }
        Ok(ended)
    }

    fn signal(&self, signal: Signal) {
        for rank in self.ranks.iter().filter(|rank| rank.is_alive) {
            sys::signal_group(rank.child.id(), signal);
        }
    }

    /// Waits for the last output of ranks that have ended.
    fn drain(&self) {
        let until = Instant::now() + DRAIN_TIMEOUT;
        while self.streams.iter().any(|stream| !stream.is_finished()) && Instant::now() < until {
            thread::sleep(POLL_INTERVAL);
        }
    }

    fn last_lines(&self, rank: usize) -> Vec<String> {
        let found = self.ranks.iter().find(|known| known.rank == rank);
        found.map_or_else(Vec::new, |rank| rank.last_lines.get())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for rank in self.ranks.iter_mut().filter(|rank| rank.is_alive) {
            sys::signal_group(rank.child.id(), Signal::Kill);
            // The process was just killed, so the wait is short; its result does not matter.
            let _ = rank.child.wait();
        }
    }
}

fn print_start(layout: &Layout, port: u16, shares: Option<&[Vec<usize>]>) {
    let ranks = layout.ranks();
    let world_size = layout.world_size();
    let cores = shares.map_or("not bound to cores (fewer cores than ranks)".to_owned(), |shares| {
        let lists: Vec<String> = shares.iter().map(|share| cores::list(share)).collect();
        format!("bound to cores {}", lists.join(" | "))
    });
    output::print_line(&format!(
        "starting ranks {}-{} of {world_size} on machine {} of {}, master {}:{port}, {cores}",
        ranks.start,
        ranks.end - 1,
        layout.node_rank,
        layout.nnodes,
        layout.master_addr,
    ));
}
