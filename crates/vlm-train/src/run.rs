//! A training run from beginning to end: checks everything, makes the out-dir, assembles the
//! parts, trains, and writes what came of it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use tch::{Device, Tensor};
use vlm_data::{
    ChatTokenizer, FeatureCache, FeaturesDtype, ImageProcessor, ImageReading, Loader, LoaderConfig,
    RejectLog,
};
use vlm_model::Vlm;
use vlm_model::lm::with_tied_output;
use vlm_model::weights::{self, Format};
use vlm_torch::{Reducer, ReducerOptions};

use crate::TrainError;
use crate::assemble::{Shapes, build_model, open_tokenizer, settle_shapes};
use crate::cache_features::{feature_key, usage};
use crate::checkpoint::{self, Checkpoint};
use crate::config::{ModelConfig, OptimConfig, Resume, TrainConfig};
use crate::demo::DemoReport;
use crate::device_batch::Transfer;
use crate::encoder_files;
use crate::eval::{EvalOptions, Evaluator};
use crate::event_file::EventFile;
use crate::metrics::MetricsFile;
use crate::optimizer::AdamW;
use crate::out_dir::OutDir;
use crate::parallel::{Identity, LaunchEnv, Phase, Team, agree, gradient_bytes, start_up};
use crate::precision::{self, Dtype};
use crate::report;
use crate::scaler::LossScaler;
use crate::trained::image_processor;
use crate::trainer::{Ending, Position, Trainer};

/// A run that has been checked and assembled, and not yet begun.
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
    /// On rank 0 only.
    resumed: Option<Checkpoint>,
    team: Option<Team>,
}

/// What a run needs and can be had without a model or a folder.
struct Parts {
    shapes: Shapes,
    tokenizer: Arc<ChatTokenizer>,
    processor: Arc<ImageProcessor>,
    loader: Loader,
    /// On rank 0 only.
    evaluator: Option<Evaluator>,
    device: Device,
    dtype: Dtype,
    resumed: Option<Checkpoint>,
}

impl Parts {
    fn assemble(config: &TrainConfig, team: Option<&Team>) -> Result<Self, TrainError> {
        let device = precision::device(&config.run.device, team.map(Team::env))?;
        if let Some(threads) = config.run.num_threads.or_else(|| start_up::threads_of_one(team)) {
            tch::set_num_threads(threads);
        }
        let tokenizer = Arc::new(open_tokenizer(&config.model)?);
        let shapes = settle_shapes(&config.model, &tokenizer, config.data.max_seq_len)?;
        let image_size = shapes.vision.image_size;
        let processor = Arc::new(image_processor(&config.model.vision, image_size)?);
        let source = config.data.data_path.open(config.data.images_path.as_deref())?;
        let loader = Loader::new(
            source,
            Arc::clone(&tokenizer),
            images(&config.model, &shapes, &processor)?,
            loader_config(config, shapes.tokens_per_image(), team),
        )?;
        let is_first = team.is_none_or(|team| team.rank() == 0);
        let resumed = if is_first { find_checkpoint(config, world_size(team))? } else { None };
        let tokens_per_image = shapes.tokens_per_image();
        let judge = || evaluator(config, &tokenizer, &processor, tokens_per_image);
        let evaluator = if is_first { judge()? } else { None };
        let dtype = config.run.dtype.unwrap_or_else(|| Dtype::default_on(device));
        Ok(Self { shapes, tokenizer, processor, loader, evaluator, device, dtype, resumed })
    }

