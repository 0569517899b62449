//! The training loop: batches in, updated weights out. Reads top to bottom.

mod health;
mod log;
mod source;
mod step;
mod sync;
mod update;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use vlm_data::{RejectBudget, RejectLog};
use vlm_model::Vlm;

pub use self::source::{BatchSource, Batches};
pub(crate) use self::step::is_image_path;
use self::step::{Place, Window};
use crate::TrainError;
use crate::config::TrainConfig;
use crate::events::{Event, EventSink};
use crate::meter::Meter;
use crate::metrics::Counters;
use crate::optimizer::AdamW;
use crate::parallel::{GradientSync, Phase, World};
use crate::scaler::LossScaler;
use crate::schedule::Schedule;
use vlm_infer::Dtype;
use vlm_infer::device_batch::Transfer;
use vlm_infer::evaluation::Evaluator;

/// Where a run stands: with the weights and the optimizer's state, all that a later run needs to
/// go on as if there had been no end.
#[derive(Debug, Clone, Copy, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Position {
    /// Epoch, from 0.
    pub epoch: u64,
    /// Next batch of that epoch, from 0.
    pub next_batch: usize,
    /// What was done so far.
    pub counters: Counters,
    /// Loss of the last micro-batch that had one, in nats a supervised token.
    pub last_loss: Option<f64>,
    /// Rows of this epoch so far, rejected ones included, of all ranks.
    #[serde(default)]
    pub epoch_rows: usize,
    /// Of them the rejected ones.
    #[serde(default)]
    pub epoch_rejected: usize,
    /// Updates skipped since the last one that was made.
    pub skipped_in_a_row: u64,
    /// Whether the model is still to be judged as it is now.
    #[serde(default)]
    pub eval_is_due: bool,
    /// Loss scaling, with float16 only.
    pub scaler: Option<LossScaler>,
}

/// Why training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All epochs, or `max_steps`, are done.
    Finished,
    /// The user asked to stop.
    Interrupted,
}

/// Writes a checkpoint of a trainer and returns its path, on rank 0.
pub type Save<'a> = dyn FnMut(&Trainer) -> Result<Option<PathBuf>, TrainError> + 'a;

/// Trains one model on one loader.
pub struct Trainer<'a> {
    /// The run's configuration.
    pub config: &'a TrainConfig,
    /// The model; its trainable parameters are the optimizer's.
    pub model: &'a Vlm,
    /// The way of the batches to the model's device.
    pub transfer: Transfer,
    /// The batches.
    pub source: &'a dyn BatchSource,
    /// The optimizer.
    pub optimizer: AdamW,
    /// Forward arithmetic.
    pub dtype: Dtype,
    /// Where the run stands.
    pub position: Position,
    /// Judges the model on the way; rank 0 only, the others wait for it.
    pub evaluator: Option<&'a Evaluator>,
    /// What rows are filled up with.
    pub pad_token_id: i64,
    /// Where rows that cannot be used are written down; rank 0 only.
    pub rejects: Option<RejectLog>,
    /// Counts the rejected rows of this epoch, of all ranks, against the limit.
    pub budget: RejectBudget,
    /// The newest checkpoint that this run wrote or continues from; rank 0 only.
    pub last_checkpoint: Option<PathBuf>,
    /// What receives the events of the run; on rank 0 only.
    pub sinks: Vec<Box<dyn EventSink>>,
    /// The processes that train together.
    pub world: &'a World,
    /// Averages the gradients over the processes.
    pub gradients: GradientSync<'a>,
}

