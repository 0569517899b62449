//! `vlm eval`: evaluates a trained model on rows.

use std::path::PathBuf;
use std::thread::available_parallelism;

use anyhow::Result;
use clap::Args;
use vlm_data::{DEFAULT_MAX_REJECTED_FRACTION, open_source_with};
use vlm_display::{Align, Table};
use vlm_infer::evaluation::{EvalOptions, EvalReport, Evaluator};

use crate::flag_values::{THREADS, at_least_one};
use crate::model_args::ModelArgs;
use crate::per_row;
use crate::row_args::RowArgs;

/// Flags of `vlm eval`.
#[derive(Debug, Args)]
pub struct EvalArgs {
    #[command(flatten)]
    pub model: ModelArgs,
    /// Rows to evaluate on, in the formats of the training.
    #[arg(long, value_name = "FILE")]
    pub data_path: PathBuf,
    /// Folder that the image names in the rows are relative to [default: the folder of the rows].
    #[arg(long, value_name = "DIR")]
    pub images_path: Option<PathBuf>,
    /// Number of rows in one forward pass.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    pub batch_size: usize,
    /// Number of tokens to which rows are truncated for the loss.
    #[arg(long, value_name = "N", default_value_t = 640, value_parser = at_least_one)]
    pub max_seq_len: usize,
    /// Number of rows for which captions are generated and compared with the expected ones; the
    /// loss is always that of all rows.
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub max_rows: usize,
    /// Largest number of tokens that are generated for a row.
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = at_least_one)]
    pub max_new_tokens: usize,
    /// Largest fraction of rejected rows; with more the command fails. 0 allows none.
    #[arg(long, value_name = "FRACTION", default_value_t = DEFAULT_MAX_REJECTED_FRACTION)]
    pub max_rejected_fraction: f64,
    /// Number of threads that read rows and decode images [default: the number of cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(THREADS))]
    pub num_workers: Option<u32>,
    /// File for the loss of each row, as JSON lines in the order of the rows: loss in nats per
    /// supervised token, number of supervised tokens, location, images.
    #[arg(long, value_name = "OUT.jsonl")]
    pub per_row: Option<PathBuf>,
    /// Print one JSON object instead of the table.
    #[arg(long)]
    pub json: bool,
    // Last, because its heading would apply to the flags after it.
    #[command(flatten)]
    pub rows: RowArgs,
}

/// Runs the command.
pub fn run(args: &EvalArgs) -> Result<()> {
    let trained = args.model.open()?;
    let cores = available_parallelism().map_or(1, usize::from);
    let images_path = args.images_path.as_deref();
    let source = open_source_with(&args.data_path, images_path, &args.rows.options()?)?;
    let evaluator = Evaluator::new(
        source,
        &trained.tokenizer,
        &trained.processor,
        trained.model.tokens_per_image() as usize,
        EvalOptions {
            batch_size: args.batch_size,
            max_seq_len: args.max_seq_len,
            num_workers: args.num_workers.map_or(cores, |threads| threads as usize),
            max_captions: args.max_rows,
            num_samples: 0,
            max_new_tokens: args.max_new_tokens,
            max_rejected_fraction: args.max_rejected_fraction,
        },
    )?;
    let (report, highest) = match &args.per_row {
        Some(path) => {
            let (report, highest) = per_row::evaluate(&evaluator, &trained, path)?;
            (report, Some((path, highest)))
        }
        // This command can only be stopped by ending the process.
        None => (evaluator.evaluate(&trained.model, trained.dtype, &|| true)?, None),
    };
    let Some(report) = report else { return Ok(()) };
    if let Some(warning) = report.image_gain_warning() {
        tracing::warn!("{warning}");
    }
    if args.json {
        let mut line = serde_json::to_value(&report)?;
        if let Some((path, highest)) = highest {
            line["per_row"] = path.display().to_string().into();
            line["highest_losses"] = serde_json::to_value(highest)?;
        }
        println!("{line}");
    } else {
        print!("{}", table(&report));
        if let Some((path, highest)) = highest {
            print!("{}", per_row::summary(path, &highest));
        }
    }
    Ok(())
}

fn table(report: &EvalReport) -> Table {
    let number = |value: Option<f64>| value.map_or("–".to_owned(), |value| format!("{value:.4}"));
    let percent = |value: Option<f64>| {
        value.map_or("–".to_owned(), |value| format!("{:.1}%", 100.0 * value))
    };
    let mut table = Table::new(&[Align::Left, Align::Right]);
    table.push(&[&"rows", &report.rows]);
    table.push(&[&"rejected rows", &report.rejected_rows]);
    table.push(&[&"supervised tokens", &report.supervised_tokens]);
    table.push(&[&"loss (nats per token)", &number(report.loss)]);
    table.push(&[&"perplexity", &number(report.perplexity)]);
    table.push(&[&"image gain (nats)", &number(report.image_gain)]);
    table.push(&[&"generated captions", &report.captions]);
    table.push(&[&"exact matches", &percent(report.exact)]);
    table.push(&[&"token F1", &percent(report.token_f1)]);
    table.push(&[&"seconds", &format!("{:.1}", report.secs)]);
    table
}
