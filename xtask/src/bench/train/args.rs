//! Flags of `cargo xtask bench train`.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::form::Form;
use crate::workspace::usage_error;

/// Flags of `cargo xtask bench train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Checkout of the public MiniMind-V, of April 2025 or current, to compare with
    #[arg(long, value_name = "DIR")]
    pub(super) reference: Option<PathBuf>,
    /// Python with what the reference needs: torch, transformers, pandas, datasets
    #[arg(long, value_name = "PROGRAM", env = "VLM_BENCH_PYTHON", default_value = "python3")]
    pub(super) python: String,
    /// Shape of the model and of the training [default: that of the reference, else april]
    #[arg(long, value_enum)]
    pub(super) form: Option<Form>,
    /// Folder of .jpg files to train on instead of generated images; folders in it count, too
    #[arg(long, value_name = "DIR")]
    pub(super) images: Option<PathBuf>,
    /// Folder of the tokenizer [default: that of the reference, else the demo's]
    #[arg(long, value_name = "DIR")]
    pub(super) tokenizer: Option<PathBuf>,
    /// Number of rows of a batch
    #[arg(long, value_name = "ROWS", default_value_t = 16)]
    pub(super) batch_size: usize,
    /// Number of measured steps of each run
    #[arg(long, value_name = "N", default_value_t = 3)]
    pub(super) steps: usize,
    /// Number of steps before them
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub(super) warmup_steps: usize,
    /// Number of times that every variant is run, in turn
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub(super) rounds: usize,
    /// Type of our matrix products in the measured runs; the reference uses float32 on a CPU
    #[arg(long, value_name = "TYPE", default_value = "float32")]
    pub(super) dtype: String,
    /// Number of steps whose losses are compared, in float32; 0 leaves this out
    #[arg(long, value_name = "STEPS", default_value_t = 10)]
    pub(super) check_losses: usize,
    /// Number of rows of a batch in the comparison of losses
    #[arg(long, value_name = "ROWS", default_value_t = 4)]
    pub(super) check_batch_size: usize,
    /// File for the results as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,
    /// File for a picture of the results, as SVG
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,
}

impl TrainArgs {
    /// Checks the numbers.
    ///
    /// # Errors
    /// A number is 0 that must be at least 1.
    pub(super) fn check(&self) -> Result<()> {
        if [self.batch_size, self.steps, self.rounds, self.check_batch_size].contains(&0) {
            return Err(usage_error(
                "--batch-size, --steps, --rounds and --check-batch-size must be at least 1",
            ));
        }
        Ok(())
    }
}