impl Trainer<'_> {
    /// Micro-batches of all epochs.
    pub fn total_steps(&self) -> u64 {
        self.config.optim.epochs * self.source.batches_per_epoch() as u64
    }

    /// Trains from the present position to the end. `save` is called with the trainer at every
    /// `save_interval` (at the next end of an update that was not skipped), but not at the end, and
    /// returns what it wrote. `stop` ends the run after the present update, or in the middle of an
    /// evaluation, which is then still due.
    ///
    /// # Errors
    /// Data, model, disk; a first loss that is not finite; too many skipped updates in a row; nothing
    /// that could be learned from. Weights on disk are left as the last `save` wrote them.
    pub fn run(&mut self, stop: &AtomicBool, save: &mut Save) -> Result<Ending, TrainError> {
        let last_step = self.config.run.max_steps.unwrap_or(u64::MAX).min(self.total_steps());
        let done_steps = self.position.counters.step;
        self.emit(&Event::Started { done_steps, last_step })?;
        let mut meter = Meter::start(self.position.counters);
        let (mut ending, mut save_is_due) = (Ending::Finished, false);
        // The run that is continued was stopped in the middle of its evaluation.
        if self.position.eval_is_due && !self.evaluate(stop, &mut meter)? {
            ending = Ending::Interrupted;
        }
        while self.position.epoch < self.config.optim.epochs
            && self.position.counters.step < last_step
            && ending == Ending::Finished
        {
            ending = self.epoch(last_step, stop, save, &mut save_is_due, &mut meter)?;
        }
        self.emit(&Event::Ended)?;
        if ending == Ending::Finished {
            self.check_that_anything_was_learned()?;
        }
        Ok(ending)
    }

    fn epoch(
        &mut self,
        last_step: u64,
        stop: &AtomicBool,
        save: &mut Save,
        save_is_due: &mut bool,
        meter: &mut Meter,
    ) -> Result<Ending, TrainError> {
        let source = self.source;
        let (epoch, first) = (self.position.epoch, self.position.next_batch);
        let steps_left = last_step - self.position.counters.step;
        let end = source.batches_per_epoch().min(first + steps_left as usize);
        let mut batches = source.epoch(epoch, first);
        let mut window = Window::default();
        let max_rejected_fraction = self.config.data.max_rejected_fraction;
        let (num_seen, num_rejected) = (self.position.epoch_rows, self.position.epoch_rejected);
        self.budget = RejectBudget::resumed(max_rejected_fraction, num_seen, num_rejected);
        // Checkpoints of earlier versions do not say what was counted before them.
        let is_counted_whole = first == 0 || num_seen > 0;
        let eval_interval = self.config.eval.interval.unwrap_or(self.config.run.save_interval);
        for index in first..end {
            let step = self.position.counters.step;
            let asked = Instant::now();
            self.set_phase(Phase::Data);
            let batch = match batches.next() {
                Some(batch) => batch.map_err(TrainError::midway),
                None => Err(TrainError::Failed(format!(
                    "the loader ended epoch {epoch} at batch {index} of {end}"
                ))),
            };
            meter.waited(asked.elapsed());
            let (mut batch, totals) = self.sync_step(batch, stop)?;
            self.record_rejected(&batch, &totals)?;

            let accumulation = self.config.optim.accumulation_steps as usize;
            let place = Place::of(index, end, accumulation);
            let schedule = self.schedule();
            let lr = schedule.rate(step, self.config.optim.learning_rate);
            self.set_phase(Phase::ForwardBackward);
            let loss = self.micro_step(&mut batch, &totals, place, &mut window);
            let loss = loss.map_err(|error| error.during(&format!("step {}", step + 1)))?;
            self.set_phase(Phase::Update);
            let stop_agreed = window.stop;
            let grad_norm = if place.is_last { self.update(&schedule, &mut window)? } else { None };
            self.position.counters.step = step + 1;

            self.position.next_batch = index + 1;
            let is_last = self.position.counters.step == last_step;
            self.set_phase(Phase::Log);
            let own_loss = loss;
            let loss = self.loss_of_all(own_loss.as_ref(), &totals, is_last)?;
            self.check_first_loss(loss, own_loss.as_ref(), &batch.rows)?;
            self.log(lr, loss, grad_norm, epoch, is_last, meter)?;
            *save_is_due |=
                self.position.counters.step.is_multiple_of(self.config.run.save_interval);
            self.position.eval_is_due |=
                is_last || self.position.counters.step.is_multiple_of(eval_interval);
            if !place.is_last {
                continue;
            }
            let mut stopped = self.world.stops(stop_agreed, stop);
            if self.position.eval_is_due && !stopped {
                stopped = !self.evaluate(stop, meter)?;
            }
            if stopped {
                return Ok(Ending::Interrupted);
            }
            self.set_phase(Phase::Save);
            if *save_is_due && self.position.counters.step < last_step {
                // What makes a gradient that is not finite may be in the weights already.
                if self.position.skipped_in_a_row == 0 {
                    self.last_checkpoint = save(self)?.or(self.last_checkpoint.take());
                    *save_is_due = false;
                } else if self.position.skipped_in_a_row == 1 {
                    self.tell_of_a_late_save();
                }
            }
        }
        if end == source.batches_per_epoch() {
            if is_counted_whole {
                self.budget.at_end()?;
            }
            self.position.epoch += 1;
            self.position.next_batch = 0;
            (self.position.epoch_rows, self.position.epoch_rejected) = (0, 0);
        }
        Ok(Ending::Finished)
    }

    fn schedule(&self) -> Schedule {
        Schedule::new(&self.config.optim, self.total_steps())
    }

    fn set_phase(&self, phase: Phase) {
        self.world.set_phase(self.position.counters.step + 1, phase);
    }
}
