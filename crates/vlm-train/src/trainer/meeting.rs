//! What the ranks tell each other of a step's batch before they compute.

use std::sync::atomic::{AtomicBool, Ordering};

use vlm_data::Batch;

use super::Trainer;
use crate::TrainError;
use crate::parallel::{Phase, Share, Totals};

impl Trainer<'_> {
    /// Learns what all ranks bring to the step. A rank that cannot go on stops all.
    pub(super) fn meet(
        &self,
        batch: Result<Batch, TrainError>,
        stop: &AtomicBool,
    ) -> Result<(Batch, Totals), TrainError> {
        let share = batch.as_ref().map_or(Share { failed: true, ..Share::default() }, |batch| {
            Share::of(batch, self.learns_from_text())
        });
        let Some(team) = self.team else {
            return Ok((batch?, Totals::of(&[share])));
        };
        self.reached(Phase::Meeting);
        let share = Share { stop: stop.load(Ordering::Relaxed), ..share };
        let totals = Totals::of(&team.meet(self.position.counters.step + 1, share)?);
        let batch = if totals.failed { team.all_ready(batch)? } else { batch? };
        Ok((batch, totals))
    }

    pub(super) fn set_aside(&mut self, batch: &Batch, totals: &Totals) -> Result<(), TrainError> {
        if totals.rejected == 0 {
            return Ok(());
        }
        let all = match self.team {
            None => vec![batch.rejected.clone()],
            Some(team) => team.gather(&batch.rejected)?,
        };
        let Some(log) = &mut self.rejects else { return Ok(()) };
        for rejected in all.iter().flatten() {
            if log.record(rejected)? {
                self.position.counters.rejected_rows += 1;
            }
        }
        // A run that ended hard may have written rows that its checkpoint does not count.
        let counted = &mut self.position.counters.rejected_rows;
        *counted = (*counted).max(log.len() as u64);
        Ok(())
    }
}