    /// What must be the same on all ranks. Where files lie need not be.
    fn identity(&self, config: &TrainConfig) -> Identity {
        let TrainConfig { stage, data, run, optim, model, eval: _ } = config;
        let settings = serde_json::json!({
            "stage": stage,
            "optim": optim,
            "freeze": model.freeze,
            "max_seq_len": data.max_seq_len,
            "padding": data.padding,
            "shuffle": data.shuffle,
            "bucket_window": data.bucket_window,
            "drop_last": data.drop_last,
            "max_rejected_fraction": data.max_rejected_fraction,
            "seed": run.seed,
            "log_interval": run.log_interval,
            "save_interval": run.save_interval,
            "max_steps": run.max_steps,
            "timeout_secs": run.timeout_secs,
            "lm": self.shapes.lm,
            "vision": self.shapes.vision,
            "projector": self.shapes.projector,
            "tokenizer": self.tokenizer.hash(),
            "image_processor": self.processor.hash(),
            "dtype": self.dtype,
            "device": if self.device.is_cuda() { "cuda" } else { "cpu" },
        });
        Identity::new(self.loader.fingerprint(), settings)
    }
}

fn world_size(team: Option<&Team>) -> usize {
    team.map_or(1, Team::world_size)
}

/// This process's result, when all ranks have one.
fn all_ready<T>(team: Option<&Team>, own: Result<T, TrainError>) -> Result<T, TrainError> {
    match team {
        None => own,
        Some(team) => team.all_ready(own),
    }
}

/// What a run came to; `summary.json` holds this and more.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Summary {
    /// `finished` or `interrupted`.
    pub status: &'static str,
    /// Micro-batches done.
    pub steps: u64,
    /// Rows trained on.
    pub samples: u64,
    /// Seconds of training, of this process.
    pub wall_secs: f64,
    /// Loss of the last micro-batch, in nats a supervised token.
    pub final_loss: Option<f64>,
    /// Rows a second over all of `wall_secs`.
    pub samples_per_sec: f64,
    /// Most memory used at once.
    pub peak_memory_bytes: u64,
    /// Rows set aside.
    pub rejected_rows: u64,
    /// Updates left out as not finite.
    pub skipped_updates: u64,
    /// Micro-batches without anything to learn.
    pub empty_steps: u64,
    /// Elements of the trained tensors.
    pub trainable_parameters: i64,
    /// What else there is to say, by name.
    #[serde(flatten)]
    pub extra: serde_json::Map<String, serde_json::Value>,
}

impl Run {
    /// Checks and assembles everything. What the user asked wrongly is found here, before the
    /// out-dir is touched. Where the launch environment names several processes, they meet here,
    /// and one that cannot go on stops all.
    ///
    /// # Errors
    /// Any setting, file or shape that is not as it must be; ranks that do not come, or were not
    /// started alike.
    pub fn prepare(config: TrainConfig) -> Result<Self, TrainError> {
        config.validate()?;
        let launch = LaunchEnv::read()?.filter(|env| env.world_size > 1 || config.run.ddp);
        let timeout = Duration::from_secs(config.run.timeout_secs);
        let team = launch.map(|env| Team::connect(env, timeout)).transpose()?;
        let prepared = Self::prepare_in(config, team.as_ref());
        if let (Err(error), Some(team)) = (&prepared, &team) {
            team.leave_word(error);
        }
        Ok(Self { team, ..prepared? })
    }

    fn prepare_in(config: TrainConfig, team: Option<&Team>) -> Result<Self, TrainError> {
        let parts = all_ready(team, Parts::assemble(&config, team))?;
        if let Some(team) = team {
            let nccl = all_ready(Some(team), team.use_device(parts.device))?;
            start_up::introduce(team, parts.device, nccl.as_deref());
            agree(team, &parts.identity(&config))?;
        }
        let is_first = team.is_none_or(|team| team.rank() == 0);
        let out_dir = if is_first {
            OutDir::prepare(&config.run.out_dir, config.stage, config.run.resume.is_some())
        } else {
            Ok(OutDir::of_another(&config.run.out_dir))
        };
        let out_dir = all_ready(team, out_dir)?;
        let Parts { tokenizer, processor, loader, evaluator, shapes, resumed, device, dtype } =
            parts;
        let model = build_model(&config.model, &shapes, config.run.seed, device);
        let mut model = all_ready(team, model)?;
        model.set_activation_checkpointing(config.model.activation_checkpointing);
        if let Some(team) = team {
            let mut all = model.params().named();
            all.extend(model.vision_params().named());
            team.share_tensors(&all)?;
        }
        let team = None;
        Ok(Self {
            config,
            team,
            out_dir,
            shapes,
            tokenizer,
            processor,
            loader,
            evaluator,
            model,
            dtype,
            resumed,
        })
    }

