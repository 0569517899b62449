//! Reports micro-batches whose loss is much larger than those before, with their rows.

use serde_json::json;
use vlm_display::count;

use super::Trainer;
use super::report::GlobalLoss;
use crate::TrainError;

/// Name of the file with the reports, in a run's folder.
pub(crate) const FILE_NAME: &str = "loss_spikes.jsonl";
/// Largest number of rows that the warning names.
const NUM_ROWS_NAMED: usize = 8;

impl Trainer<'_> {
    /// Compares the loss of the current micro-batch with the median of the last losses, and reports
    /// it with the `rows` of all ranks if it is too large. Returns whether it is, which is the same
    /// on all ranks. Collective.
    pub(super) fn check_for_loss_spike(
        &mut self,
        loss: GlobalLoss,
        rows: &[usize],
    ) -> Result<bool, TrainError> {
        let optim = &self.config.optim;
        let (Some(factor), Some(loss)) = (optim.loss_spike_factor, loss.loss) else {
            return Ok(false);
        };
        let recent = self.state.recent_losses.get_or_insert_default();
        let median = recent.median();
        recent.add(loss);
        let Some(median) = median.filter(|median| loss.is_finite() && loss > factor * median)
        else {
            return Ok(false);
        };
        let own: Vec<String> = rows.iter().map(|&row| self.source.locate(row)).collect();
        let rows = self.world.gather(&own)?.concat();
        let step = self.state.counters.step + 1;
        let is_skipped = optim.skip_loss_spikes;
        if let Some(log) = &mut self.spike_log {
            log.append(&json!({
                "step": step, "loss": loss, "median": median, "skipped": is_skipped, "rows": rows,
            }))?;
            let named = &rows[..rows.len().min(NUM_ROWS_NAMED)];
            let more = if named.len() < rows.len() { ", …" } else { "" };
            tracing::warn!(
                "step {step}: the loss {loss:.4} is {:.1} times the median of the last losses, \
                 {median:.4}{}. Its {}: {}{more} ({})",
                loss / median,
                if is_skipped { ", so its update is skipped" } else { "" },
                count(rows.len(), "row"),
                named.join(", "),
                log.path().display()
            );
        }
        Ok(is_skipped)
    }
}
