//! Which ranks there are, on which machines, and what each is told: torchrun's environment.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::net::TcpListener;
use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};

const RUN_ID: &str = "TORCHELASTIC_RUN_ID";

/// Processes over machines, the same number on each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    /// Processes on this machine.
    pub nproc_per_node: usize,
    /// Machines.
    pub nnodes: usize,
    /// This machine's number, from 0.
    pub node_rank: usize,
    /// Where rank 0 waits for the others.
    pub master_addr: String,
    /// Its port; `None`: a free one, drawn anew for every attempt. Only one machine can do that.
    pub master_port: Option<u16>,
    /// How often all ranks are started again after one failed.
    pub max_restarts: usize,
}

/// Where and as whom the ranks of one attempt meet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Meeting {
    pub port: u16,
    pub run_id: String,
    /// From 0.
    pub attempt: usize,
}

impl Layout {
    /// Whether there is nothing to look after.
    pub fn is_one_process(&self) -> bool {
        self.nproc_per_node == 1 && self.nnodes == 1 && self.max_restarts == 0
    }

    /// Ranks of all machines.
    pub fn world_size(&self) -> usize {
        self.nproc_per_node * self.nnodes
    }

    /// The ranks of this machine.
    pub fn ranks(&self) -> Range<usize> {
        let first = self.node_rank * self.nproc_per_node;
        first..first + self.nproc_per_node
    }

    /// The port of one attempt.
    /// # Errors
    /// The system has no free one.
    pub fn port(&self) -> Result<u16> {
        match self.master_port {
            Some(port) => Ok(port),
            None => free_port(&self.master_addr),
        }
    }

    /// What tells the ranks of this run from those of others. Machines that start on their own can
    /// only be told the same one.
    fn run_id(&self) -> String {
        if self.nnodes > 1 {
            return std::env::var(RUN_ID).unwrap_or_else(|_| "none".to_owned());
        }
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        format!("{}-{}", std::process::id(), started.as_nanos())
    }

    /// Ranks meet under the number of their attempt. Machines count theirs apart, and might never
    /// meet again; each attempt has a store of its own in any case, so one number does for all.
    fn told_attempt(&self, attempt: usize) -> usize {
        if self.nnodes == 1 { attempt } else { 0 }
    }

    /// What the ranks of an attempt are told alike.
    /// # Errors
    /// As [`Self::port`].
    pub fn meeting(&self, attempt: usize) -> Result<Meeting> {
        Ok(Meeting { port: self.port()?, run_id: self.run_id(), attempt })
    }

    /// What rank `rank` of this machine is told.
    pub fn environment(&self, rank: usize, meeting: &Meeting) -> Vec<(OsString, OsString)> {
        [
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", (rank - self.ranks().start).to_string()),
            ("WORLD_SIZE", self.world_size().to_string()),
            ("LOCAL_WORLD_SIZE", self.nproc_per_node.to_string()),
            ("GROUP_RANK", self.node_rank.to_string()),
            ("GROUP_WORLD_SIZE", self.nnodes.to_string()),
            ("MASTER_ADDR", self.master_addr.clone()),
            ("MASTER_PORT", meeting.port.to_string()),
            // Rank 0 runs the store: there is no agent here that does, whatever started us says.
            ("TORCHELASTIC_USE_AGENT_STORE", "False".to_owned()),
            (RUN_ID, meeting.run_id.clone()),
            ("TORCHELASTIC_RESTART_COUNT", self.told_attempt(meeting.attempt).to_string()),
            ("TORCHELASTIC_MAX_RESTARTS", self.max_restarts.to_string()),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into()
    }
}

/// A port that nobody listens on, and that the system gives nobody between now and rank 0's asking
/// for it: it hands out ports from 32768 on. Launchers begin their search apart.
fn free_port(address: &str) -> Result<u16> {
    const FIRST: u32 = 20_000;
    const COUNT: u32 = 12_000;
    static NUM_DRAWN: AtomicU32 = AtomicU32::new(0);
    for _ in 0..COUNT {
        let step = NUM_DRAWN.fetch_add(1, Ordering::Relaxed);
        let offset = std::process::id().wrapping_mul(61).wrapping_add(step) % COUNT;
        let port = u16::try_from(FIRST + offset).context("a port's number")?;
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
        let told = layout.environment(6, &layout.meeting(2).unwrap());
        let value = |name: &str| {
            told.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.to_str()).unwrap()
        };
        assert_eq!((value("RANK"), value("LOCAL_RANK"), value("WORLD_SIZE")), ("6", "2", "8"));
        assert_eq!((value("LOCAL_WORLD_SIZE"), value("GROUP_RANK")), ("4", "1"));
        assert_eq!((value("MASTER_ADDR"), value("MASTER_PORT")), ("10.0.0.1", "29500"));
        assert_eq!(value("TORCHELASTIC_RESTART_COUNT"), "0", "machines count apart");
    }

    #[test]
    fn runs_on_one_machine_are_told_apart() {
        let layout = Layout {
            nproc_per_node: 2,
            nnodes: 1,
            node_rank: 0,
            master_addr: "127.0.0.1".to_owned(),
            master_port: None,
            max_restarts: 0,
        };
        let (one, other) = (layout.meeting(0).unwrap(), layout.meeting(0).unwrap());
        assert_ne!(one.run_id, other.run_id);
        assert_ne!(one.port, other.port);
        assert!(one.port < 32_768, "given to others by the system");
    }
}