    /// Whether this process is the one that writes and reports.
    pub fn is_first_rank(&self) -> bool {
        self.team.as_ref().is_none_or(|team| team.rank() == 0)
    }

    /// The model; trained in place by [`Self::train`].
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

    /// Where the run writes.
    pub fn out_dir(&self) -> &OutDir {
        &self.out_dir
    }

    /// Trains to the end, saving on the way, and writes the final weights. `stop` ends the run
    /// early, with everything saved.
    ///
    /// # Errors
    /// Data, model, disk; the last checkpoint stays as it was.
    pub fn train(&mut self, stop: &AtomicBool) -> Result<Summary, TrainError> {
        let summary = self.train_to_the_end(stop);
        if let (Err(error), Some(team)) = (&summary, &self.team) {
            team.leave_word(error);
        }
        summary
    }

    fn train_to_the_end(&mut self, stop: &AtomicBool) -> Result<Summary, TrainError> {
        let started = Instant::now();
        let is_first = self.is_first_rank();
        let trainable = self.model.trainable();
        let num_trainable: i64 = trainable.iter().map(|(_, t)| t.numel() as i64).sum();
        if is_first {
            self.out_dir.set_aside_earlier()?;
            self.out_dir.write_json("config.json", &self.describe())?;
            self.announce(num_trainable);
        }

        let mut optimizer = AdamW::new(trainable, self.config.optim.weight_decay);
        let resumed = self.resumed.take();
        let position = self.starting_position(resumed.as_ref(), &mut optimizer)?;
        let samples_before = position.counters.samples;
        let team = self.team.as_ref();
        let reducer = team.map(|team| self.reducer(team)).transpose()?;
        let (rejects, metrics) = match is_first {
            true => (
                Some(RejectLog::open(&self.out_dir.join("rejected.jsonl"))?),
                Some(self.metrics_file(position.counters.step)?),
            ),
            false => (None, None),
        };
        let mut trainer = Trainer {
            config: &self.config,
            model: &self.model,
            transfer: Transfer::new(self.model.device(), &self.processor),
            source: &self.loader,
            optimizer,
            dtype: self.dtype,
            position,
            pad_token_id: self.tokenizer.pad_token_id(),
            rejects,
            metrics,
            team,
            reducer,
            evaluator: self.evaluator.as_ref(),
        };
        let ending = trainer.run(stop, &mut |trainer| self.save_checkpoint(trainer))?;
        self.save_checkpoint(&trainer)?;

        let wall_secs = started.elapsed().as_secs_f64();
        let Position { counters, last_loss, .. } = trainer.position;
        let mut extra = serde_json::Map::new();
        if let (Some(team), Some(reducer)) = (team, &trainer.reducer) {
            team.reached(counters.step, Phase::End);
            extra.extend(start_up::communication(team, reducer)?);
            team.part()?;
        }
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
            samples_per_sec: (counters.samples - samples_before) as f64 / wall_secs,
            peak_memory_bytes: vlm_torch::peak_memory_bytes(self.model.device()).unwrap_or(0),
            rejected_rows: counters.rejected_rows,
            skipped_updates: counters.skipped_updates,
            empty_steps: counters.empty_steps,
            trainable_parameters: num_trainable,
            extra,
        })
    }

    /// The beginning, or where rank 0's checkpoint stood: all ranks get its weights, optimizer
    /// state and position, so that only rank 0 needs its disk.
    fn starting_position(
        &self,
        resumed: Option<&Checkpoint>,
        optimizer: &mut AdamW,
    ) -> Result<Position, TrainError> {
        let mut position = Position {
            scaler: (self.dtype == Dtype::Float16).then(LossScaler::default),
            ..Position::default()
        };
        let restored = resumed.map(|checkpoint| self.restore(checkpoint, optimizer)).transpose();
        let restored = all_ready(self.team.as_ref(), restored)?;
        let Some(team) = &self.team else { return Ok(restored.unwrap_or(position)) };
        if let Some(restored) = team.first_ranks(&restored)? {
            position = restored;
            let mut all = self.model.params().named();
            all.extend(self.model.vision_params().named());
            all.extend(optimizer.state());
            team.share_tensors(&all)?;
        }
        Ok(position)
    }

    fn reducer<'a>(&self, team: &'a Team) -> Result<Reducer<'a>, TrainError> {
        let trainable = self.model.trainable();
        let defaults = ReducerOptions::default();
        // A bucket travels when all of it is computed: small models need smaller ones than usual,
        // or all of them would wait for the end of the backward pass.
        let eighth = i64::try_from(gradient_bytes(&trainable) / 8).unwrap_or(i64::MAX);
        let options = ReducerOptions {
            bucket_bytes: eighth.clamp(defaults.first_bucket_bytes, defaults.bucket_bytes),
            // A batch of text alone on one rank must not stop those that have images.
            find_unused_parameters: true,
            ..defaults
        };
        let reducer = Reducer::new(team.group(), &trainable, &options);
        reducer.map_err(|error| team.explain(error))
    }

    /// The log, cut back to the steps that are behind, and TensorBoard's events beside it.
    fn metrics_file(&self, done: u64) -> Result<MetricsFile, TrainError> {
        let metrics = MetricsFile::open_after(&self.out_dir.join("metrics.jsonl"), done)?;
        if !self.config.run.tensorboard {
            return Ok(metrics);
        }
        Ok(metrics.with_events(EventFile::create(self.out_dir.path(), done + 1)?))
    }

    /// Writes `report.html` from the files of the out-dir, `summary.json` among them, and for the
    /// demo what came of it. Rank 0 does, for all. What fails here costs a page, not a run.
    pub fn write_report(&self, demo: Option<&DemoReport>) {
        if !self.is_first_rank() {
            return;
        }
        if let Err(error) = report::write(self.out_dir.path(), demo) {
            tracing::warn!("no {}: {error}", report::FILE_NAME);
        }
    }

    /// Writes `summary.json`; rank 0 does, for all.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn write_summary(&self, summary: &Summary) -> Result<(), TrainError> {
        if !self.is_first_rank() {
            return Ok(());
        }
        self.out_dir.write_json("summary.json", summary)
    }

    /// Base name of the weights that a run leaves: `pretrain_vlm_{dim}[_moe]`, `sft_vlm_…`.
    pub fn weights_name(&self) -> String {
        self.config.stage.weights_name(self.shapes.lm.dim, self.shapes.lm.use_moe)
    }

    /// A checkpoint to continue from, and the weights alone in both formats.
    ///
    /// Rank 0 writes; the others prove that they hold the same.
    fn save_checkpoint(&self, trainer: &Trainer) -> Result<(), TrainError> {
        if let Some(team) = &self.team {
            let differing = team.ranks_that_differ(&self.model.trainable())?;
            if !differing.is_empty() && team.rank() == 0 {
                tracing::warn!(
                    "the weights of ranks {differing:?} are no longer those of rank 0, which are \
                     saved; machines of different kinds round differently"
                );
            }
        }
        if !self.is_first_rank() {
            return Ok(());
        }
        let weights = self.weights();
        let mut all = self.weights();
        all.extend(encoder_files::checkpointed(&self.model));
        checkpoint::save(
            &self.out_dir.join("checkpoints"),
            &all,
            &trainer.optimizer.state(),
            trainer.position,
            self.identity(),
            self.config.run.keep_checkpoints,
        )?;
        for (extension, format) in [("pth", Format::Pth), ("safetensors", Format::Safetensors)] {
            let path = self.out_dir.join(format!("{}.{extension}", self.weights_name()));
            weights::save(&path, &weights, format).map_err(|e| TrainError::at(&path, e))?;
        }
        let encoder = &self.config.model.vision;
        encoder_files::save(&self.model, &self.shapes, encoder, self.out_dir.path())
    }

    /// All weights but the vision encoder's, under the family's own names.
    fn weights(&self) -> Vec<(String, Tensor)> {
        with_tied_output(self.model.params().named(), &self.shapes.lm)
    }

    fn restore(
        &self,
        checkpoint: &Checkpoint,
        optimizer: &mut AdamW,
    ) -> Result<Position, TrainError> {
        let at = &checkpoint.path;
        let mut tensors = self.model.params().named();
        tensors.extend(encoder_files::checkpointed(&self.model));
        for (name, mut tensor) in tensors {
            let saved =
                checkpoint.model.iter().find(|(n, t)| *n == name && t.size() == tensor.size());
            let Some((_, saved)) = saved else {
                let shape = tensor.size();
                return Err(TrainError::at(at, format!("no tensor {name} of shape {shape:?}")));
            };
            tch::no_grad(|| tensor.copy_(saved));
        }
        optimizer.load_state(&checkpoint.optimizer)?;
        tracing::info!(
            "continuing from {} (step {})",
            at.display(),
            checkpoint.state.position.counters.step
        );
        Ok(checkpoint.state.position)
    }

    /// What must be the same for a continued run to be the run it would have been.
    fn identity(&self) -> serde_json::Value {
        identity(&self.config, world_size(self.team.as_ref()))
    }

    /// The resolved configuration, with the model that came of it.
    fn describe(&self) -> serde_json::Value {
        let mut tree = self.shapes.describe(&self.tokenizer);
        let mut config = self.config.clone();
        // The folder can then be used from wherever its user is.
        for part in [&mut config.model.vision, &mut config.model.tokenizer] {
            *part = std::path::absolute(&*part).unwrap_or_else(|_| part.clone());
        }
        tree["run"] = serde_json::to_value(&config).unwrap_or_default();
        tree["dtype"] = serde_json::to_value(self.dtype).unwrap_or_default();
        tree["program"] = env!("CARGO_PKG_VERSION").into();
        tree
    }

    fn announce(&self, num_trainable: i64) {
        let device = match self.model.device() {
            Device::Cpu => format!("CPU, {} threads", tch::get_num_threads()),
            other => format!("{other:?}"),
        };
        let encoder = match self.model.vision_params().num_elements() as f64 / 1e6 {
            0.0 => "features take the vision encoder's place".to_owned(),
            millions if self.config.model.freeze.train_vision => {
                format!("the vision encoder's {millions:.1} M are trained too")
            }
            millions => format!("the vision encoder's {millions:.1} M are frozen"),
        };
        tracing::info!(
            "{} of {} parameters are trained ({:.3} M); {encoder}",
            num_trainable,
            self.model.params().num_elements(),
            num_trainable as f64 / 1e6,
        );
        tracing::info!(
            "{} rows, {} batches an epoch, {} epochs; {device}, {:?}; writing to {}",
            self.loader.num_rows(),
            self.loader.batches_per_epoch(),
            self.config.optim.epochs,
            self.dtype,
            self.out_dir.path().display()
        );
    }
}

