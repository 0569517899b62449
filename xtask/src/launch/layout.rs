//! Which ranks there are, on which machines, and what each is told: torchrun's environment.

use std::ffi::OsString;
use std::net::TcpListener;
use std::ops::Range;

use anyhow::{Context, Result};

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
            None => {
                let probe = TcpListener::bind((self.master_addr.as_str(), 0))
                    .with_context(|| format!("asking for a free port on {}", self.master_addr))?;
                Ok(probe.local_addr().context("asking for the free port's number")?.port())
            }
        }
    }

    /// Ranks meet under the number of their attempt. Machines count theirs apart, and might never
    /// meet again; each attempt has a store of its own in any case, so one number does for all.
    fn told_attempt(&self, attempt: usize) -> usize {
        if self.nnodes == 1 { attempt } else { 0 }
    }

    /// What rank `rank` of this machine is told. `attempt` counts from 0.
    pub fn environment(&self, rank: usize, port: u16, attempt: usize) -> Vec<(OsString, OsString)> {
        [
            ("RANK", rank.to_string()),
            ("LOCAL_RANK", (rank - self.ranks().start).to_string()),
            ("WORLD_SIZE", self.world_size().to_string()),
            ("LOCAL_WORLD_SIZE", self.nproc_per_node.to_string()),
            ("GROUP_RANK", self.node_rank.to_string()),
            ("GROUP_WORLD_SIZE", self.nnodes.to_string()),
            ("MASTER_ADDR", self.master_addr.clone()),
            ("MASTER_PORT", port.to_string()),
            // Rank 0 runs the store: there is no agent here that does, whatever started us says.
            ("TORCHELASTIC_USE_AGENT_STORE", "False".to_owned()),
            ("TORCHELASTIC_RESTART_COUNT", self.told_attempt(attempt).to_string()),
            ("TORCHELASTIC_MAX_RESTARTS", self.max_restarts.to_string()),
        ]
        .map(|(name, value)| (name.into(), value.into()))
        .into()
    }
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
        let told = layout.environment(6, layout.port().unwrap(), 2);
        let value = |name: &str| {
            told.iter().find(|(key, _)| key == name).and_then(|(_, value)| value.to_str()).unwrap()
        };
        assert_eq!((value("RANK"), value("LOCAL_RANK"), value("WORLD_SIZE")), ("6", "2", "8"));
        assert_eq!((value("LOCAL_WORLD_SIZE"), value("GROUP_RANK")), ("4", "1"));
        assert_eq!((value("MASTER_ADDR"), value("MASTER_PORT")), ("10.0.0.1", "29500"));
        assert_eq!(value("TORCHELASTIC_RESTART_COUNT"), "0", "machines count apart");
    }
}
