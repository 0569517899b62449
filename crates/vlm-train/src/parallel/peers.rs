//! What one rank knows about the others from their heartbeats.

use std::fmt;
use std::time::Instant;

use serde::{Deserialize, Serialize};

/// Number of looks at a rank without a new heartbeat after which it is considered to have ended.
pub(super) const MAX_SILENT_LOOKS: u64 = 3;

/// One heartbeat: what a rank says about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Beat {
    /// Counts the heartbeats. A number that does not change comes from a process that was stopped or
    /// has ended.
    pub(super) number: u64,
    /// Step that the rank is at.
    pub(super) step: u64,
    /// Name of the phase that the rank is in.
    pub(super) phase: String,
    /// Time since the phase began, or since the rank last reported progress in it.
    pub(super) phase_ms: u64,
}

impl fmt::Display for Beat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}, {} (for {} s)", self.step, self.phase, self.phase_ms / 1000)
    }
}

/// What is known about another rank.
#[derive(Debug, Clone, Default)]
pub(super) struct Peer {
    /// The rank's last heartbeat that was read.
    pub(super) beat: Option<Beat>,
    /// Number of looks since the heartbeat last changed. Only counted while watching.
    pub(super) silent_looks: u64,
    /// The error that the rank published before it ended.
    pub(super) error: Option<String>,
}

impl Peer {
    /// Records what a look at the rank's heartbeat found.
    pub(super) fn saw(&mut self, beat: Option<Beat>) {
        let number = |beat: &Option<Beat>| beat.as_ref().map(|beat| beat.number);
        let has_changed = number(&beat) != number(&self.beat);
        self.silent_looks = if has_changed { 0 } else { self.silent_looks + 1 };
        self.beat = beat.or(self.beat.take());
    }

    fn describe(&self, rank: usize) -> String {
        match (&self.error, &self.beat) {
            (Some(error), _) => format!("rank {rank} ended: {error}"),
            (None, None) => format!("rank {rank} never reported"),
            (None, Some(beat)) if self.silent_looks < MAX_SILENT_LOOKS => {
                format!("rank {rank} is at {beat}")
            }
            (None, Some(beat)) => {
                format!("rank {rank} is stopped, gone or cut off; it last reported {beat}")
            }
        }
    }
}

/// What is known about all ranks, and about the store that their heartbeats come from.
#[derive(Debug)]
pub(super) struct Peers {
    /// One entry for each rank. The entry of the own rank stays empty.
    pub(super) ranks: Vec<Peer>,
    /// When the store last answered.
    pub(super) answered: Instant,
    /// Whether the connection to the store broke, or the store did not answer in time. Nobody waits
    /// for it again.
    pub(super) is_cut_off: bool,
}

impl Peers {
    pub(super) fn new(world_size: usize) -> Self {
        let ranks = vec![Peer::default(); world_size];
        Self { ranks, answered: Instant::now(), is_cut_off: false }
    }

    /// What is known about every rank except `own_rank`, for a message.
    pub(super) fn describe(&self, own_rank: usize) -> String {
        let others = self.ranks.iter().enumerate().filter(|(rank, _)| *rank != own_rank);
        let known: Vec<String> = others.map(|(rank, peer)| peer.describe(rank)).collect();
        let known = known.join("; ");
        if !self.is_cut_off {
            return known;
        }
        format!(
            "the store, which rank 0 or the launcher keeps, does not answer: that process is stopped \
             or gone, or the network to it is down. As of {} s ago: {known}",
            self.answered.elapsed().as_secs()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn beat(number: u64) -> Beat {
        Beat { number, step: 37, phase: "waiting for data".into(), phase_ms: 9_400 }
    }

    #[test]
    fn a_heartbeat_reads_as_a_place_in_the_run() {
        assert_eq!(beat(4).to_string(), "step 37, waiting for data (for 9 s)");
    }

    #[test]
    fn a_rank_counts_as_ended_when_its_heartbeat_stops() {
        let mut peer = Peer::default();
        assert_eq!(peer.describe(2), "rank 2 never reported");
        for number in [1, 2, 2, 2] {
            peer.saw(Some(beat(number)));
            assert_eq!(peer.describe(2), format!("rank 2 is at {}", beat(1)));
        }
        peer.saw(Some(beat(2)));
        assert!(peer.describe(2).contains("stopped, gone or cut off; it last reported step 37"));
        peer.error = Some("no memory".into());
        assert_eq!(peer.describe(2), "rank 2 ended: no memory");
    }
}