/// Where the model's view of the pictures comes from.
fn images(
    config: &ModelConfig,
    shapes: &Shapes,
    processor: &Arc<ImageProcessor>,
) -> Result<ImageReading, TrainError> {
    let Some(folder) = &config.features else {
        return Ok(ImageReading::Pixels(Arc::clone(processor)));
    };
    // The type of the stored values is the cache's own affair.
    let wanted = feature_key(&config.vision, &shapes.vision, processor, FeaturesDtype::Float32)?;
    let cache = FeatureCache::open(folder, &wanted).map_err(usage)?;
    tracing::info!("features of {} pictures from {}", cache.num_images(), folder.display());
    Ok(ImageReading::Features(Arc::new(cache)))
}

fn loader_config(
    config: &TrainConfig,
    tokens_per_image: usize,
    team: Option<&Team>,
) -> LoaderConfig {
    LoaderConfig {
        batch_size: config.optim.batch_size,
        rank: team.map_or(0, Team::rank),
        world_size: world_size(team),
        max_seq_len: config.data.max_seq_len,
        tokens_per_image,
        padding: config.data.padding,
        shuffle: config.data.shuffle,
        seed: config.run.seed,
        drop_last: config.data.drop_last,
        num_workers: config.data.num_workers,
        prefetch_batches: config.data.prefetch_batches,
        bucket_window: config.data.bucket_window,
        max_rejected_fraction: config.data.max_rejected_fraction,
    }
}

