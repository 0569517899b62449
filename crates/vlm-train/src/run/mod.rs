//! A complete training run: checks the configuration and all files, creates the out-dir, loads the
//! model, trains it, and writes the results.

mod auto_batch;
mod auto_dtype;
mod find_checkpoint;
mod identity;
mod memory;
mod parts;
mod records;
mod resume;
mod save;
mod summary;

use std::fmt::Display;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;
use vlm_data::{ChatTokenizer, ImageProcessor, Loader, RejectLog};
use vlm_model::Vlm;

use self::find_checkpoint::find_checkpoint;
use self::parts::Parts;
pub use self::summary::Summary;
use crate::TrainError;
use crate::checkpoint::{self, Checkpoint};
use crate::config::{DtypeChoice, TrainConfig};
use crate::event_file::EventFile;
use crate::events::EventSink;
use crate::metrics::MetricsFile;
use crate::out_dir::OutDir;
use crate::out_of_memory::{MemoryParts, with_memory_advice};
use crate::parallel::{LaunchEnv, Phase, World, compare_ranks};
use crate::profile::StepProfile;
use crate::requests::Requests;
use crate::samples::{self, SamplesFile};
use crate::state_dict::broadcast_weights;
use crate::step_lines::StepLines;
use crate::train_state::TrainState;
use crate::trainer::{Ending, LOSS_SPIKES, Trainer};
use crate::utilization::Utilization;
use vlm_infer::Dtype;
use vlm_infer::evaluation::Evaluator;
use vlm_infer::{Shapes, autocast_kind, build_model};

/// A training run. [`Run::prepare`] checks everything and loads the model; [`Run::train`] trains
/// it.
pub struct Run {
    config: TrainConfig,
    out_dir: OutDir,
    shapes: Shapes,
    tokenizer: Arc<ChatTokenizer>,
    processor: Arc<ImageProcessor>,
    loader: Loader,
    /// On rank 0 only.
    evaluator: Option<Evaluator>,
    model: Vlm,
    dtype: Dtype,
    /// See `identity.rs`.
    identity: Value,
    /// The checkpoint to continue from; on rank 0 only.
    resumed: Option<Checkpoint>,
    /// Sinks that the caller added. The files of the out-dir are not among them.
    sinks: Vec<Box<dyn EventSink>>,
    /// Start of the run, from which `time_limit` counts.
    started: Instant,
    world: World,
}

/// Locks the out-dir if it exists, finds the checkpoint to continue from, and then creates the
/// folder.
fn open_out_dir(
    config: &TrainConfig,
    identity: &Value,
) -> Result<(OutDir, Option<Checkpoint>), TrainError> {
    let continues = config.run.resume.is_some();
    let mut out_dir = OutDir::open(&config.run.out_dir, config.stage, continues)?;
    let resumed = find_checkpoint(config, &out_dir, identity)?;
    out_dir.create()?;
    Ok((out_dir, resumed))
}

impl Run {
    /// Checks the configuration and all files, and loads the model. Usage errors are found here,
    /// before the training starts. If the launcher's environment variables describe several
    /// processes, they connect here, and an error of one of them ends all.
    ///
    /// # Errors
    /// Settings, files or shapes that cannot be used; ranks that do not connect, or that have
    /// different settings.
    pub fn prepare(config: TrainConfig) -> Result<Self, TrainError> {
        let started = LaunchEnv::start_of_launch();
        config.validate()?;
        if config.run.deterministic {
            vlm_torch::deterministic_algorithms(true)?;
        }
        let timeout = Duration::from_secs(config.run.timeout_secs);
        let world = World::from_environment(config.run.ddp, timeout)?;
        let prepared = Self::prepare_in(config, &world);
        if let Err(error) = &prepared {
            world.publish_error(error);
        }
        Ok(Self { world, started, ..prepared? })
    }

