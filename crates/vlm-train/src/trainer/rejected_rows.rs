//! Writes rejected rows to a log and limits their number.

use vlm_data::{Batch, RejectBudget, Rejected};

use super::Trainer;
use crate::TrainError;
use crate::parallel::GlobalStepStats;

impl Trainer<'_> {
    /// Starts to count the rejected rows of an epoch, or continues the count in a continued run.
    /// Returns whether the count includes the whole epoch: checkpoints of earlier versions do not
    /// hold it.
    pub(super) fn start_reject_budget(&mut self) -> bool {
        let (num_seen, num_rejected) = (self.state.epoch_rows, self.state.epoch_rejected);
        let max_fraction = self.config.data.max_rejected_fraction;
        self.reject_budget = RejectBudget::resumed(max_fraction, num_seen, num_rejected);
        self.state.next_batch == 0 || num_seen > 0
    }

    /// Writes the rejected rows of all ranks to the log, and counts them. All ranks count the rows
    /// of all ranks, so that they end together when there are too many.
    pub(super) fn record_rejected_rows(
        &mut self,
        batch: &Batch,
        stats: &GlobalStepStats,
    ) -> Result<(), TrainError> {
        let rejected = match stats.rejected {
            0 => Vec::new(),
            _ => self.world.gather(&batch.rejected)?.concat(),
        };
        // They are written before they are counted, so that the log has the rows that end the run,
        // too.
        self.write_rejected_rows(&rejected)?;
        self.reject_budget.add(stats.rows as usize, &rejected)?;
        self.state.epoch_rows = self.reject_budget.num_seen();
        self.state.epoch_rejected = self.reject_budget.num_rejected();
        Ok(())
    }

    fn write_rejected_rows(&mut self, rejected: &[Rejected]) -> Result<(), TrainError> {
        if rejected.is_empty() {
            return Ok(());
        }
        let Some(log) = &mut self.reject_log else { return Ok(()) };
        let counted = &mut self.state.counters.rejected_rows;
        for row in rejected {
            *counted += u64::from(log.record(row).map_err(TrainError::midway)?);
        }
        // The log may hold rows of a killed run that its last checkpoint does not count.
        *counted = (*counted).max(log.len() as u64);
        Ok(())
    }
}
