//! What the event sinks are told: steps, lines of the log, evaluations.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tch::{Device, Tensor};
use vlm_model::ModelError;
use vlm_torch::peak_memory_bytes;

use super::Trainer;
use super::step::MicroLoss;
use crate::TrainError;
use crate::events::{EvalLine, Event, LogLine, StepReport};
use crate::meter::Meter;
use crate::parallel::{GlobalStepStats, Phase};
use vlm_infer::evaluation::EvalReport;

/// The loss of a micro-batch over all ranks, as the log has it.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LoggedLoss {
    pub(super) loss: Option<f64>,
    aux_loss: Option<f64>,
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

    /// Sends an event to all sinks.
    pub(super) fn emit(&mut self, event: &Event) -> Result<(), TrainError> {
        self.sinks.iter_mut().try_for_each(|sink| sink.event(event))
    }

    /// Reports the step, and a line of the log where one is due.
    pub(super) fn log(
        &mut self,
        lr: f64,
        loss: LoggedLoss,
        grad_norm: Option<f64>,
        epoch: u64,
        is_last: bool,
        meter: &mut Meter,
    ) -> Result<(), TrainError> {
        let step = self.position.counters.step;
        let LoggedLoss { loss: value, aux_loss } = loss;
        self.position.last_loss = value.or(self.position.last_loss);
        if !self.is_logged(is_last) {
            let report = StepReport::new(step, value, lr, meter.samples_per_sec());
            return self.emit(&Event::Step(report));
        }
        let counters = self.position.counters;
        let speed = meter.lap(counters);
        self.emit(&Event::Step(StepReport::new(step, value, lr, speed.samples_per_sec)))?;
        self.emit(&Event::Log(&LogLine {
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
        }))
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
        meter: &mut Meter,
    ) -> Result<bool, TrainError> {
        if self.config.eval.data_path.is_none() {
            self.position.eval_is_due = false;
            return Ok(true);
        }
        let started = Instant::now();
        let (report, is_whole) = self.report(stop)?;
        self.position.eval_is_due = !is_whole;
        meter.paused(started.elapsed());
        let Some(report) = report else { return Ok(is_whole) };
        let line = EvalLine::new(self.position.counters, self.position.epoch, &report);
        self.emit(&Event::Evaluation(&line))?;
        Ok(is_whole)
    }
}