    fn prepare_in(mut config: TrainConfig, world: &World) -> Result<Self, TrainError> {
        vlm_torch::set_operation(c"opening the tokenizer, the rows and the device");
        let mut parts = world.all_ready(Parts::assemble(&config, world))?;
        let nccl = world.all_ready(world.use_device(parts.device))?;
        world.log_rank(parts.device, nccl.as_deref());
        if config.run.dtype == Some(DtypeChoice::Auto) {
            let chosen = match world.is_first_rank() {
                true => auto_dtype::choose(&config, &parts.shapes, parts.device),
                false => Ok(parts.dtype),
            };
            parts.dtype = world.broadcast(world.all_ready(chosen)?)?;
            config.run.dtype = Some(parts.dtype.into());
        }
        if auto_batch::fit(&mut config, &parts, world)? {
            parts = world.all_ready(Parts::assemble(&config, world))?;
        }
        compare_ranks(world, || identity::common_to_ranks(&config, &parts))?;
        let mut identity = identity::identity(&config, world, &parts);
        let opened = if world.is_first_rank() {
            open_out_dir(&config, &identity)
        } else {
            Ok((OutDir::of_other_rank(&config.run.out_dir, config.stage), None))
        };
        let (out_dir, resumed) = world.all_ready(opened)?;
        let Parts { tokenizer, processor, loader, evaluator, shapes, device, dtype, .. } = parts;
        let fits = memory::check(&config, &shapes, device, dtype, world);
        world.all_ready(fits)?;
        vlm_torch::set_operation(c"creating the model with its weights");
        let model = with_memory_advice(None, || {
            let has_encoder = config.model.features.is_none();
            let files = parts::model_files(&config.model);
            let model = build_model(&files, &shapes, has_encoder, config.run.seed, device)?;
            model.freeze(&config.model.freeze);
            Ok(model)
        });
        let model = model.map_err(|error| error.during("creating the model with its weights"));
        let mut model = world.all_ready(model)?;
        model.set_activation_checkpointing(config.model.activation_checkpointing);
        let checked = if world.is_first_rank() {
            let before = resumed.as_ref().map(|checkpoint| &checkpoint.identity);
            identity::add_weights(&mut identity, &model, before)
        } else {
            Ok(())
        };
        world.all_ready(checked)?;
        world.set_phase(0, Phase::Connect);
        broadcast_weights(world, &model)?;
        world.set_phase(0, Phase::StartUp);
        Ok(Self {
            config,
            // Replaced by the caller, which also publishes errors to the other processes.
            world: World::single(),
            out_dir,
            shapes,
            tokenizer,
            processor,
            loader,
            evaluator,
            model,
            dtype,
            identity,
            resumed,
            sinks: Vec::new(),
            started: Instant::now(),
        })
    }

    /// Whether this is rank 0, the only process that writes files and reports.
    pub fn is_first_rank(&self) -> bool {
        self.world.is_first_rank()
    }

