//! Sends events to the sinks: steps, log lines and evaluations.

use std::time::Instant;

use tch::{Device, Tensor};
use vlm_infer::evaluation::EvalReport;
use vlm_model::ModelError;
use vlm_torch::peak_memory_bytes;

use super::Trainer;
use super::micro_batch_loss::MicroBatchLoss;
use crate::TrainError;
use crate::events::{EvalLine, Event, LogLine, StepReport};
use crate::meter::Rates;
use crate::parallel::{GlobalStepStats, Phase};
use crate::requests::Requests;
use crate::utilization::Utilization;

/// The loss of a micro-batch over all ranks.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct GlobalLoss {
    /// Loss in nats per supervised token; `None` if it was not computed or there was no such token.
    pub(super) loss: Option<f64>,
    aux_loss: Option<f64>,
}

impl Trainer<'_> {
    /// Sends an event to all sinks.
    pub(super) fn emit(&mut self, event: &Event) -> Result<(), TrainError> {
        self.sinks.iter_mut().try_for_each(|sink| sink.event(event))
    }

    /// Whether a log line is written for the current step.
    pub(super) fn is_logged(&self, is_last: bool) -> bool {
        let step = self.state.counters.step;
        is_last || step == 1 || step.is_multiple_of(self.config.run.log_interval)
    }

    /// The sum of the ranks' parts of a loss. On a GPU it is computed only for steps that are
    /// logged, and with `loss_spike_factor`, because reading a loss makes the host wait for the GPU.
    pub(super) fn loss_of_all_ranks(
        &self,
        own: Option<&MicroBatchLoss>,
        stats: &GlobalStepStats,
        is_last: bool,
    ) -> Result<GlobalLoss, TrainError> {
        let is_wanted = self.config.optim.loss_spike_factor.is_some()
            || self.is_logged(is_last)
            || self.model.device() == Device::Cpu;
        if !is_wanted || stats.supervised_tokens == 0 {
            return Ok(GlobalLoss::default());
        }
        let value = |tensor: &Tensor| f64::try_from(tensor).map_err(ModelError::from);
        let loss = own.map_or(Ok(0.0), |own| value(&own.mean))?;
        let aux_loss = own.and_then(|own| own.aux_loss.as_ref()).map_or(Ok(0.0), value)?;
        let [loss, aux_loss] = self.world.sum([loss, aux_loss])?;
        let has_aux_loss = self.model.lm().config().use_moe;
        Ok(GlobalLoss { loss: Some(loss), aux_loss: has_aux_loss.then_some(aux_loss) })
    }

    /// Sends the events of the step that just ended: the step, and a log line if one is due.
    pub(super) fn report_step(
        &mut self,
        lr: f64,
        loss: GlobalLoss,
        grad_norm: Option<f64>,
        is_last: bool,
    ) -> Result<(), TrainError> {
        let counters = self.state.counters;
        let GlobalLoss { loss, aux_loss } = loss;
        self.state.last_loss = loss.or(self.state.last_loss);
        let is_logged = self.is_logged(is_last);
        let (step, epoch) = (counters.step, self.state.epoch);
        let matrix_rate = self.utilization.as_ref().and_then(Utilization::matrix_rate);
        let mfu = |rates: Rates| Some(rates.flops_per_sec? / matrix_rate?);
        let report = |rates: Rates| StepReport {
            step,
            epoch,
            loss,
            lr,
            samples_per_sec: rates.samples_per_sec,
            mfu: mfu(rates),
            is_logged,
        };
        if !is_logged {
            return self.emit(&Event::Step(report(self.meter.rates(counters))));
        }
        let speed = self.meter.lap(counters, self.saver.waited());
        self.emit(&Event::Step(report(speed.rates)))?;
        self.emit(&Event::Log(&LogLine {
            step,
            update: counters.update,
            epoch,
            loss,
            aux_loss,
            lr,
            grad_norm,
            samples: counters.samples,
            tokens: counters.tokens,
            supervised_tokens: counters.supervised_tokens,
            samples_per_sec: speed.rates.samples_per_sec,
            tokens_per_sec: speed.tokens_per_sec,
            data_wait_ms: speed.data_wait_ms,
            step_ms: speed.step_ms,
            save_wait_ms: speed.save_wait_ms,
            flops_per_sec: speed.rates.flops_per_sec,
            mfu: mfu(speed.rates),
            peak_memory_bytes: peak_memory_bytes(self.model.device()).unwrap_or(0),
            skipped_updates: counters.skipped_updates,
            rejected_rows: counters.rejected_rows,
        }))
    }

    /// Evaluates the current weights, if an evaluation is configured, and sends the result to the
    /// sinks. Returns `false` on all ranks if any of them was asked to stop during the evaluation, or
    /// the time limit is near; the evaluation is then still due.
    pub(super) fn evaluate(&mut self, requests: &Requests) -> Result<bool, TrainError> {
        if self.config.eval.data_path.is_none() {
            self.state.eval_is_due = false;
            return Ok(true);
        }
        let started = Instant::now();
        self.set_phase(Phase::Evaluate);
        let (report, is_complete) = self.evaluate_on_first_rank(requests)?;
        self.state.eval_is_due = !is_complete;
        self.meter.paused(started.elapsed());
        if let Some(report) = report {
            let line = EvalLine::new(self.state.counters, self.state.epoch, &report);
            self.emit(&Event::Evaluation(&line))?;
            let (step, samples) = (self.state.counters.step, &report.samples[..]);
            if !samples.is_empty() {
                self.emit(&Event::Samples { step, samples })?;
            }
            self.warn_of_low_image_gain(&report);
        }
        Ok(is_complete)
    }

    /// Evaluates on rank 0, while the other ranks wait. Returns the result on rank 0, and on all
    /// ranks whether the evaluation is complete.
    fn evaluate_on_first_rank(
        &self,
        requests: &Requests,
    ) -> Result<(Option<EvalReport>, bool), TrainError> {
        let stop_is_requested = || requests.stop() || self.time_is_up();
        let evaluate = |may_continue: &dyn Fn() -> bool| -> Result<_, TrainError> {
            let report = self.evaluator.map(|e| e.evaluate(self.model, self.dtype, may_continue));
            Ok(report.transpose()?.flatten())
        };
        let step = self.state.counters.step;
        let report =
            self.world.on_first_rank(step, Phase::Evaluate, &stop_is_requested, evaluate)?;
        let report = report.flatten();
        let is_complete = self.world.broadcast(report.is_some())?;
        Ok((report, is_complete))
    }
}
