//! The training loop. Start at [`Trainer::run`].
//!
//! A run consists of epochs, an epoch consists of micro-batches (steps), and `accumulation_steps`
//! micro-batches make one update of the weights. All ranks do the same steps at the same time.
//!
//! Other tasks have their own files: the source of the batches (`source.rs`), rejected rows
//! (`rejected_rows.rs`), the forward pass (`forward.rs`), the update of the weights (`update.rs`),
//! events and evaluation (`report.rs`), and checks that the run still learns (`health.rs`). The
//! trainer writes no files except the log of rejected rows: the caller writes checkpoints (see
//! [`Save`]), and event sinks write the metrics.

mod accumulation;
mod forward;
mod health;
mod loss_spikes;
mod micro_batch_loss;
mod rejected_rows;
mod report;
mod source;
mod text_rows;
mod time_limit;
mod unread_norms;
mod update;

use std::cell::Cell;
use std::time::{Duration, Instant};

use tch::Tensor;
use vlm_data::{Batch, ImageProcessor, RejectBudget, RejectLog};
use vlm_infer::device_batch::Transfer;
use vlm_infer::evaluation::Evaluator;
use vlm_infer::{Dtype, default_dtype};
use vlm_model::Vlm;
use vlm_torch::{Span, span};

use self::accumulation::{Accumulation, MicroBatchPosition};
pub(crate) use self::loss_spikes::FILE_NAME as LOSS_SPIKES;
use self::micro_batch_loss::MicroBatchLoss;
pub use self::source::{BatchSource, Batches};
use self::text_rows::{in_order_of_use, learns_from_text, zero_loss};
use self::time_limit::TimeLimit;
use self::unread_norms::UnreadNorms;
use crate::TrainError;
use crate::config::{DtypeChoice, LossAverage, TrainConfig};
use crate::events::{Event, EventSink};
use crate::meter::Meter;
use crate::optimizer::AdamW;
use crate::parallel::{GlobalStepStats, GradientSync, LocalStepStats, Phase, Shards, World};
use crate::profile::StepProfile;
use crate::requests::{Request, Requests};
use crate::saver::Saver;
use crate::schedule::Schedule;
use crate::step_lines::StepLines;
use crate::train_state::TrainState;
use crate::utilization::Utilization;

/// Environment variable that makes a wait for the GPU within a step an error, from the third step of a
/// run on.
const FORBID_WAITS: &str = "VLM_FORBID_HOST_WAITS";

/// The reason why the training ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// All epochs, or `max_steps` steps, are done.
    Finished,
    /// A rank was asked to stop, or the time limit is near.
    Interrupted,
}

/// A function that writes a checkpoint of a trainer, or starts to write it. Collective: all ranks
/// call it.
pub type Save<'a> = dyn FnMut(&mut Trainer) -> Result<(), TrainError> + 'a;

/// Trains a model on the batches of a source.
pub struct Trainer<'a> {
    config: &'a TrainConfig,
    pub(crate) model: &'a Vlm,
    source: &'a dyn BatchSource,
    pub(crate) world: &'a World,
    transfer: Transfer,
    pad_token_id: i64,
    pub(crate) dtype: Dtype,
    schedule: Schedule,
    pub(crate) optimizer: AdamW,
    pub(crate) gradients: GradientSync<'a>,
    /// The division of the optimizer among the ranks, with `shard_optimizer`.
    pub(crate) shards: Option<Shards<'a>>,
    /// Norms of the last updates' gradients that were not read yet; on a GPU only.
    unread_norms: UnreadNorms,
    /// The norm of the gradients of the last update that was read, before clipping.
    grad_norm: Option<f64>,
    /// The step from which on a wait for the GPU within a step is an error; for checks of this
    /// program.
    no_waits_from: Option<u64>,
    /// Progress of the training.
    pub state: TrainState,
    /// Evaluates the model during the training; on rank 0 only, while the other ranks wait.
    pub evaluator: Option<&'a Evaluator>,
    /// Sinks for the events of the training; on rank 0 only.
    pub sinks: Vec<Box<dyn EventSink>>,
    /// Log of the rejected rows; on rank 0 only.
    pub reject_log: Option<RejectLog>,
    /// Log of the losses that are much larger than those before; on rank 0 only.
    pub(crate) spike_log: Option<StepLines>,
    /// Writes the checkpoints, and knows the newest one; on rank 0 only.
    pub(crate) saver: Saver,
    /// Start of the run, from which its time limit counts.
    pub started: Instant,
    time_limit: TimeLimit,
    /// Counts the operations of the steps; on all ranks or on none.
    pub utilization: Option<Utilization>,
    /// Profiles some steps.
    pub profile: Option<StepProfile>,
    /// The span of the current phase.
    phase: Cell<Option<Span>>,
    /// Limits the number of rejected rows of this epoch, on all ranks.
    reject_budget: RejectBudget,
    meter: Meter,
    save_is_due: bool,
    /// Whether a warning said that the save that is due waits for an update that is not skipped.
    late_save_is_reported: bool,
}

