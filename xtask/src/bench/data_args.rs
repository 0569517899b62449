//! Flags of `cargo xtask bench data`.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

/// Flags of `cargo xtask bench data`.
#[derive(Args)]
pub struct DataArgs {
    /// Folder of .jpg files to measure with instead of generated images
    #[arg(long, value_name = "DIR")]
    pub images: Option<PathBuf>,
    /// Duration of each measurement in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0)]
    pub seconds: f64,
    /// Python with Pillow and transformers, for the comparison
    #[arg(long, value_name = "PROGRAM", env = "VLM_BENCH_PYTHON", default_value = "python3")]
    pub python: String,
    /// Number of rows of the data set that is prepared and opened; it is made in a temporary folder
    /// (TMPDIR) and takes about 7 kB per row
    #[arg(long, value_name = "N", default_value_t = 20_000)]
    pub rows: usize,
    /// Measure only this part; may be repeated
    #[arg(long, value_enum)]
    pub only: Vec<Part>,
    /// Folder of the tokenizer [default: the demo's]
    #[arg(long, value_name = "DIR")]
    pub tokenizer: Option<PathBuf>,
    /// Number of threads that make batches
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub workers: usize,
}

/// Parts of `bench data`, in the order in which they run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Part {
    /// Decoding and preprocessing of images
    Pictures,
    /// prepare-data, and opening its output
    Preparing,
    /// Batches from prepared rows and cached features
    Features,
    /// Fraction of padding in batches
    Padding,
    /// Batches from rows that were not prepared
    Raw,
}

impl DataArgs {
    /// Whether this part is measured.
    pub fn wants(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}
