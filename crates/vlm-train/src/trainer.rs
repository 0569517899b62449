//! The training loop: batches in, updated weights out. Reads top to bottom.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tch::{Device, Kind, Tensor};
use vlm_data::{Batch, DataError, Loader, RejectLog};
use vlm_model::{ModelError, Vlm};
use vlm_torch::{Reducer, clip_grad_norm, peak_memory_bytes, set_grad_none, unscale_gradients};

use crate::TrainError;
use crate::config::{LossAverage, TrainConfig};
use crate::device_batch::Transfer;
use crate::eval::Evaluator;
use crate::metrics::{Counters, Display, EvalLine, LogLine, Meter, MetricsFile};
use crate::optimizer::AdamW;
use crate::parallel::{Phase, Share, Team, Totals};
use crate::precision::Dtype;
use crate::scaler::LossScaler;
use crate::schedule::learning_rate;

/// Where a trainer's batches come from: a [`Loader`], or anything that keeps its promises.
pub trait BatchSource {
    /// Batches an epoch, every epoch.
    fn batches_per_epoch(&self) -> usize;
    /// The batches of an epoch from number `first` on.
    fn epoch(&self, epoch: u64, first: usize) -> Batches<'_>;
    /// Where a row stands, for a message.
    fn locate(&self, row: usize) -> String;
}

/// Batches in their order.
pub type Batches<'a> = Box<dyn Iterator<Item = Result<Batch, DataError>> + 'a>;

impl BatchSource for Loader {
    fn batches_per_epoch(&self) -> usize {
        Loader::batches_per_epoch(self)
    }

    fn epoch(&self, epoch: u64, first: usize) -> Batches<'_> {
        Box::new(Loader::epoch(self, epoch, first))
    }

    fn locate(&self, row: usize) -> String {
        Loader::locate(self, row)
    }
}

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
    /// Updates left out since the last good one.
    pub skipped_in_a_row: u64,
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

/// Gradients gathered since the last update.
#[derive(Debug, Default)]
struct Window {
    /// Of all ranks.
    supervised_tokens: u64,
    /// Whether any rank learned from any micro-batch.
    learns: bool,
    /// Whether any rank was asked to stop.
    stop: bool,
    /// Of this rank.
    rows: Vec<usize>,
}

/// Where a micro-batch stands in its window.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// Micro-batches of the window.
    window_len: usize,
    /// Whether its gradients complete the window.
    is_last: bool,
}

/// This rank's part of the loss of one micro-batch: scalars on the device. The sum over the ranks
/// is the mean over all supervised tokens of the micro-batch.
struct MicroLoss {
    /// In nats a supervised token, the auxiliary loss included.
    mean: Tensor,
    aux_loss: Option<Tensor>,
}

/// The loss of a micro-batch over all ranks, as the log has it.
#[derive(Debug, Clone, Copy, Default)]
struct LoggedLoss {
    loss: Option<f64>,
    aux_loss: Option<f64>,
}

/// What the user sees, and the clock behind it.
struct Screen {
    display: Display,
    meter: Meter,
    samples_per_sec: f64,
}

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
    /// The log; rank 0 only.
    pub metrics: Option<MetricsFile>,
    /// The other ranks, if there are any.
    pub team: Option<&'a Team>,
    /// Averages the gradients over the ranks; there whenever there is a team.
    pub reducer: Option<Reducer<'a>>,
}

