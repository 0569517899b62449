//! Opens the parts of a run that need neither model weights nor the out-dir: tokenizer, shapes,
//! rows, evaluator and device.

use std::sync::Arc;

use serde_json::{Value, json};
use tch::Device;
use vlm_data::{
    ChatTokenizer, FeatureCache, FeatureKey, FeaturesDtype, ImageProcessor, ImageReading, Loader,
    LoaderConfig, open_source_with,
};

use crate::TrainError;
use crate::cache_features::{feature_key, usage};
use crate::config::{DtypeChoice, ModelConfig, TrainConfig};
use crate::parallel::{LaunchEnv, World};
use crate::rank_device;
use vlm_display::count;
use vlm_infer::evaluation::{EvalOptions, Evaluator};
use vlm_infer::image_processor;
use vlm_infer::{Dtype, default_dtype};
use vlm_infer::{ModelFiles, Shapes, open_tokenizer, require_projector, settle_shapes};

/// The parts of a run that need neither model weights nor the out-dir.
pub(super) struct Parts {
    pub(super) shapes: Shapes,
    pub(super) tokenizer: Arc<ChatTokenizer>,
    pub(super) processor: Arc<ImageProcessor>,
    pub(super) loader: Loader,
    /// Evaluates the model during the training, if `eval_data` is set; on rank 0 only.
    pub(super) evaluator: Option<Evaluator>,
    pub(super) device: Device,
    pub(super) dtype: Dtype,
    /// Key of the feature cache, if cached features are used.
    pub(super) features: Option<FeatureKey>,
    /// Number of rows, and a hash of some of them.
    pub(super) rows: String,
    /// Hash of the files that hold the rows.
    pub(super) row_files: String,
}

impl Parts {
    pub(super) fn assemble(config: &TrainConfig, world: &World) -> Result<Self, TrainError> {
        let device = rank_device::select(&config.run.device, world.launch_env())?;
        let default_threads = || world.launch_env().and_then(LaunchEnv::num_threads);
        if let Some(threads) = config.run.num_threads.or_else(default_threads) {
            tch::set_num_threads(threads);
        }
        vlm_torch::keep_freed_memory();
        let files = model_files(&config.model);
        if config.model.init_from.is_some() {
            require_projector(&files)?;
        }
        let tokenizer = Arc::new(open_tokenizer(&files)?);
        let request = &config.model.shape;
        let shapes = settle_shapes(&files, request, &tokenizer, config.data.max_seq_len)?;
        let processor = Arc::new(image_processor(&config.model.vision, &shapes.vision)?);
        let images_path = config.data.images_path.as_deref();
        let source = config.data.data_path.open_with(images_path, &config.data.row_options()?)?;
        let images = images(&config.model, &shapes, &processor)?;
        let features = match &images {
            ImageReading::Features(cache) => Some(cache.key().clone()),
            ImageReading::Skip | ImageReading::Pixels(_) => None,
        };
        let loader = Loader::new(
            source,
            Arc::clone(&tokenizer),
            images,
            loader_config(config, shapes.tokens_per_image(), world)?,
        )?;
        let (rows, row_files) = (loader.fingerprint()?, config.data.data_path.fingerprint()?);
        let tokens_per_image = shapes.tokens_per_image();
        let evaluator = || evaluator(config, &tokenizer, &processor, tokens_per_image);
        let evaluator = if world.is_first_rank() { evaluator()? } else { None };
        let dtype = config.run.dtype.and_then(DtypeChoice::fixed);
        let dtype = dtype.unwrap_or_else(|| default_dtype(device));
        Ok(Self {
            shapes,
            tokenizer,
            processor,
            loader,
            evaluator,
            device,
            dtype,
            features,
            rows,
            row_files,
        })
    }

    /// Hashes of the files of a run, and the shapes and types that were resolved from them, by
    /// name. Together with the settings they determine the numbers of the run.
    pub(super) fn contents(&self) -> Value {
        json!({
            "rows": self.rows,
            "row_files": self.row_files,
            "features": self.features,
            "tokenizer": self.tokenizer.hash(),
            "image_token": self.tokenizer.placeholder().token(),
            "image_processor": self.processor.hash(),
            "lm": self.shapes.lm,
            "vision": self.shapes.vision,
            "projector": self.shapes.projector,
            "dtype": self.dtype,
        })
    }
}

/// The files that the model of the run starts from.
pub(super) fn model_files(config: &ModelConfig) -> ModelFiles {
    ModelFiles {
        lm: config.lm.clone(),
        vision: config.vision.clone(),
        image_size: config.image_size,
        tokenizer: config.tokenizer.clone(),
        image_token: config.image_token.clone(),
        projector: config.projector,
    }
}

/// The source of the images for the loader: the image files, or the feature cache.
fn images(
    config: &ModelConfig,
    shapes: &Shapes,
    processor: &Arc<ImageProcessor>,
) -> Result<ImageReading, TrainError> {
    let Some(folder) = &config.features else {
        return Ok(ImageReading::Pixels(Arc::clone(processor)));
    };
    // The stored type of the features may be any; the type of this key is not compared.
    let wanted = feature_key(&config.vision, &shapes.vision, processor, FeaturesDtype::Float32)?;
    let cache = FeatureCache::open(folder, &wanted).map_err(usage)?;
    if !cache.has_checksums() {
        tracing::warn!(
            "{}: the feature cache was made by an earlier version, without checksums, so that \
             damage to its values is not noticed; the same `vlm cache-features` again adds them \
             without encoding the images again",
            folder.display()
        );
    }
    let images = count(cache.num_images(), "image");
    tracing::info!("using the features of {images} in {}", folder.display());
    Ok(ImageReading::Features(Arc::new(cache)))
}

fn loader_config(
    config: &TrainConfig,
    tokens_per_image: usize,
    world: &World,
) -> Result<LoaderConfig, TrainError> {
    let mut loader = LoaderConfig::default();
    loader.batch_size = config.optim.batch_size;
    loader.rank = world.rank();
    loader.world_size = world.world_size();
    loader.max_seq_len = config.data.max_seq_len;
    loader.tokens_per_image = tokens_per_image;
    loader.padding = config.data.padding;
    loader.shuffle = config.data.shuffle;
    loader.chat_draws = config.data.chat_draws()?;
    loader.seed = config.run.seed;
    loader.drop_last = config.data.drop_last;
    loader.num_workers = config.data.num_workers;
    loader.prefetch_batches = config.data.prefetch_batches;
    loader.bucket_window = config.data.bucket_window;
    let window = loader.bucket_window;
    let two_batches = loader.batch_size.saturating_mul(2 * world.world_size());
    if config.data.shuffle && world.is_first_rank() && (1..two_batches).contains(&window) {
        tracing::warn!(
            "`bucket_window` of {window} rows is less than two batches of all processes \
             ({two_batches} rows), so rows are not batched by length; raise it, or set it to 0"
        );
    }
    // The trainer applies the limit: to the rows of all ranks, and to continued epochs as a whole.
    loader.max_rejected_fraction = 1.0;
    Ok(loader)
}

/// Opens the evaluator for the training; `None` without `eval_data`.
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
        num_samples: config.eval.num_samples,
        max_new_tokens: config.eval.max_new_tokens,
        // Rejected rows of an evaluation do not end the training; they are counted in its results.
        max_rejected_fraction: 1.0,
    };
    let images_path = images_path.map(std::path::PathBuf::as_path);
    let source = open_source_with(data_path, images_path, &config.data.row_options()?)?;
    let evaluator = Evaluator::new(source, tokenizer, processor, tokens_per_image, options)?;
    Ok(Some(evaluator))
}
