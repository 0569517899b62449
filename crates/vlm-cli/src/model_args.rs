//! Flags for a trained model, which `vlm generate`, `vlm serve` and `vlm eval` share.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use vlm_infer::{Dtype, LoadOptions, VisionLanguageModel};

use crate::flag_values::{THREADS, parse_named};

/// Flags for a trained model, its device and its type.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// The --out-dir of a run, an exported folder, a weights file of a run, or the folder of a whole
    /// model of another program (LLaVA, SmolVLM, Idefics3, LFM2-VL, nanoVLM).
    #[arg(long, value_name = "DIR|FILE", default_value = "out")]
    pub model: PathBuf,
    /// Folder of the vision encoder, in the format of Hugging Face or open_clip [default: the one
    /// that the model was trained with].
    #[arg(long, value_name = "DIR")]
    pub vision: Option<PathBuf>,
    /// Folder with tokenizer.json and tokenizer_config.json [default: the one that the model was
    /// trained with].
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Device of the model: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Type of the forward pass: float32, bfloat16 or float16 [default: bfloat16 on CUDA, float32
    /// on the CPU].
    #[arg(long, value_name = "TYPE", value_parser = parse_named::<Dtype>)]
    pub dtype: Option<Dtype>,
    /// Number of CPU threads for arithmetic [default: the number of cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(THREADS))]
    pub num_threads: Option<i32>,
}

impl ModelArgs {
    /// Loads the model.
    pub fn open(&self) -> Result<VisionLanguageModel> {
        if let Some(threads) = self.num_threads {
            tch::set_num_threads(threads);
        }
        let mut options = LoadOptions::new(&self.model);
        options.vision.clone_from(&self.vision);
        options.tokenizer.clone_from(&self.tokenizer);
        options.device.clone_from(&self.device);
        options.dtype = self.dtype;
        let opened = VisionLanguageModel::open(&options)?;
        tracing::debug!("weights: {}", opened.weights.display());
        Ok(opened)
    }
}