impl Trainer<'_> {
    /// Micro-batches of all epochs.
    pub fn total_steps(&self) -> u64 {
        self.config.optim.epochs * self.source.batches_per_epoch() as u64
    }

    /// Trains from the present position to the end. `save` is called with the trainer at every
    /// `save_interval` (at the next end of an update) and when the run is stopped; `stop` ends
    /// the run after the present update.
    ///
    /// # Errors
    /// Data, model, disk; too many updates in a row that were not finite. Weights on disk are left
    /// as the last `save` wrote them.
    pub fn run(
        &mut self,
        stop: &AtomicBool,
        save: &mut dyn FnMut(&Self) -> Result<(), TrainError>,
    ) -> Result<Ending, TrainError> {
        let last_step = self.config.run.max_steps.unwrap_or(u64::MAX).min(self.total_steps());
        let done = self.position.counters.step;
        let mut screen = Screen {
            display: Display::new(
                last_step,
                done,
                self.config.run.progress && self.is_first_rank(),
            ),
            meter: Meter::start(self.position.counters),
            samples_per_sec: 0.0,
        };
        let mut ending = Ending::Finished;
        while self.position.epoch < self.config.optim.epochs
            && self.position.counters.step < last_step
            && ending == Ending::Finished
        {
            ending = self.epoch(last_step, stop, save, &mut screen)?;
        }
        screen.display.finish();
        Ok(ending)
    }

    fn epoch(
        &mut self,
        last_step: u64,
        stop: &AtomicBool,
        save: &mut dyn FnMut(&Self) -> Result<(), TrainError>,
        screen: &mut Screen,
    ) -> Result<Ending, TrainError> {
        let source = self.source;
        let (epoch, first) = (self.position.epoch, self.position.next_batch);
        let steps_left = last_step - self.position.counters.step;
        let end = source.batches_per_epoch().min(first + steps_left as usize);
        let mut batches = source.epoch(epoch, first);
        let mut window = Window::default();
        let eval_interval = self.config.eval.interval.unwrap_or(self.config.run.save_interval);
        let (mut save_is_due, mut eval_is_due) = (false, false);
        for index in first..end {
            let step = self.position.counters.step;
            let asked = Instant::now();
            self.reached(Phase::Data);
            let batch = match batches.next() {
                Some(batch) => batch.map_err(TrainError::from),
                None => Err(TrainError::Failed(format!(
                    "the loader ended epoch {epoch} at batch {index} of {end}"
                ))),
            };
            screen.meter.waited(asked.elapsed());
            let (mut batch, totals) = self.meet(batch, stop)?;
            self.set_aside(&batch, &totals)?;

            let accumulation = self.config.optim.accumulation_steps as usize;
            let window_start = index / accumulation * accumulation;
            let window_end = (window_start + accumulation).min(end);
            let place =
                Place { window_len: window_end - window_start, is_last: index + 1 == window_end };
            let lr = self.learning_rate(step);
            self.reached(Phase::ForwardBackward);
            let loss = self.micro_step(&mut batch, &totals, place, &mut window)?;
            self.reached(Phase::Update);
            let stop_agreed = window.stop;
            let grad_norm = if place.is_last { self.update(lr, &mut window)? } else { None };
            self.position.counters.step = step + 1;

            self.position.next_batch = index + 1;
            let is_last = self.position.counters.step == last_step;
            self.reached(Phase::Log);
            let loss = self.loss_of_all(loss.as_ref(), &totals, is_last)?;
            self.log(lr, loss, grad_norm, epoch, is_last, screen)?;
            save_is_due |=
                self.position.counters.step.is_multiple_of(self.config.run.save_interval);
            eval_is_due |= is_last || self.position.counters.step.is_multiple_of(eval_interval);
            if !place.is_last {
                continue;
            }
            if eval_is_due {
                self.evaluate(epoch, screen)?;
                eval_is_due = false;
            }
            // Several ranks stop by what they agreed on, so that all stop at one step.
            let stopped = match self.team {
                None => stop.load(Ordering::Relaxed),
                Some(_) => stop_agreed,
            };
            self.reached(Phase::Save);
            if (save_is_due || stopped) && self.position.counters.step < last_step {
                save(self)?;
                save_is_due = false;
            }
            if stopped {
                return Ok(Ending::Interrupted);
            }
        }
        if end == source.batches_per_epoch() {
            self.position.epoch += 1;
            self.position.next_batch = 0;
        }
        Ok(Ending::Finished)
    }

    /// Judges the model as it is now, if it is to be judged, and writes a line of the log.
    fn evaluate(&mut self, epoch: u64, screen: &mut Screen) -> Result<(), TrainError> {
        let Some(evaluator) = self.evaluator else { return Ok(()) };
        let started = Instant::now();
        let report = evaluator.evaluate(self.model, self.dtype)?;
        let number = |value: Option<f64>| value.map_or("–".into(), |value| format!("{value:.4}"));
        screen.display.say(&format!(
            "step {}  held-out loss {}  exact {}  token F1 {}  of {} rows, {} answered",
            self.position.counters.step,
            number(report.loss),
            number(report.exact),
            number(report.token_f1),
            report.rows,
            report.captions,
        ));
        if let Some(metrics) = &mut self.metrics {
            metrics.append(&EvalLine::new(self.position.counters, epoch, &report))?;
        }
        screen.meter.paused(started.elapsed());
        Ok(())
    }

    fn learning_rate(&self, step: u64) -> f64 {
        let optim = &self.config.optim;
        learning_rate(step, self.total_steps(), optim.learning_rate, optim.warmup_iters)
    }

    fn is_first_rank(&self) -> bool {
        self.team.is_none_or(|team| team.rank() == 0)
    }

    /// Notes for the other ranks where this one is.
    fn reached(&self, phase: Phase) {
        if let Some(team) = self.team {
            team.reached(self.position.counters.step + 1, phase);
        }
    }

    /// An error of an operation that other ranks take part in.
    fn explain(&self, error: impl std::fmt::Display) -> TrainError {
        match self.team {
            Some(team) => team.explain(error),
            None => TrainError::Failed(error.to_string()),
        }
    }

    /// Learns what all ranks bring to the step. A rank that cannot go on stops all.
    fn meet(
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

    /// Whether anything is trained but the way of the images into the language model.
    fn learns_from_text(&self) -> bool {
        self.model.params().trainable().iter().any(|(name, _)| !is_image_path(name))
    }

    fn set_aside(&mut self, batch: &Batch, totals: &Totals) -> Result<(), TrainError> {
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

    /// Forward and backward of one micro-batch; this rank's part of its loss, if it has any. The
    /// ranks' shares weigh as if one process had them all in one batch.
    fn micro_step(
        &mut self,
        batch: &mut Batch,
        totals: &Totals,
        place: Place,
        window: &mut Window,
    ) -> Result<Option<MicroLoss>, TrainError> {
        let counters = &mut self.position.counters;
        counters.samples += totals.rows;
        counters.tokens += totals.tokens;
        counters.supervised_tokens += totals.supervised_tokens;
        counters.empty_steps += u64::from(totals.supervised_tokens == 0);
        window.supervised_tokens += totals.supervised_tokens;
        window.learns |= totals.learns;
        window.stop |= totals.stop;
        window.rows.extend(&batch.rows);
        if self.model.lm().config().use_moe {
            // Padding has a part in the experts' balance, so all shares get that of one batch.
            batch.pad_to(totals.seq_len as usize, self.pad_token_id);
        }
        // Only the gradients that complete a window travel.
        let reducer = self.reducer.as_ref().filter(|_| place.is_last && window.learns);
        if let Some(reducer) = reducer {
            reducer.prepare_forward().map_err(|error| self.explain(error))?;
        }
        let loss = match batch.num_supervised {
            0 => None,
            _ => Some(self.forward(batch, totals)?),
        };
        let weight = match self.config.optim.loss_average {
            LossAverage::Batch => 1.0 / place.window_len as f64,
            LossAverage::Token => totals.supervised_tokens as f64,
        };
        // The reducer divides by the number of ranks; the shares are parts of one mean already.
        let num_ranks = self.team.map_or(1, Team::world_size) as f64;
        let weighted = loss
            .as_ref()
            .map(|loss| &loss.mean * (weight * num_ranks * self.loss_scale()))
            .filter(Tensor::requires_grad);
        let learned_from = match (weighted, reducer) {
            (None, Some(_)) => Some(self.nothing_to_learn()),
            (weighted, _) => weighted,
        };
        if let Some(learned_from) = learned_from {
            if let Some(reducer) = reducer {
                reducer.prepare_backward(&learned_from).map_err(|error| self.explain(error))?;
            }
            learned_from.f_backward().map_err(|error| match reducer {
                Some(_) => self.explain(vlm_torch::plain_message(&error)),
                None => ModelError::from(error).into(),
            })?;
        }
        let detached = |loss: MicroLoss| MicroLoss {
            mean: loss.mean.detach(),
            aux_loss: loss.aux_loss.map(|aux_loss| aux_loss.detach()),
        };
        Ok(loss.map(detached))
    }

    fn forward(&self, batch: &Batch, totals: &Totals) -> Result<MicroLoss, TrainError> {
        let device = self.model.device();
        if self.model.lm().config().dropout > 0.0 {
            // A function of where the run is, so that a continued run draws what it would have.
            tch::manual_seed(self.seed_of_step());
        }
        let on_device = self.transfer.send(batch)?;
        let loss = vlm_torch::autocast(device, self.dtype.autocast_kind(), || {
            self.model.loss(&on_device.model, &on_device.supervised, &on_device.targets, true)
        })??;
        let mut mean = &loss.sum / totals.supervised_tokens as f64;
        // The auxiliary loss is a mean over the rows.
        let of_rows = batch.batch_size as f64 / totals.rows as f64;
        let aux_loss = loss.aux_loss.map(|aux_loss| aux_loss * of_rows);
        if let Some(aux_loss) = &aux_loss {
            mean += aux_loss;
        }
        Ok(MicroLoss { mean, aux_loss })
    }

    /// Seed of what is drawn in this step, on this rank.
    fn seed_of_step(&self) -> i64 {
        let mut hasher = blake3::Hasher::new();
        let rank = self.team.map_or(0, Team::rank) as u64;
        for number in [self.config.run.seed, self.position.counters.step, rank] {
            hasher.update(&number.to_le_bytes());
        }
        let bytes = hasher.finalize();
        bytes.as_bytes()[..7].iter().fold(0, |seed, &byte| seed << 8 | i64::from(byte))
    }

    /// A loss of zero, for a rank that has nothing to learn from while others have: it takes part
    /// in the reduction with zero gradients. It hangs on a parameter that is used wherever there is
    /// something to learn, so that nothing unused seems used.
    fn nothing_to_learn(&self) -> Tensor {
        let trainable = self.model.trainable();
        let used = trainable.iter().find(|(name, _)| !is_image_path(name));
        let (_, used) = used.unwrap_or(&trainable[0]);
        (used * 0.0).sum(Kind::Float)
    }

    fn loss_scale(&self) -> f64 {
        self.position.scaler.map_or(1.0, |scaler| scaler.scale())
    }

    /// One update from the window's gradients; their norm before clipping. Gradients that are not
    /// finite are dropped, and too many of those in a row end the run.
    fn update(&mut self, lr: f64, window: &mut Window) -> Result<Option<f64>, TrainError> {
        let window = std::mem::take(window);
        if !window.learns {
            return Ok(None);
        }
        let params = self.optimizer.params();
        let divisor = self.loss_scale()
            * match self.config.optim.loss_average {
                LossAverage::Batch => 1.0,
                LossAverage::Token => window.supervised_tokens as f64,
            };
        if divisor != 1.0 {
            let scalar = |value: f64| Tensor::full([1], value, (Kind::Float, self.model.device()));
            unscale_gradients(&params, &scalar(1.0 / divisor), &mut scalar(0.0))?;
        }
        let norm = self.clip(&params)?;
        if let Some(scaler) = &mut self.position.scaler {
            scaler.updated(norm.is_finite());
        }
        if norm.is_finite() {
            self.optimizer.step(lr)?;
            self.position.counters.update += 1;
            self.position.skipped_in_a_row = 0;
        } else {
            self.position.counters.skipped_updates += 1;
            self.position.skipped_in_a_row += 1;
        }
        set_grad_none(&params)?;
        if self.position.skipped_in_a_row >= self.config.optim.max_skipped_in_a_row {
            return Err(self.diverged(&window));
        }
        Ok(Some(norm))
    }

    /// Clips the gradients; their norm from before.
    fn clip(&self, params: &[Tensor]) -> Result<f64, TrainError> {
        let max_norm = match self.config.optim.grad_clip {
            0.0 => f64::INFINITY,
            clip => clip,
        };
        let Some(team) = self.team else { return Ok(clip_grad_norm(params, max_norm)?) };
        // The ranks' gradients are equal, but another number of threads may sum their squares in
        // another order, and ranks that clip or skip differently drift apart for good.
        let norm = team.first_ranks_number(clip_grad_norm(params, f64::INFINITY)?)?;
        let coefficient = max_norm / (norm + 1e-6);
        if coefficient < 1.0 {
            let scalar = |value: f64| Tensor::full([1], value, (Kind::Float, self.model.device()));
            unscale_gradients(params, &scalar(coefficient), &mut scalar(0.0))?;
        }
        Ok(norm)
    }

    fn diverged(&self, window: &Window) -> TrainError {
        let rows: Vec<String> =
            window.rows.iter().take(8).map(|&row| self.source.locate(row)).collect();
        TrainError::Failed(format!(
            "step {}: {} updates in a row had a loss or a gradient that is not finite, the last on \
             {}{}; the last checkpoint is as it was. Lower --learning-rate, or look at these rows",
            self.position.counters.step + 1,
            self.position.skipped_in_a_row,
            rows.join(", "),
            if window.rows.len() > rows.len() { ", …" } else { "" },
        ))
    }

    fn is_logged(&self, is_last: bool) -> bool {
        let step = self.position.counters.step;
        is_last || step == 1 || step.is_multiple_of(self.config.run.log_interval)
    }

    /// The loss of all ranks together, where it is wanted: reading it makes the host wait for a
    /// GPU, so there only where it is shown.
    fn loss_of_all(
        &self,
        own: Option<&MicroLoss>,
        totals: &Totals,
        is_last: bool,
    ) -> Result<LoggedLoss, TrainError> {
        let is_wanted = self.is_logged(is_last) || self.model.device() == Device::Cpu;
        if !is_wanted || totals.supervised_tokens == 0 {
            return Ok(LoggedLoss::default());
        }
        let value = |tensor: &Tensor| f64::try_from(tensor).map_err(ModelError::from);
        let loss = own.map_or(Ok(0.0), |own| value(&own.mean))?;
        let aux_loss = own.and_then(|own| own.aux_loss.as_ref()).map_or(Ok(0.0), value)?;
        let [loss, aux_loss] = match self.team {
            None => [loss, aux_loss],
            Some(team) => team.sum([loss, aux_loss])?,
        };
        let has_aux_loss = self.model.lm().config().use_moe;
        Ok(LoggedLoss { loss: Some(loss), aux_loss: has_aux_loss.then_some(aux_loss) })
    }

    /// Shows the step, and writes a line of the log where one is due.
    fn log(
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
}

/// Whether only rows with images give a parameter of this name a gradient.
fn is_image_path(name: &str) -> bool {
    name.starts_with("vision_")
}