    /// The model, which [`Self::train`] trains in place.
    pub fn model(&self) -> &Vlm {
        &self.model
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &ChatTokenizer {
        &self.tokenizer
    }

    /// The image preprocessing.
    pub fn processor(&self) -> &ImageProcessor {
        &self.processor
    }

    /// The folder that the run writes to.
    pub fn out_dir(&self) -> &OutDir {
        &self.out_dir
    }

    /// Adds a sink that receives the events of [`Self::train`], such as a progress bar. On ranks
    /// other than 0 it receives no events. `metrics.jsonl` and the TensorBoard file need no sink.
    pub fn add_sink(&mut self, sink: impl EventSink + 'static) {
        self.sinks.push(Box::new(sink));
    }

    /// Runs `work` on rank 0, before the training, and returns its result there. The other ranks
    /// wait, and get `None`. `work` must call its argument at least once per `timeout_secs`: this
    /// reports progress, and returns `false` as soon as any rank is asked to stop.
    ///
    /// # Errors
    /// On rank 0 the error of `work`; on the other ranks: rank 0 ended or made no progress.
    pub fn on_first_rank<T, E: From<TrainError> + Display>(
        &self,
        stop: &AtomicBool,
        work: impl FnOnce(&dyn Fn() -> bool) -> Result<T, E>,
    ) -> Result<Option<T>, E> {
        let is_asked_to_stop = || stop.load(Ordering::Relaxed);
        let done = self.world.on_first_rank(0, Phase::Evaluate, &is_asked_to_stop, work);
        if let Err(error) = &done {
            self.world.publish_error(error);
        }
        done
    }

    /// Trains to the end, writes checkpoints at intervals and on request, and writes the final
    /// weights. On a request to stop, or when `time_limit` is near, the training ends after the
    /// current update, and a checkpoint is written.
    ///
    /// # Errors
    /// A failure of the data, the model or the disk. Earlier checkpoints are unaffected.
    pub fn train(&mut self, requests: &Requests) -> Result<Summary, TrainError> {
        vlm_torch::set_operation(c"training");
        let num_shards = if self.config.run.shard_optimizer { self.world.world_size() } else { 1 };
        let parts = MemoryParts::of(&self.model, num_shards);
        let summary = with_memory_advice(Some(parts), || self.train_to_the_end(requests));
        if let Err(error) = &summary {
            self.world.publish_error(error);
        }
        summary
    }

    fn train_to_the_end(&mut self, requests: &Requests) -> Result<Summary, TrainError> {
        let started = Instant::now();
        let is_first = self.is_first_rank();
        let trainable = self.model.trainable();
        let num_trainable: i64 = trainable.iter().map(|(_, t)| t.numel() as i64).sum();
        if is_first {
            self.out_dir.move_earlier()?;
            if let Some(checkpoint) = &self.resumed {
                let step = checkpoint.state_dict.train_state.counters.step;
                checkpoint::rename_later(&self.out_dir.join("checkpoints"), step)?;
            }
            self.out_dir.write_json("config.json", &self.describe())?;
            self.announce(num_trainable);
        }

        let mut sinks = std::mem::take(&mut self.sinks);
        let resumed = self.resumed.take();
        self.world.set_phase(0, Phase::Connect);
        let mut trainer = Trainer::new(
            &self.config,
            &self.model,
            &self.loader,
            &self.processor,
            self.tokenizer.pad_token_id(),
            &self.world,
        )?;
        self.world.set_phase(0, Phase::StartUp);
        self.restore(resumed.as_ref(), &mut trainer)?;
        // Restored at the end of the training: a caller may use the model without autocast.
        let convert = |kind| self.model.convert_frozen_weights(kind);
        let _converted = autocast_kind(self.dtype).map(convert).transpose()?;
        let before = trainer.state.counters;
        if is_first {
            sinks.extend(self.file_sinks(before.step)?);
            trainer.sinks = sinks;
            trainer.reject_log = Some(RejectLog::open(&self.out_dir.join("rejected.jsonl"))?);
            if self.config.optim.loss_spike_factor.is_some() {
                let path = self.out_dir.join(LOSS_SPIKES);
                trainer.spike_log = Some(StepLines::open_after(&path, before.step)?);
            }
        }
        let (freeze, device) = (&self.config.model.freeze, self.model.device());
        let utilization = Utilization::new(&self.shapes, freeze, device, self.dtype, &self.world)?;
        let of_device = utilization.entries();
        trainer.utilization = Some(utilization);
        let steps_left = trainer.last_step() - before.step.min(trainer.last_step());
        trainer.profile = match self.config.run.profile_steps {
            steps if steps > 0 && is_first => {
                let folder = self.out_dir.path().to_owned();
                Some(StepProfile::new(folder, device, steps, steps_left))
            }
            _ => None,
        };
        trainer.evaluator = self.evaluator.as_ref();
        trainer.saver.continue_from(resumed.map(|checkpoint| checkpoint.path));
        trainer.started = self.started;
        // An error is published first: the trainer waits for a checkpoint that is being written.
        let ending = trainer
            .run(requests, &mut |trainer| self.save(trainer, false))
            .inspect_err(|error| self.world.publish_error(error))?;
        vlm_torch::set_operation(c"saving the result of the training");
        self.save(&mut trainer, true)?;
        let rejected_by_reason =
            trainer.reject_log.as_ref().map(|log| log.by_reason().clone()).unwrap_or_default();

        let wall_secs = started.elapsed().as_secs_f64();
        let TrainState { counters, last_loss, .. } = trainer.state;
        self.world.set_phase(counters.step, Phase::End);
        let mut extra = match &trainer.shards {
            Some(shards) => shards.statistics(),
            None => trainer.gradients.statistics()?,
        };
        extra.extend(of_device);
        let kind = autocast_kind(self.dtype).unwrap_or(tch::Kind::Float);
        if self.model.device().is_cuda()
            && let Ok(kernel) = self.model.attention_kernel(kind)
        {
            extra.insert("attention".to_owned(), kernel.into());
        }
        self.world.leave()?;
        let status = match ending {
            Ending::Finished => "finished",
            Ending::Interrupted => "interrupted",
        };
        Ok(Summary {
            status,
            steps: counters.step,
            samples: counters.samples,
            wall_secs,
            final_loss: last_loss,
            samples_per_sec: (counters.samples - before.samples) as f64 / wall_secs,
            peak_memory_bytes: vlm_torch::peak_memory_bytes(self.model.device()).unwrap_or(0),
            rejected_rows: counters.rejected_rows,
            rejected_by_reason,
            skipped_updates: counters.skipped_updates,
            empty_steps: counters.empty_steps,
            trainable_parameters: num_trainable,
            save_wait_secs: trainer.saver.waited().as_secs_f64(),
            extra,
        })
    }

    /// Opens `metrics.jsonl` and `samples.jsonl`, without lines of steps after `done_steps`, and the
    /// event file for TensorBoard.
    fn file_sinks(&self, done_steps: u64) -> Result<Vec<Box<dyn EventSink>>, TrainError> {
        let metrics = MetricsFile::open_after(&self.out_dir.join("metrics.jsonl"), done_steps)?;
        let mut sinks: Vec<Box<dyn EventSink>> = vec![Box::new(metrics)];
        if self.config.eval.data_path.is_some() && self.config.eval.num_samples > 0 {
            let path = self.out_dir.join(samples::FILE_NAME);
            sinks.push(Box::new(SamplesFile::open_after(&path, done_steps)?));
        }
        if self.config.run.tensorboard {
            sinks.push(Box::new(EventFile::create(self.out_dir.path(), done_steps + 1)?));
        }
        Ok(sinks)
    }
}
