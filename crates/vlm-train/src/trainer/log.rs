//! What a step tells: on the screen and in the log; and what is told of the model on the way.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tch::{Device, Tensor};
use vlm_model::ModelError;
use vlm_torch::peak_memory_bytes;

use super::Trainer;
use super::step::MicroLoss;
use crate::TrainError;
use crate::metrics::{Display, EvalLine, LogLine, Meter};
use crate::parallel::{GlobalStepStats, Phase};
use vlm_infer::eval::EvalReport;

/// The loss of a micro-batch over all ranks, as the log has it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LoggedLoss {
    pub(super) loss: Option<f64>,
    aux_loss: Option<f64>,
}

/// What the user sees, and the clock behind it.
pub(super) struct Screen {
    pub(super) display: Display,
    pub(super) meter: Meter,
    pub(super) samples_per_sec: f64,
}

impl Trainer<'_> {
    fn is_logged(&self, is_last: bool) -> bool {
        let step = self.position.counters.step;
        is_last || step == 1 || step.is_multiple_of(self.config.run.log_interval)
    }

    /// The loss of all ranks together, where it is wanted: reading it makes the host wait for a
    /// GPU, so there only where it is shown.
    pub(super) fn loss_of_all(
        &self,
        own: Option<&MicroLoss>,
        totals: &GlobalStepStats,
        is_last: bool,
    ) -> Result<LoggedLoss, TrainError> {
        let is_wanted = self.is_logged(is_last) || self.model.device() == Device::Cpu;
        if !is_wanted || totals.supervised_tokens == 0 {
            return Ok(LoggedLoss::default());
        }
        let value = |tensor: &Tensor| f64::try_from(tensor).map_err(ModelError::from);
        let loss = own.map_or(Ok(0.0), |own| value(&own.mean))?;
        let aux_loss = own.and_then(|own| own.aux_loss.as_ref()).map_or(Ok(0.0), value)?;
        let [loss, aux_loss] = self.world.sum([loss, aux_loss])?;
        let has_aux_loss = self.model.lm().config().use_moe;
        Ok(LoggedLoss { loss: Some(loss), aux_loss: has_aux_loss.then_some(aux_loss) })
    }

    /// Shows the step, and writes a line of the log where one is due.
    pub(super) fn log(
        &mut self,
        lr: f64,
        loss: LoggedLoss,
        grad_norm: Option<f64>,
        epoch: u64,
        is_last: bool,
        screen: &mut Screen,
    ) -> Result<(), TrainError> {
        let step = self.position.counters.step;
        let LoggedLoss { loss: value, aux_loss } = loss;
        self.position.last_loss = value.or(self.position.last_loss);
        if !self.is_logged(is_last) {
            screen.display.step(step, value, lr, screen.samples_per_sec);
            return Ok(());
        }
        let counters = self.position.counters;
        let speed = screen.meter.lap(counters);
        screen.samples_per_sec = speed.samples_per_sec;
        let Some(metrics) = &mut self.metrics else { return Ok(()) };
        screen.display.step(step, value, lr, speed.samples_per_sec);
        screen.display.say(&format!(
            "step {step}  epoch {epoch}  loss {}  lr {lr:.3e}  {:.1} samples/s",
            value.map_or("–".into(), |loss| format!("{loss:.4}")),
            speed.samples_per_sec
        ));
        metrics.append(&LogLine {
            step,
            update: counters.update,
            epoch,
            loss: value,
            aux_loss,
            lr,
            grad_norm,
            samples: counters.samples,
            tokens: counters.tokens,
            supervised_tokens: counters.supervised_tokens,
            samples_per_sec: speed.samples_per_sec,
            tokens_per_sec: speed.tokens_per_sec,
            data_wait_ms: speed.data_wait_ms,
            step_ms: speed.step_ms,
            peak_memory_bytes: peak_memory_bytes(self.model.device()).unwrap_or(0),
            skipped_updates: counters.skipped_updates,
            rejected_rows: counters.rejected_rows,
        })
    }

    /// What rank 0 finds, on rank 0 (the others wait for it), and whether all of it: when any rank
    /// is asked to stop meanwhile, it ends without a report, and all ranks know.
    fn report(&self, stop: &AtomicBool) -> Result<(Option<EvalReport>, bool), TrainError> {
        let is_asked_to_stop = || stop.load(Ordering::Relaxed);
        let judge = |goes_on: &dyn Fn() -> bool| -> Result<_, TrainError> {
            let judged = self.evaluator.map(|e| e.evaluate(self.model, self.dtype, goes_on));
            Ok(judged.transpose()?.flatten())
        };
        let step = self.position.counters.step;
        let report = self.world.on_first_rank(step, Phase::Evaluate, &is_asked_to_stop, judge)?;
        let report = report.flatten();
        let is_whole = self.world.broadcast(report.is_some())?;
        Ok((report, is_whole))
    }

    /// Judges the model as it is now, if it is to be judged, and writes a line of the log. `false`
    /// when that was cut short, on all ranks alike: the evaluation is then still due, and the run is
    /// to stop.
    pub(super) fn evaluate(
        &mut self,
        stop: &AtomicBool,
        screen: &mut Screen,
    ) -> Result<bool, TrainError> {
        if self.config.eval.data_path.is_none() {
            self.position.eval_is_due = false;
            return Ok(true);
        }
        let started = Instant::now();
        let (report, is_whole) = self.report(stop)?;
        self.position.eval_is_due = !is_whole;
        screen.meter.paused(started.elapsed());
        let Some(report) = report else { return Ok(is_whole) };
        let number = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.4}"));
        let rejected = match report.rejected_rows {
            0 => String::new(),
            count => format!(", {count} rejected"),
        };
        screen.display.say(&format!(
            "step {}  held-out loss {}  exact {}  token F1 {}  of {} rows, {} answered{rejected}",
            self.position.counters.step,
            number(report.loss),
            number(report.exact),
            number(report.token_f1),
            report.rows,
            report.captions,
        ));
        if let Some(metrics) = &mut self.metrics {
            metrics.append(&EvalLine::new(self.position.counters, self.position.epoch, &report))?;
        }
        Ok(is_whole)
    }
}
