//! A training run from beginning to end: checks everything, makes the out-dir, assembles the
//! parts, trains, and writes what came of it.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use tch::{Device, Tensor};
use vlm_data::{ChatTokenizer, ImageProcessor, JsonlSource, Loader, LoaderConfig, RejectLog};
use vlm_model::Vlm;
use vlm_model::lm::with_tied_output;
use vlm_model::weights::{self, Format};

use crate::TrainError;
use crate::assemble::{Shapes, build_model, open_tokenizer, settle_shapes};
use crate::checkpoint::{self, Checkpoint};
use crate::config::{Resume, TrainConfig};
use crate::device_batch::Transfer;
use crate::encoder_files;
use crate::metrics::MetricsFile;
use crate::optimizer::AdamW;
use crate::out_dir::OutDir;
use crate::precision::{self, Dtype};
use crate::scaler::LossScaler;
use crate::trainer::{Ending, Position, Trainer};

/// A run that has been checked and assembled, and not yet begun.
pub struct Run {
    config: TrainConfig,
    out_dir: OutDir,
    shapes: Shapes,
    tokenizer: Arc<ChatTokenizer>,
    processor: Arc<ImageProcessor>,
    loader: Loader,
    model: Vlm,
    dtype: Dtype,
    resumed: Option<Checkpoint>,
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
    /// out-dir is touched.
    ///
    /// # Errors
    /// Any setting, file or shape that is not as it must be.
    pub fn prepare(config: TrainConfig) -> Result<Self, TrainError> {
        config.validate()?;
        let device = precision::device(&config.run.device)?;
        if let Some(threads) = config.run.num_threads {
            tch::set_num_threads(threads);
        }
        let tokenizer = Arc::new(open_tokenizer(&config.model)?);
        let shapes = settle_shapes(&config.model, &tokenizer, config.data.max_seq_len)?;
        let processor_file = config.model.vision.join("preprocessor_config.json");
        let processor = Arc::new(ImageProcessor::from_file(&processor_file)?);
        if processor.image_size() as i64 != shapes.vision.image_size {
            return Err(TrainError::Usage(format!(
                "{} makes pictures of side {}, but the vision encoder beside it takes {}",
                processor_file.display(),
                processor.image_size(),
                shapes.vision.image_size
            )));
        }
        let source = JsonlSource::open(&config.data.data_path, config.data.images_path.as_deref())?;
        let loader = Loader::new(
            Arc::new(source),
            Arc::clone(&tokenizer),
            Some(Arc::clone(&processor)),
            loader_config(&config, shapes.tokens_per_image()),
        )?;
        let resumed = find_checkpoint(&config)?;
        let out_dir = OutDir::prepare(&config.run.out_dir, config.run.resume.is_some())?;
        let model = build_model(&config.model, &shapes, config.run.seed, device)?;
        let dtype = config.run.dtype.unwrap_or_else(|| Dtype::default_on(device));
        Ok(Self { config, out_dir, shapes, tokenizer, processor, loader, model, dtype, resumed })
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
        let started = Instant::now();
        self.out_dir.write_json("config.json", &self.describe())?;
        let trainable = self.model.trainable();
        let num_trainable: i64 = trainable.iter().map(|(_, t)| t.numel() as i64).sum();
        self.announce(num_trainable);

        let mut optimizer = AdamW::new(trainable, self.config.optim.weight_decay);
        let mut position = Position {
            scaler: (self.dtype == Dtype::Float16).then(LossScaler::default),
            ..Position::default()
        };
        if let Some(checkpoint) = self.resumed.take() {
            position = self.restore(&checkpoint, &mut optimizer)?;
        }
        let samples_before = position.counters.samples;
        let mut trainer = Trainer {
            config: &self.config,
            model: &self.model,
            transfer: Transfer::new(self.model.device(), &self.processor),
            source: &self.loader,
            optimizer,
            dtype: self.dtype,
            position,
            rejects: RejectLog::open(&self.out_dir.join("rejected.jsonl"))?,
            metrics: MetricsFile::open(&self.out_dir.join("metrics.jsonl"))?,
        };
        let ending = trainer.run(stop, &mut |trainer| self.save_checkpoint(trainer))?;
        self.save_checkpoint(&trainer)?;

        let wall_secs = started.elapsed().as_secs_f64();
        let Position { counters, last_loss, .. } = trainer.position;
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
            extra: serde_json::Map::new(),
        })
    }

    /// Writes `summary.json`.
    ///
    /// # Errors
    /// The system's, with the path.
    pub fn write_summary(&self, summary: &Summary) -> Result<(), TrainError> {
        self.out_dir.write_json("summary.json", summary)
    }

    /// Base name of the weights that a run leaves: `pretrain_vlm_{dim}[_moe]`.
    pub fn weights_name(&self) -> String {
        let suffix = if self.shapes.lm.use_moe { "_moe" } else { "" };
        format!("pretrain_vlm_{}{suffix}", self.shapes.lm.dim)
    }

    /// A checkpoint to continue from, and the weights alone in both formats.
    fn save_checkpoint(&self, trainer: &Trainer) -> Result<(), TrainError> {
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
        identity(&self.config)
    }

    /// The resolved configuration, with the model that came of it.
    fn describe(&self) -> serde_json::Value {
        let mut tree = self.shapes.describe(&self.tokenizer);
        tree["run"] = serde_json::to_value(&self.config).unwrap_or_default();
        tree["dtype"] = serde_json::to_value(self.dtype).unwrap_or_default();
        tree["program"] = env!("CARGO_PKG_VERSION").into();
        tree
    }

    fn announce(&self, num_trainable: i64) {
        let device = match self.model.device() {
            Device::Cpu => format!("CPU, {} threads", tch::get_num_threads()),
            other => format!("{other:?}"),
        };
        tracing::info!(
            "{} of {} parameters are trained ({:.3} M); the vision encoder's {:.1} M are {}",
            num_trainable,
            self.model.params().num_elements(),
            num_trainable as f64 / 1e6,
            self.model.vision_params().num_elements() as f64 / 1e6,
            if self.config.model.freeze.train_vision { "trained too" } else { "frozen" },
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

fn loader_config(config: &TrainConfig, tokens_per_image: usize) -> LoaderConfig {
    LoaderConfig {
        batch_size: config.optim.batch_size,
        max_seq_len: config.data.max_seq_len,
        tokens_per_image,
        padding: config.data.padding,
        shuffle: config.data.shuffle,
        seed: config.run.seed,
        drop_last: config.data.drop_last,
        num_workers: config.data.num_workers,
        bucket_window: config.data.bucket_window,
        max_rejected_fraction: config.data.max_rejected_fraction,
        ..LoaderConfig::default()
    }
}

/// The settings that decide which numbers a run computes.
fn identity(config: &TrainConfig) -> serde_json::Value {
    serde_json::json!({
        "data_path": config.data.data_path,
        "shuffle": config.data.shuffle,
        "bucket_window": config.data.bucket_window,
        "max_seq_len": config.data.max_seq_len,
        "seed": config.run.seed,
        "optim": config.optim,
        "freeze": config.model.freeze,
    })
}

fn find_checkpoint(config: &TrainConfig) -> Result<Option<Checkpoint>, TrainError> {
    let checkpoint = match &config.run.resume {
        None => return Ok(None),
        Some(Resume::Path(path)) => checkpoint::load(path)?,
        Some(Resume::Auto) => {
            let folder = config.run.out_dir.join("checkpoints");
            let Some(checkpoint) = checkpoint::newest(&folder)? else {
                tracing::info!("no checkpoint in {}: starting anew", folder.display());
                return Ok(None);
            };
            checkpoint
        }
    };
    let now = identity(config);
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