impl<'a> Trainer<'a> {
    /// A trainer at step 0, without evaluator, event sinks and reject log. Rows are padded with
    /// `pad_token_id`. A `dtype` of auto is the device's default: [`crate::Run`] measures before.
    /// Collective: all ranks call it.
    ///
    /// # Errors
    /// Parameters that differ between the ranks; a rank that ended or hangs.
    pub fn new(
        config: &'a TrainConfig,
        model: &'a Vlm,
        source: &'a dyn BatchSource,
        processor: &ImageProcessor,
        pad_token_id: i64,
        world: &'a World,
    ) -> Result<Self, TrainError> {
        let dtype = config.run.dtype.and_then(DtypeChoice::fixed);
        let dtype = dtype.unwrap_or_else(|| default_dtype(model.device()));
        let total_steps = config.optim.epochs * source.batches_per_epoch() as u64;
        let state = TrainState::start(dtype);
        let in_order = in_order_of_use(model);
        let shards = match config.run.shard_optimizer {
            true => Shards::new(world, &in_order)?,
            false => None,
        };
        let optimizer = match &shards {
            Some(shards) => AdamW::sharded(model, shards, &config.optim),
            None => AdamW::of_model(model, &config.optim),
        };
        Ok(Self {
            config,
            model,
            source,
            world,
            transfer: Transfer::new(model.device(), processor),
            pad_token_id,
            dtype,
            schedule: Schedule::new(&config.optim, total_steps),
            optimizer,
            gradients: GradientSync::new(world, &in_order, shards.is_some())?,
            shards,
            unread_norms: UnreadNorms::default(),
            grad_norm: None,
            no_waits_from: None,
            state,
            evaluator: None,
            sinks: Vec::new(),
            reject_log: None,
            spike_log: None,
            saver: Saver::new(config.run.on_save_error),
            started: Instant::now(),
            time_limit: TimeLimit::new(config.run.time_limit.map(|s| Duration::from_secs(s.0))),
            utilization: None,
            profile: None,
            phase: Cell::new(None),
            reject_budget: RejectBudget::new(config.data.max_rejected_fraction),
            meter: Meter::start(state.counters),
            save_is_due: false,
            late_save_is_reported: false,
        })
    }

    /// Number of steps of all epochs.
    pub fn total_steps(&self) -> u64 {
        self.config.optim.epochs * self.source.batches_per_epoch() as u64
    }

    /// The step at which the training ends.
    pub fn last_step(&self) -> u64 {
        self.config.run.max_steps.unwrap_or(u64::MAX).min(self.total_steps())
    }

    /// Trains from the current state to the end. `save` is called every `save_interval` steps and
    /// on request, after the next update that is not skipped, but not at the end of the training. A
    /// request to stop, or a near time limit, ends the training after the current update, or during
    /// an evaluation, which is then still due.
    ///
    /// # Errors
    /// A failure of the data, the model or the disk; a first loss that is not finite; too many
    /// consecutive skipped updates; no row that could be learned from. Earlier checkpoints are
    /// unaffected.
    pub fn run(&mut self, requests: &Requests, save: &mut Save) -> Result<Ending, TrainError> {
        let last_step = self.last_step();
        let done_steps = self.state.counters.step;
        self.no_waits_from = std::env::var_os(FORBID_WAITS).map(|_| done_steps + 2);
        self.emit(&Event::Started { done_steps, last_step })?;
        self.meter = Meter::start(self.state.counters);
        let mut ending = Ending::Finished;
        // The continued run was stopped during an evaluation.
        if self.state.eval_is_due && !self.evaluate(requests)? {
            ending = Ending::Interrupted;
        }
        while ending == Ending::Finished
            && self.state.epoch < self.config.optim.epochs
            && self.state.counters.step < last_step
        {
            ending = self.train_epoch(last_step, requests, save)?;
        }
        self.phase.take();
        self.profile.as_mut().map_or(Ok(()), StepProfile::after_last_step)?;
        self.emit(&Event::Ended)?;
        if ending == Ending::Finished {
            self.check_that_anything_was_learned()?;
        }
        Ok(ending)
    }