/// What judges the model on the way, where that is asked for.
fn evaluator(
    config: &TrainConfig,
    tokenizer: &Arc<ChatTokenizer>,
    processor: &Arc<ImageProcessor>,
    tokens_per_image: usize,
) -> Result<Option<Evaluator>, TrainError> {
    let Some(data_path) = &config.eval.data_path else { return Ok(None) };
    let images_path = config.eval.images_path.as_ref().or(config.data.images_path.as_ref());
    let options = EvalOptions {
        batch_size: config.optim.batch_size,
        max_seq_len: config.data.max_seq_len,
        num_workers: config.data.num_workers,
        max_captions: config.eval.max_captions,
        max_new_tokens: config.eval.max_new_tokens,
    };
    let images_path = images_path.map(std::path::PathBuf::as_path);
    Evaluator::open(data_path, images_path, tokenizer, processor, tokens_per_image, options)
        .map(Some)
}

/// The settings that decide which numbers a run computes. How many processes share a batch does not.
fn identity(config: &TrainConfig, world_size: usize) -> serde_json::Value {
    let global_batch_size = config.optim.batch_size.saturating_mul(world_size);
    let optim = OptimConfig { batch_size: global_batch_size, ..config.optim.clone() };
    serde_json::json!({
        "stage": config.stage,
        "data_path": config.data.data_path,
        "shuffle": config.data.shuffle,
        "bucket_window": config.data.bucket_window,
        "max_seq_len": config.data.max_seq_len,
        "seed": config.run.seed,
        "optim": optim,
        "freeze": config.model.freeze,
    })
}

