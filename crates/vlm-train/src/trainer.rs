//! The training loop: batches in, updated weights out. Reads top to bottom.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use tch::{Device, Kind, Tensor};
use vlm_data::{Batch, DataError, Loader, RejectLog};
use vlm_model::{ModelError, Vlm};
use vlm_torch::{clip_grad_norm, peak_memory_bytes, set_grad_none, unscale_gradients};

use crate::TrainError;
use crate::config::{LossAverage, TrainConfig};
use crate::device_batch::Transfer;
use crate::metrics::{Counters, Display, LogLine, Meter, MetricsFile};
use crate::optimizer::AdamW;
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
    supervised_tokens: i64,
    rows: Vec<usize>,
}

/// Loss of one micro-batch: scalars on the device.
struct MicroLoss {
    /// In nats a supervised token, the auxiliary loss included.
    mean: Tensor,
    aux_loss: Option<Tensor>,
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
    /// Where rows that cannot be used are written down.
    pub rejects: RejectLog,
    /// The log.
    pub metrics: MetricsFile,
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
            display: Display::new(last_step, done, self.config.run.progress),
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
        let mut save_is_due = false;
        for index in first..end {
            let asked = Instant::now();
            let batch = match batches.next() {
                Some(batch) => batch?,
                None => {
                    let early = format!("the loader ended epoch {epoch} at batch {index} of {end}");
                    return Err(TrainError::Failed(early));
                }
            };
            screen.meter.waited(asked.elapsed());
            self.set_aside(&batch)?;

            let accumulation = self.config.optim.accumulation_steps as usize;
            let window_start = index / accumulation * accumulation;
            let window_end = (window_start + accumulation).min(end);
            let step = self.position.counters.step;
            let lr = self.learning_rate(step);
            let loss = self.micro_step(&batch, window_end - window_start, &mut window)?;
            self.position.counters.step = step + 1;
            let grad_norm =
                if index + 1 == window_end { self.update(lr, &mut window)? } else { None };

            self.position.next_batch = index + 1;
            let is_last = self.position.counters.step == last_step;
            self.log(lr, loss.as_ref(), grad_norm, epoch, is_last, screen)?;
            save_is_due |=
                self.position.counters.step.is_multiple_of(self.config.run.save_interval);
            if index + 1 < window_end {
                continue;
            }
            let stopped = stop.load(Ordering::Relaxed);
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

    fn learning_rate(&self, step: u64) -> f64 {
        let optim = &self.config.optim;
        learning_rate(step, self.total_steps(), optim.learning_rate, optim.warmup_iters)
    }

    fn set_aside(&mut self, batch: &Batch) -> Result<(), TrainError> {
        for rejected in &batch.rejected {
            if self.rejects.record(rejected)? {
                self.position.counters.rejected_rows += 1;
            }
        }
        Ok(())
    }

    /// Forward and backward of one micro-batch; its loss a supervised token, if it has any.
    fn micro_step(
        &mut self,
        batch: &Batch,
        window_len: usize,
        window: &mut Window,
    ) -> Result<Option<MicroLoss>, TrainError> {
        let counters = &mut self.position.counters;
        counters.samples += batch.batch_size as u64;
        counters.tokens += batch.lengths.iter().sum::<usize>() as u64;
        counters.supervised_tokens += batch.num_supervised as u64;
        if batch.num_supervised == 0 {
            counters.empty_steps += 1;
            return Ok(None);
        }
        let device = self.model.device();
        let on_device = self.transfer.send(batch)?;
        let loss = vlm_torch::autocast(device, self.dtype.autocast_kind(), || {
            self.model.loss(&on_device.model, &on_device.supervised, &on_device.targets, true)
        })??;
        window.supervised_tokens += loss.num_supervised;
        window.rows.extend(&batch.rows);
        let mut mean = &loss.sum / loss.num_supervised as f64;
        if let Some(aux_loss) = &loss.aux_loss {
            mean += aux_loss;
        }
        let weight = match self.config.optim.loss_average {
            LossAverage::Batch => 1.0 / window_len as f64,
            LossAverage::Token => loss.num_supervised as f64,
        };
        (&mean * (weight * self.loss_scale())).f_backward().map_err(ModelError::from)?;
        let aux_loss = loss.aux_loss.map(|aux_loss| aux_loss.detach());
        Ok(Some(MicroLoss { mean: mean.detach(), aux_loss }))
    }

    fn loss_scale(&self) -> f64 {
        self.position.scaler.map_or(1.0, |scaler| scaler.scale())
    }

    /// One update from the window's gradients; their norm before clipping. Gradients that are not
    /// finite are dropped, and too many of those in a row end the run.
    fn update(&mut self, lr: f64, window: &mut Window) -> Result<Option<f64>, TrainError> {
        let window = std::mem::take(window);
        if window.supervised_tokens == 0 {
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
        let max_norm = match self.config.optim.grad_clip {
            0.0 => f64::INFINITY,
            clip => clip,
        };
        let norm = clip_grad_norm(&params, max_norm)?;
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

    fn diverged(&self, window: &Window) -> TrainError {
        let rows: Vec<String> =
            window.rows.iter().take(8).map(|&row| self.source.locate(row)).collect();
        TrainError::Failed(format!(
            "step {}: {} updates in a row had a loss or a gradient that is not finite, the last on \
             {}{}; the last checkpoint is as it was. Lower --learning-rate, or look at these rows",
            self.position.counters.step,
            self.position.skipped_in_a_row,
            rows.join(", "),
            if window.rows.len() > rows.len() { ", …" } else { "" },
        ))
    }

    /// Shows the step, and writes a line of the log where one is due.
    fn log(
        &mut self,
        lr: f64,
        loss: Option<&MicroLoss>,
        grad_norm: Option<f64>,
        epoch: u64,
        is_last: bool,
        screen: &mut Screen,
    ) -> Result<(), TrainError> {
        let step = self.position.counters.step;
        let is_due = is_last || step == 1 || step.is_multiple_of(self.config.run.log_interval);
        // Reading a loss makes the host wait for a GPU: there, only when it is shown.
        let value = match loss {
            Some(loss) if is_due || self.model.device() == Device::Cpu => {
                Some(f64::try_from(&loss.mean).map_err(ModelError::from)?)
            }
            _ => None,
        };
        self.position.last_loss = value.or(self.position.last_loss);
        if !is_due {
            screen.display.step(step, value, lr, screen.samples_per_sec);
            return Ok(());
        }
        let counters = self.position.counters;
        let speed = screen.meter.lap(counters);
        screen.samples_per_sec = speed.samples_per_sec;
        screen.display.step(step, value, lr, speed.samples_per_sec);
        screen.display.say(&format!(
            "step {step}  epoch {epoch}  loss {}  lr {lr:.3e}  {:.1} samples/s",
            value.map_or("–".into(), |loss| format!("{loss:.4}")),
            speed.samples_per_sec
        ));
        let aux_loss = loss.and_then(|loss| loss.aux_loss.as_ref()).map(f64::try_from);
        self.metrics.append(&LogLine {
            step,
            update: counters.update,
            epoch,
            loss: value,
            aux_loss: aux_loss.transpose().map_err(ModelError::from)?,
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