    /// Trains to the end of the epoch, or to `last_step`.
    fn train_epoch(
        &mut self,
        last_step: u64,
        requests: &Requests,
        save: &mut Save,
    ) -> Result<Ending, TrainError> {
        let (source, epoch, first) = (self.source, self.state.epoch, self.state.next_batch);
        let steps_left = last_step - self.state.counters.step;
        let end = source.batches_per_epoch().min(first + steps_left as usize);
        let mut batches = source.epoch(epoch, first);
        let mut accumulation = Accumulation::default();
        let is_counted_whole = self.start_reject_budget();
        self.time_limit.begin_update();
        for index in first..end {
            self.phase.take();
            self.profile.as_mut().map_or(Ok(()), StepProfile::before_step)?;
            let asked = Instant::now();
            self.set_phase(Phase::Data);
            let batch = batches.next().map(|batch| batch.map_err(TrainError::midway));
            let batch = batch.unwrap_or_else(|| {
                let problem = format!("the loader ended epoch {epoch} at batch {index} of {end}");
                Err(TrainError::Failed(problem))
            });
            self.meter.waited(asked.elapsed());
            self.set_phase(Phase::SyncStep);
            let (mut batch, stats) = self.sync_step(batch, requests)?;
            self.meter.needed(stats.flops);
            self.record_rejected_rows(&batch, &stats)?;

            let step = self.state.counters.step;
            let accumulation_steps = self.config.optim.accumulation_steps as usize;
            let position = MicroBatchPosition::of(index, &(first..end), accumulation_steps);
            self.set_phase(Phase::ForwardBackward);
            let forbids_waits = self.no_waits_from.is_some_and(|first| step >= first);
            if forbids_waits {
                vlm_torch::forbid_host_waits(true);
            }
            let own_loss = self
                .forward_backward(&mut batch, &stats, position, &mut accumulation)
                .map_err(|error| error.during(&format!("step {}", step + 1)))?;
            let is_last = step + 1 == last_step;
            // The guard must know the loss before the update. Without it the loss is read afterwards,
            // because reading it makes the host wait for a GPU.
            let mut loss = None;
            if self.config.optim.loss_spike_factor.is_some() {
                let found = self.loss_of_all_ranks(own_loss.as_ref(), &stats, is_last)?;
                accumulation.is_skipped |= self.check_for_loss_spike(found, &batch.rows)?;
                loss = Some(found);
            }
            self.set_phase(Phase::Update);
            let request = accumulation.request;
            let is_updated = position.is_last && self.update(std::mem::take(&mut accumulation))?;
            if forbids_waits {
                vlm_torch::forbid_host_waits(false);
            }
            self.state.counters.step = step + 1;
            self.state.next_batch = index + 1;

            self.set_phase(Phase::Log);
            if self.is_logged(is_last) || self.unread_norms.are_many() {
                self.read_norms()?;
            }
            let loss = match loss {
                Some(loss) => loss,
                None => self.loss_of_all_ranks(own_loss.as_ref(), &stats, is_last)?,
            };
            self.check_first_loss(loss, own_loss.as_ref(), &batch.rows)?;
            let lr = self.schedule.rate(step, self.config.optim.learning_rate);
            self.report_step(lr, loss, self.grad_norm.filter(|_| is_updated), is_last)?;
            self.schedule_save_and_evaluation(is_last);
            if position.is_last && self.end_update(request, is_last, requests, save)? {
                return Ok(Ending::Interrupted);
            }
        }
        if end == source.batches_per_epoch() {
            if is_counted_whole {
                self.reject_budget.at_end()?;
            }
            self.state.begin_next_epoch();
        }
        Ok(Ending::Finished)
    }

    /// Exchanges the statistics of the step between the ranks. If any rank has an error, all ranks
    /// return an error.
    fn sync_step(
        &mut self,
        batch: Result<Batch, TrainError>,
        requests: &Requests,
    ) -> Result<(Batch, GlobalStepStats), TrainError> {
        // A checkpoint that could not be written in the background is an error of this step.
        let batch = batch.and_then(|batch| self.saver.poll().map(|()| batch));
        let mut own = match &batch {
            Ok(batch) => LocalStepStats::of(batch, learns_from_text(self.model)),
            Err(_) => LocalStepStats { failed: true, ..LocalStepStats::default() },
        };
        if let (Ok(batch), Some(utilization)) = (&batch, &self.utilization) {
            own.flops = utilization.flops(batch);
        }
        own.request = requests.take();
        if self.time_is_up() {
            own.request = Request::Stop;
        }
        let stats = self.world.sync_step(self.state.counters.step + 1, own)?;
        let batch = if stats.failed { self.world.all_ready(batch)? } else { batch? };
        Ok((batch, stats))
    }