fn find_checkpoint(
    config: &TrainConfig,
    world_size: usize,
) -> Result<Option<Checkpoint>, TrainError> {
    let checkpoint = match &config.run.resume {
        None => return Ok(None),
        Some(Resume::Path(path)) => checkpoint::load(path)?,
        Some(Resume::Auto) => {
            if OutDir::holds_earlier(&config.run.out_dir, config.stage) {
                tracing::info!("only an earlier stage's checkpoints there: starting anew");
                return Ok(None);
            }
            let folder = config.run.out_dir.join("checkpoints");
            let Some(checkpoint) = checkpoint::newest(&folder)? else {
                tracing::info!("no checkpoint in {}: starting anew", folder.display());
                return Ok(None);
            };
            checkpoint
        }
    };
    let now = identity(config, world_size);
    if checkpoint.state.identity != now {
        let changed: Vec<String> = now
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| checkpoint.state.identity.get(key) != Some(value))
            .map(|(key, value)| {
                let before = checkpoint.state.identity.get(key).cloned().unwrap_or_default();
                format!("{key} was {before} and is now {value}")
            })
            .collect();
        return Err(TrainError::Usage(format!(
            "{}: the run to continue had other settings: {}; give the same, or start anew in \
             another --out-dir",
            checkpoint.path.display(),
            changed.join("; ")
        )));
    }
    Ok(Some(checkpoint))
}
