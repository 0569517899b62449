//! `cargo xtask bench train`: the speed and memory of pretraining, and those of the reference on the
//! same rows from the same weights. Equal losses show that both do the same work.

mod chart;
mod inputs;
mod losses;
mod ours;
mod report;
mod theirs;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;
use tempfile::TempDir;
use vlm_display::{Table, count};

use crate::launch::build_vlm;
use crate::setup;
use crate::workspace::{Workspace, usage_error};
use inputs::Inputs;
use losses::LossCheck;
use ours::Ours;
use report::{Report, Side};
use theirs::Reference;

/// Flags of `cargo xtask bench train`.
#[derive(Debug, Args)]
pub struct TrainArgs {
    /// Checkout of the public MiniMind-V, of April 2025 or current, to compare with
    #[arg(long, value_name = "DIR")]
    reference: Option<PathBuf>,
    /// Python with what the reference needs: torch, transformers, pandas, datasets
    #[arg(long, value_name = "PROGRAM", env = "VLM_BENCH_PYTHON", default_value = "python3")]
    python: String,
    /// Shape of the model and of the training [default: that of the reference, else april]
    #[arg(long, value_enum)]
    form: Option<Form>,
    /// Folder of .jpg files to train on instead of generated images; folders in it count, too
    #[arg(long, value_name = "DIR")]
    images: Option<PathBuf>,
    /// Folder of the tokenizer [default: that of the reference, else the demo's]
    #[arg(long, value_name = "DIR")]
    tokenizer: Option<PathBuf>,
    /// Number of rows of a batch
    #[arg(long, value_name = "ROWS", default_value_t = 16)]
    batch_size: usize,
    /// Number of measured steps of each run
    #[arg(long, value_name = "N", default_value_t = 3)]
    steps: usize,
    /// Number of steps before them
    #[arg(long, value_name = "N", default_value_t = 1)]
    warmup_steps: usize,
    /// Number of times that every variant is run, in turn
    #[arg(long, value_name = "N", default_value_t = 2)]
    rounds: usize,
    /// Type of our matrix products in the measured runs; the reference uses float32 on a CPU
    #[arg(long, value_name = "TYPE", default_value = "float32")]
    dtype: String,
    /// Number of steps whose losses are compared, in float32; 0 leaves this out
    #[arg(long, value_name = "STEPS", default_value_t = 10)]
    check_losses: usize,
    /// Number of rows of a batch in the comparison of losses
    #[arg(long, value_name = "ROWS", default_value_t = 4)]
    check_batch_size: usize,
    /// File for the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// File for a picture of the results, as SVG
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
}

/// Form of the reference: the shape of the model, its encoder, and what is trained.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Form {
    /// MiniMind-V of April 2025: 26 M, CLIP ViT-B/16, 196 tokens per image; trains the projector and
    /// the last block
    April,
    /// Current MiniMind-V: 64 M, SigLIP 2 B/32 at 256 pixels, 64 tokens per image; trains the
    /// projector
    Present,
}

impl Form {
    /// Longest row in tokens, to which the reference pads every row.
    fn max_seq_len(self) -> usize {
        match self {
            Self::April => 640,
            Self::Present => 450,
        }
    }
}

impl TrainArgs {
    fn check(&self) -> Result<()> {
        if [self.batch_size, self.steps, self.rounds, self.check_batch_size].contains(&0) {
            return Err(usage_error(
                "--batch-size, --steps, --rounds and --check-batch-size must be at least 1",
            ));
        }
        Ok(())
    }
}

/// Runs the comparison, writes the files that `args` name, and returns their table.
pub fn run(workspace: &Workspace, args: &TrainArgs) -> Result<Table> {
    args.check()?;
    let reference = args.reference.as_deref().map(Reference::detect).transpose()?;
    let form = match (args.form, reference.as_ref().map(|reference| reference.form)) {
        (Some(asked), Some(found)) if asked != found => {
            return Err(usage_error(format!(
                "--form {asked:?}: the checkout of --reference has the form {found:?}; leave --form out"
            )));
        }
        (asked, found) => asked.or(found).unwrap_or(Form::April),
    };
    let given = args.tokenizer.clone();
    let tokenizer = given
        .or_else(|| reference.as_ref().map(Reference::tokenizer))
        .unwrap_or_else(|| workspace.data_dir().join("demo-start"));
    setup::ensure(workspace)?;
    let vlm = build_vlm(workspace)?;
    let scratch = TempDir::new()?;
    let rows = (args.warmup_steps + args.steps) * args.batch_size;
    let images = args.images.as_deref();
    let inputs = Inputs::make(&vlm, form, images, &tokenizer, rows.max(64), scratch.path())?;
    let ours = Ours { vlm: &vlm, inputs: &inputs, dtype: &args.dtype };

    let check = match &reference {
        Some(reference) if args.check_losses > 0 => {
            eprintln!("comparing the losses of {}", count(args.check_losses, "step"));
            Some(LossCheck::run(&ours, reference, args)?)
        }
        _ => None,
    };
    eprintln!("storing the features of the images");
    let features = ours.cache_features()?;
    let mut report = Report::new(form, args, &inputs, check)?;
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        report.add(Side::Ours, ours.measure(args, None)?);
        if let Some(reference) = &reference {
            report.add(Side::Reference, reference.measure(&inputs, args)?);
        }
        report.add(Side::OursCached, ours.measure(args, Some(&features))?);
    }
    report.write(args.json.as_deref(), args.svg.as_deref())?;
    Ok(report.table())
}
