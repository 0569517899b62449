//! What the heartbeats of the other ranks say about them.

use std::fmt;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Number of polls without a new heartbeat after which a rank is reported as not responding.
pub(super) const MAX_SILENT_POLLS: u64 = 3;

/// One heartbeat: the position of a rank in the run, as it is stored.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Beat {
    /// Number of this heartbeat. When it no longer changes, the process was stopped or has ended.
    pub(super) number: u64,
    /// Current step of the rank.
    pub(super) step: u64,
    /// Name of the rank's current phase.
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
    /// Number of polls since the heartbeat last changed; counted only while watching.
    pub(super) silent_polls: u64,
    /// When the heartbeat last changed.
    pub(super) changed: Option<Instant>,
    /// The error that the rank published before it ended.
    pub(super) error: Option<String>,
}

impl Peer {
    /// Records the heartbeat that a poll found, if any.
    pub(super) fn record_beat(&mut self, beat: Option<Beat>) {
        let number = |beat: &Option<Beat>| beat.as_ref().map(|beat| beat.number);
        let has_changed = number(&beat) != number(&self.beat);
        if has_changed {
            self.changed = Some(Instant::now());
        }
        self.silent_polls = if has_changed { 0 } else { self.silent_polls + 1 };
        self.beat = beat.or(self.beat.take());
    }

    fn describe(&self, rank: usize) -> String {
        match (&self.error, &self.beat) {
            (Some(error), _) => format!("rank {rank} ended: {error}"),
            (None, None) => format!("rank {rank} never reported"),
            (None, Some(beat)) if self.silent_polls < MAX_SILENT_POLLS => {
                format!("rank {rank} is at {beat}")
            }
            (None, Some(beat)) => {
                format!("rank {rank} does not respond; it last reported {beat}")
            }
        }
    }
}

/// What is known about all ranks, and about the store that holds their heartbeats.
#[derive(Debug)]
pub(super) struct Peers {
    /// One entry for each rank; that of this process stays empty.
    pub(super) ranks: Vec<Peer>,
    /// When the store last replied.
    pub(super) replied: Instant,
    /// Whether the connection to the store broke, or the store did not reply in time. It is then
    /// not waited for again.
    pub(super) is_cut_off: bool,
}

impl Peers {
    pub(super) fn new(world_size: usize) -> Self {
        let ranks = vec![Peer::default(); world_size];
        Self { ranks, replied: Instant::now(), is_cut_off: false }
    }

    /// Why it is useless to wait for the other ranks: one of them ended, or has sent no heartbeat for
    /// the time `limit`.
    pub(super) fn why_not_to_wait(&self, limit: Duration) -> Option<String> {
        self.ranks.iter().enumerate().find_map(|(rank, peer)| {
            let is_silent = peer.changed.is_some_and(|changed| changed.elapsed() >= limit);
            match &peer.error {
                Some(error) => {
                    // Without what that rank knew about this one.
                    let error = error.split(". Other ranks:").next().unwrap_or(error);
                    Some(format!("rank {rank} ended: {error}"))
                }
                None => is_silent.then(|| format!("rank {rank} does not respond")),
            }
        })
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
            "the store, which rank 0 or the launcher runs, does not respond: that process was \
             stopped or has ended, or the network to it is down. Known {} s ago: {known}",
            self.replied.elapsed().as_secs()
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
    fn a_heartbeat_is_shown_as_step_phase_and_duration() {
        assert_eq!(beat(4).to_string(), "step 37, waiting for data (for 9 s)");
    }

    #[test]
    fn a_rank_whose_heartbeat_stops_is_reported_as_not_responding() {
        let mut peer = Peer::default();
        assert_eq!(peer.describe(2), "rank 2 never reported");
        for number in [1, 2, 2, 2] {
            peer.record_beat(Some(beat(number)));
            assert_eq!(peer.describe(2), format!("rank 2 is at {}", beat(1)));
        }
        peer.record_beat(Some(beat(2)));
        assert!(peer.describe(2).contains("does not respond; it last reported step 37"));
        peer.error = Some("no memory".into());
        assert_eq!(peer.describe(2), "rank 2 ended: no memory");
    }

    #[test]
    fn a_rank_that_ended_or_is_silent_for_too_long_is_not_waited_for() {
        let mut peers = Peers::new(2);
        let hour = Duration::from_secs(3600);
        assert_eq!(peers.why_not_to_wait(Duration::ZERO), None, "it has not started yet");
        peers.ranks[1].record_beat(Some(beat(1)));
        assert_eq!(peers.why_not_to_wait(hour), None);
        let silent = peers.why_not_to_wait(Duration::ZERO);
        assert_eq!(silent.as_deref(), Some("rank 1 does not respond"));
        peers.ranks[1].error = Some("no memory".into());
        assert_eq!(peers.why_not_to_wait(hour).as_deref(), Some("rank 1 ended: no memory"));
    }
}
