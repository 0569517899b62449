//! The flags that name a trained model; `vlm generate` and `vlm eval` share them.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use vlm_infer::{Dtype, LoadOptions, VisionLanguageModel};

use crate::args::parse_named;

/// Which model, and where it runs.
#[derive(Debug, Args)]
pub struct ModelArgs {
    /// The --out-dir of a run, an exported folder, or a weight file of a run.
    #[arg(long, value_name = "DIR|FILE", default_value = "out")]
    pub model: PathBuf,
    /// Vision encoder, a folder in Hugging Face form [default: the one it was trained with].
    #[arg(long, value_name = "DIR")]
    pub vision: Option<PathBuf>,
    /// Folder with tokenizer.json and tokenizer_config.json [default: the one it was trained with].
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// float32, bfloat16 or float16 [default: bfloat16 on CUDA, float32 on the CPU].
    #[arg(long, value_name = "TYPE", value_parser = parse_named::<Dtype>)]
    pub dtype: Option<Dtype>,
    /// Number of CPU threads for arithmetic [default: cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(1..))]
    pub num_threads: Option<i32>,
}

impl ModelArgs {
    /// Opens the model.
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
