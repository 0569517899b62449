//! The ranks of a job, their machines, and the environment variables of each rank, which are those
//! of torchrun.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

const RUN_ID: &str = "TORCHELASTIC_RUN_ID";

/// The number of processes and machines, and how they connect. Every machine has the same number of
/// processes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Number of processes on this machine.
    pub nproc_per_node: usize,
    /// Number of machines.
    pub nnodes: usize,
    /// Index of this machine, from 0.
    pub node_rank: usize,
    /// Address at which rank 0 waits for the other ranks.
    pub master_addr: String,
    /// Port at that address. `None` with a single machine: a free one is chosen for every attempt.
    pub master_port: Option<u16>,
    /// How often all ranks are started again after a failure.
    pub max_restarts: usize,
}

/// The values with which the ranks of one attempt find each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rendezvous {
    /// Port at which rank 0 waits.
    pub port: u16,
    /// Identifier that keeps the ranks of other runs out.
    pub run_id: String,
    /// Number of the attempt, from 0.
    pub attempt: usize,
}

impl Layout {
    /// Whether this is a single process without restarts, which needs no launcher.
    pub fn is_one_process(&self) -> bool {
        self.nproc_per_node == 1 && self.nnodes == 1 && self.max_restarts == 0
    }

    /// Number of ranks on all machines.
    pub fn world_size(&self) -> usize {
        self.nproc_per_node * self.nnodes
    }

    /// The ranks of this machine.
    pub fn ranks(&self) -> Range<usize> {
        let first = self.node_rank * self.nproc_per_node;
        first..first + self.nproc_per_node
    }

    /// The port for one attempt.
    ///
    /// # Errors
    /// No port is free.
    pub fn port(&self) -> Result<u16> {
        match self.master_port {
            Some(port) => Ok(port),
            None => free_port(&self.master_addr),
        }
    }

    /// Identifier that distinguishes the ranks of this run from those of other runs. With several
    /// machines it must come from the environment, since their launchers do not communicate.
    fn run_id(&self) -> String {
        if self.nnodes > 1 {
            return std::env::var(RUN_ID).unwrap_or_else(|_| "none".to_owned());
        }
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("{}-{}", std::process::id(), started.as_nanos())
    }

    /// The restart count that the ranks see. Only ranks with the same count connect to each other.
    /// With several machines it is always 0: each machine counts its own restarts, so their counts
    /// may differ, and every attempt has its own store anyway.
    fn restart_count(&self, attempt: usize) -> usize {
        if self.nnodes == 1 { attempt } else { 0 }
    }

    /// The rendezvous of the ranks of one attempt.
    ///
    /// # Errors
    /// As [`Self::port`].
    pub fn rendezvous(&self, attempt: usize) -> Result<Rendezvous> {
        Ok(Rendezvous { port: self.port()?, run_id: self.run_id(), attempt })
    }

    /// Environment variables of the rank `rank` of this machine.
    pub fn environment(&self, rank: usize, rendezvous: &Rendezvous) -> Vec<(OsString, OsString)> {
        [
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", (rank - self.ranks().start).to_string()),
            ("WORLD_SIZE", self.world_size().to_string()),
            ("LOCAL_WORLD_SIZE", self.nproc_per_node.to_string()),
            ("GROUP_RANK", self.node_rank.to_string()),
            ("GROUP_WORLD_SIZE", self.nnodes.to_string()),
            ("MASTER_ADDR", self.master_addr.clone()),
            ("MASTER_PORT", rendezvous.port.to_string()),
            // Rank 0 runs the store: this launcher has none. The variable may be set differently in
            // the environment of the launcher.
            ("TORCHELASTIC_USE_AGENT_STORE", "False".to_owned()),
            (RUN_ID, rendezvous.run_id.clone()),
            ("TORCHELASTIC_RESTART_COUNT", self.restart_count(rendezvous.attempt).to_string()),
            ("TORCHELASTIC_MAX_RESTARTS", self.max_restarts.to_string()),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into()
    }
}

/// A port on which nothing listens. It is below 32768, so that the system does not assign it to
/// another program before rank 0 opens it. The search starts at a number that depends on the
/// process, so that launchers rarely choose the same port.
fn free_port(address: &str) -> Result<u16> {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static NUM_DRAWN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        let step = NUM_DRAWN.fetch_add(1, Ordering::Relaxed);
        let offset = std::process::id().wrapping_mul(61).wrapping_add(step) % COUNT;
        let port = u16::try_from(FIRST + offset).context("port number")?;
        match TcpListener::bind((address, port)) {
            Ok(_) => return Ok(port),
            Err(e) if e.kind() == ErrorKind::AddrInUse => {}
            Err(e) => {
                return Err(e).with_context(|| format!("asking for a free port on {address}"));
            }
        }
    }
    bail!("no port of {address} from {FIRST} to {} is free", FIRST + COUNT - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_of_the_second_machine_follow_those_of_the_first() {
        let layout = Layout {
            nproc_per_node: 4,
            nnodes: 2,
            node_rank: 1,
            master_addr: "10.0.0.1".to_owned(),
            master_port: Some(29500),
            max_restarts: 3,
        };
        assert_eq!((layout.world_size(), layout.ranks()), (8, 4..8));
        let variables = layout.environment(6, &layout.rendezvous(2).unwrap());
        let value = |name: &str| {
            variables
                .iter()
                .find(|(key, _)| key == name)
                .and_then(|(_, value)| value.to_str())
                .unwrap()
        };
        assert_eq!((value("RANK"), value("LOCAL_RANK"), value("WORLD_SIZE")), ("6", "2", "8"));
        assert_eq!((value("LOCAL_WORLD_SIZE"), value("GROUP_RANK")), ("4", "1"));
        assert_eq!((value("MASTER_ADDR"), value("MASTER_PORT")), ("10.0.0.1", "29500"));
        assert_eq!(
            value("TORCHELASTIC_RESTART_COUNT"),
            "0",
            "machines count their restarts separately"
        );
    }

    #[test]
    fn runs_on_one_machine_have_different_ids_and_ports() {
        let layout = Layout {
            nproc_per_node: 2,
            nnodes: 1,
            node_rank: 0,
            master_addr: "127.0.0.1".to_owned(),
            master_port: None,
            max_restarts: 0,
        };
        let (one, other) = (layout.rendezvous(0).unwrap(), layout.rendezvous(0).unwrap());
        assert_ne!(one.run_id, other.run_id);
        assert_ne!(one.port, other.port);
        assert!(one.port < 32_768, "a port that the system may assign to others");
    }
}