    /// Forward and backward pass of one micro-batch. Returns this rank's part of the loss,
    /// detached; `None` if this rank has no supervised token.
    ///
    /// With `loss_average = batch` all micro-batches of an update have the same weight; with
    /// `token` the weight is the number of supervised tokens. Within a micro-batch the result is
    /// the same as if one process had the rows of all ranks in one batch.
    fn forward_backward(
        &mut self,
        batch: &mut Batch,
        stats: &GlobalStepStats,
        position: MicroBatchPosition,
        accumulation: &mut Accumulation,
    ) -> Result<Option<MicroBatchLoss>, TrainError> {
        self.state.counters.add(stats);
        accumulation.add(batch, stats);
        if self.model.lm().config().use_moe {
            // Padding tokens count in the load of the experts, so all ranks pad to the same length.
            batch.pad_to(stats.seq_len as usize, self.pad_token_id);
        }
        // The gradients are averaged over the ranks once per update, in its last micro-batch.
        let average = position.is_last && accumulation.learns;
        if average {
            self.gradients.prepare_forward()?;
        }
        let loss = match batch.num_supervised {
            0 => None,
            _ => Some(self.forward(batch, stats)?),
        };
        let weight = match self.config.optim.loss_average {
            LossAverage::Batch => 1.0 / position.num_micro_batches as f64,
            // `update` divides the gradients by the sum of these weights.
            LossAverage::Token => stats.supervised_tokens as f64,
        };
        // The reducer divides by the number of ranks, but the losses of the ranks must be summed.
        let world_size = self.world.world_size() as f64;
        let weighted = loss
            .as_ref()
            .map(|loss| &loss.mean * (weight * world_size * self.state.loss_scale()))
            .filter(Tensor::requires_grad);
        let backward = span("backward pass");
        self.gradients.backward(weighted, average, || zero_loss(self.model))?;
        drop(backward);
        Ok(loss.map(|loss| loss.detach()))
    }

    /// Records whether a checkpoint or an evaluation is due after this step. Both are done at the
    /// end of the update.
    fn schedule_save_and_evaluation(&mut self, is_last: bool) {
        let step = self.state.counters.step;
        let save_interval = self.config.run.save_interval;
        let eval_interval = self.config.eval.interval.unwrap_or(save_interval);
        self.save_is_due |= step.is_multiple_of(save_interval);
        self.state.eval_is_due |= is_last || step.is_multiple_of(eval_interval);
    }

    /// Evaluates and saves if that is due. Returns whether the training must stop here.
    fn end_update(
        &mut self,
        request: Request,
        is_last: bool,
        requests: &Requests,
        save: &mut Save,
    ) -> Result<bool, TrainError> {
        self.time_limit.end_update();
        let stops = self.world.stops(request == Request::Stop, &requests.stop);
        let saves = self.save_is_due || request == Request::Save;
        if stops || saves || self.state.eval_is_due {
            self.read_norms()?;
        }
        if stops {
            return Ok(true);
        }
        if self.state.eval_is_due && !self.evaluate(requests)? {
            return Ok(true);
        }
        self.save_is_due |= request == Request::Save;
        self.set_phase(Phase::Save);
        if self.save_is_due && !is_last {
            // After a skipped update the weights may already be damaged, so they are not saved.
            if self.state.skipped_in_a_row == 0 {
                save(self)?;
                self.save_is_due = false;
                self.late_save_is_reported = false;
            } else if !self.late_save_is_reported {
                self.warn_of_late_save();
                self.late_save_is_reported = true;
            }
        }
        self.time_limit.begin_update();
        Ok(false)
    }

    /// Whether the run must end now to be saved within its time limit. Only rank 0 decides.
    fn time_is_up(&self) -> bool {
        let longest_save = self.saver.longest();
        self.world.is_first_rank() && self.time_limit.is_near(self.started.elapsed(), longest_save)
    }

    /// Records the current phase of this rank, for messages and the profile.
    fn set_phase(&self, phase: Phase) {
        // The span of the last phase ends before the new one starts.
        self.phase.take();
        self.phase.set(Some(span(phase.name())));
        self.world.set_phase(self.state.counters.step + 1, phase);
    }
}
