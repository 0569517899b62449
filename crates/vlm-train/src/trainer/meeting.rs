//! What the ranks tell each other of a step's batch before they compute.

use std::sync::atomic::{AtomicBool, Ordering};

use vlm_data::{Batch, Rejected};

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

    /// Writes the rejected rows of all ranks down, and ends the run when they are too many: every rank
    /// counts the same, so all end alike.
    pub(super) fn record_rejected(
        &mut self,
        batch: &Batch,
        totals: &Totals,
    ) -> Result<(), TrainError> {
        let all = match self.team {
            _ if totals.rejected == 0 => Vec::new(),
            None => batch.rejected.clone(),
            Some(team) => team.gather(&batch.rejected)?.concat(),
        };
        // Written before they are counted: the rows that end the run are in the file too.
        self.write_rejected(&all)?;
        self.budget.add(totals.rows as usize, &all)?;
        self.position.epoch_rows = self.budget.num_seen();
        self.position.epoch_rejected = self.budget.num_rejected();
        Ok(())
    }

    fn write_rejected(&mut self, all: &[Rejected]) -> Result<(), TrainError> {
        if all.is_empty() {
            return Ok(());
        }
        let Some(log) = &mut self.rejects else { return Ok(()) };
        for rejected in all {
            if log.record(rejected).map_err(TrainError::midway)? {
                self.position.counters.rejected_rows += 1;
            }
        }
        // A run that ended hard may have written rows that its checkpoint does not count.
        let counted = &mut self.position.counters.rejected_rows;
        *counted = (*counted).max(log.len() as u64);
        Ok(())
    }
}
