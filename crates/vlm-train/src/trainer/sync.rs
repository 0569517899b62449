//! What the ranks tell each other of a step's batch before they compute.

use std::sync::atomic::{AtomicBool, Ordering};

use vlm_data::{Batch, Rejected};

use super::Trainer;
use crate::TrainError;
use crate::parallel::{GlobalStepStats, LocalStepStats};

impl Trainer<'_> {
    /// Learns what all ranks bring to the step. A rank that cannot go on stops all.
    pub(super) fn sync_step(
        &self,
        batch: Result<Batch, TrainError>,
        stop: &AtomicBool,
    ) -> Result<(Batch, GlobalStepStats), TrainError> {
        let failed = LocalStepStats { failed: true, ..LocalStepStats::default() };
        let own = batch
            .as_ref()
            .map_or(failed, |batch| LocalStepStats::of(batch, self.learns_from_text()));
        let own = LocalStepStats { stop: stop.load(Ordering::Relaxed), ..own };
        let totals = self.world.sync_step(self.position.counters.step + 1, own)?;
        let batch = if totals.failed { self.world.all_ready(batch)? } else { batch? };
        Ok((batch, totals))
    }

    /// Writes the rejected rows of all ranks down, and ends the run when they are too many: every rank
    /// counts the same, so all end alike.
    pub(super) fn record_rejected(
        &mut self,
        batch: &Batch,
        totals: &GlobalStepStats,
    ) -> Result<(), TrainError> {
        let all = match totals.rejected {
            0 => Vec::new(),
            _ => self.world.gather(&batch.rejected)?.concat(),
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
