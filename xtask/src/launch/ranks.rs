//! One attempt: starts the ranks of this machine, passes on what they print, and ends them all
//! when one fails or the user asks.

use std::ffi::OsString;
use std::io::{self, IsTerminal};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::cores;
use super::layout::Layout;
use super::output::{self, LastLines, pass_on};
use crate::sys::{self, Signal};
use crate::workspace::usage_error;

/// Between two looks at the ranks.
const TICK: Duration = Duration::from_millis(10);
/// From the first failure to the end of those that do not end when asked to. With what it takes to
/// see the end of a process, all is over within ten seconds.
const GRACE: Duration = Duration::from_secs(8);
/// For what a rank has printed before its end.
const DRAIN: Duration = Duration::from_secs(1);
/// A program that is not there is a wrong request; other errors are the system's.
const USAGE_KINDS: [io::ErrorKind; 2] = [io::ErrorKind::NotFound, io::ErrorKind::PermissionDenied];

/// The program that every rank runs.
#[derive(Debug, Clone)]
pub struct Job {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, the same on every rank.
    pub args: Vec<OsString>,
    /// Variables beside those that tell a rank who it is.
    pub env: Vec<(OsString, OsString)>,
}

/// Whoever ends a whole job (a batch system, a terminal that closes) may send more than one signal:
/// what follows the first so soon is one request.
const ONE_REQUEST: Duration = Duration::from_millis(500);

/// Counts how often the user asked to stop.
#[derive(Debug, Clone, Default)]
pub struct Signals(Arc<Asked>);

#[derive(Debug, Default)]
struct Asked {
    count: AtomicUsize,
    first: OnceLock<Instant>,
}

impl Signals {
    /// Ctrl-C, SIGTERM and SIGHUP from now on no longer end this process, but are counted.
    /// # Errors
    /// The system's.
    pub fn listen() -> Result<Self> {
        let signals = Self::default();
        let count = signals.clone();
        ctrlc::set_handler(move || count.raise()).context("listening for signals")?;
        Ok(signals)
    }

    /// Counts one more, unless it belongs to the first.
    pub fn raise(&self) {
        let first = *self.0.first.get_or_init(Instant::now);
        if self.count() == 0 || first.elapsed() >= ONE_REQUEST {
            self.0.count.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// How many there were.
    pub fn count(&self) -> usize {
        self.0.count.load(Ordering::Relaxed)
    }
}

/// The rank that failed first.
#[derive(Debug)]
pub struct Failure {
    /// Its number over all machines.
    pub rank: usize,
    /// How it ended.
    pub status: ExitStatus,
    /// What it printed last; empty where that went to the terminal directly.
    pub last_lines: Vec<String>,
}

impl Failure {
    /// The exit code to pass on; 128 + n for signal n, as shells have it.
    pub fn code(&self) -> u8 {
        let code = self.status.code().or(self.status.signal().map(|signal| 128 + signal));
        code.and_then(|code| u8::try_from(code).ok()).unwrap_or(1)
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "rank {} failed first ({})", self.rank, self.status)?;
        if !self.last_lines.is_empty() {
            write!(f, "; the last it said:")?;
        }
        self.last_lines.iter().try_for_each(|line| write!(f, "\n  {line}"))
    }
}

/// Runs the ranks of this machine to their end; `Some` when one failed.
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
            // The ranks save what they have on the first; the second is for those that cannot.
            group.signal(if seen == 0 { Signal::Terminate } else { Signal::Kill });
            seen = count;
        }
        if kill_at.is_some_and(|at| at <= Instant::now()) {
            group.signal(Signal::Kill);
        }
        thread::sleep(TICK);
    }
    group.drain();
    Ok(failed.map(|(rank, status)| Failure { rank, status, last_lines: group.last_lines(rank) }))
}

/// Of ranks that ended between two looks: one that was killed rather than one that saw its
/// connection break for that, else the lowest.
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
        let meeting = layout.meeting(attempt)?;
        let shares = cores::shares(layout.nproc_per_node);
        announce(layout, meeting.port, shares.as_deref());
        let mut group = Self { ranks: Vec::new(), streams: Vec::new() };
        for (local_rank, rank) in layout.ranks().enumerate() {
            let share = shares.as_ref().map_or(&[][..], |shares| &shares[local_rank]);
            let mut command = Command::new(&job.program);
            command.args(&job.args).stdin(Stdio::null());
            if std::env::var_os("OMP_NUM_THREADS").is_none() {
                command.env("OMP_NUM_THREADS", share.len().max(1).to_string());
            }
            command.envs(job.env.iter().cloned());
            command.envs(layout.environment(rank, &meeting));
            // A group of its own: Ctrl-C on the terminal is for us, who pass it on once.
            command.process_group(0);
            sys::bind_child(&mut command, share);
            group.spawn(rank, command)?;
        }
        Ok(group)
    }

    fn spawn(&mut self, rank: usize, mut command: Command) -> Result<()> {
        // Rank 0 keeps the terminal for its progress bar; all else comes through us.
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
            self.streams.push(pass_on(stdout, prefix, last_lines.clone(), io::stdout));
        }
        if let Some(stderr) = child.stderr.take() {
            let prefix = output::prefix(rank);
            self.streams.push(pass_on(stderr, prefix, last_lines.clone(), io::stderr));
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
                // What it started and left behind, which would hold our pipes open.
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

    /// Waits for the last lines of ranks that have ended.
    fn drain(&self) {
        let until = Instant::now() + DRAIN;
        while self.streams.iter().any(|stream| !stream.is_finished()) && Instant::now() < until {
            thread::sleep(TICK);
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
            // Killed just now: the wait is short, and its result changes nothing.
            let _ = rank.child.wait();
        }
    }
}

fn announce(layout: &Layout, port: u16, shares: Option<&[Vec<usize>]>) {
    let ranks = layout.ranks();
    let world_size = layout.world_size();
    let cores = shares.map_or("fewer cores than ranks, none bound".to_owned(), |shares| {
        let lists: Vec<String> = shares.iter().map(|share| cores::list(share)).collect();
        format!("cores {}", lists.join(" | "))
    });
    output::say(&format!(
        "starting ranks {}-{} of {world_size} on machine {} of {}; they meet at {}:{port}; {cores}",
        ranks.start,
        ranks.end - 1,
        layout.node_rank,
        layout.nnodes,
        layout.master_addr,
    ));
}
