//! `vlm cache-features`: computes the vision encoder's features of every image once and stores
//! them.

use std::path::PathBuf;
use std::thread::available_parallelism;

use anyhow::Result;
use clap::Args;
use vlm_data::FeaturesDtype;
use vlm_display::count;
use vlm_infer::select_device;
use vlm_train::cache_features::{CacheFeaturesConfig, Estimate, Progress, cache_features};

use crate::flag_values::{THREADS, at_least_one, parse_named};
use crate::interrupt;
use crate::progress::progress_bar;
use crate::row_args::RowArgs;

/// Flags of `vlm cache-features`.
#[derive(Debug, Args)]
pub struct CacheFeaturesArgs {
    /// Rows whose images are encoded, in the formats of the training; may be given several times.
    #[arg(long, value_name = "PATH", required = true)]
    data_path: Vec<String>,
    /// Folder that the image names in the rows are relative to [default: the folder of the rows].
    #[arg(long, value_name = "DIR")]
    images_path: Option<PathBuf>,
    /// Folder of the vision encoder, in the format of Hugging Face or open_clip.
    #[arg(long, value_name = "DIR")]
    vision: PathBuf,
    /// Side in pixels of the images for the vision encoder, as in the training [default: that of
    /// the encoder].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..=4096))]
    image_size: Option<i64>,
    /// Folder for the features; an unfinished cache in it is continued.
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
    /// Type in which the features are stored: float32, bfloat16 or float16.
    #[arg(long, value_name = "TYPE", default_value = "float32", value_parser = parse_named::<FeaturesDtype>)]
    features_dtype: FeaturesDtype,
    /// Number of images in one forward pass.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    batch_size: usize,
    /// Device of the encoder: auto, cpu, cuda or cuda:N.
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    device: String,
    /// Number of threads that read and decode images [default: the number of cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(THREADS))]
    num_workers: Option<u32>,
    /// Number of CPU threads for arithmetic [default: the number of cores].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i32).range(THREADS))]
    num_threads: Option<i32>,
    #[command(flatten)]
    rows: RowArgs,
}

/// Runs the command.
pub fn run(args: CacheFeaturesArgs) -> Result<()> {
    let cores = available_parallelism().map_or(1, usize::from);
    let num_workers = args.num_workers.map_or(cores, |threads| threads as usize);
    if let Some(threads) = args.num_threads {
        tch::set_num_threads(threads);
    }
    let stop = interrupt::flag()?;
    let output = args.output.clone();
    let config = CacheFeaturesConfig {
        data_path: args.data_path.into(),
        images_path: args.images_path,
        rows: args.rows.options()?,
        vision: args.vision,
        image_size: args.image_size,
        output: args.output,
        dtype: args.features_dtype,
        batch_size: args.batch_size,
        device: select_device(&args.device)?,
        num_workers,
    };
    let bar = progress_bar("{bar:24} {pos}/{len} rows  {msg}  left {eta}");
    let mut show = |progress: Progress| {
        bar.set_length(progress.num_rows as u64);
        bar.set_message(count(progress.num_images, "image"));
        bar.set_position(progress.rows as u64);
    };
    let cached = cache_features(config, &stop, &mut announce, &mut show);
    bar.finish_and_clear();
    let cached = cached?;
    println!(
        "{}: {} in {} ({}), {} of them new; {}",
        if cached.is_finished { "finished" } else { "interrupted" },
        count(cached.num_images, "image"),
        output.display(),
        size(cached.bytes),
        cached.num_new,
        count(cached.rejected_rows, "rejected row"),
    );
    if !cached.is_finished {
        println!("run the same command again to continue");
    }
    Ok(())
}

fn announce(estimate: &Estimate) {
    let Estimate { images, num_done, bytes, time } = estimate;
    println!(
        "{} with {}, at most {} distinct; in the cache: {num_done}; its final size is {}; \
         encoding the other images takes about {}",
        count(images.rows, "row"),
        count(images.references, "image"),
        images.distinct,
        size(*bytes),
        duration(time.as_secs()),
    );
}

fn size(bytes: u64) -> String {
    match bytes as f64 / 1e9 {
        gigabytes if gigabytes >= 1.0 => format!("{gigabytes:.1} GB"),
        gigabytes => format!("{:.1} MB", gigabytes * 1e3),
    }
}

fn duration(secs: u64) -> String {
    match (secs / 3600, secs / 60 % 60) {
        (0, 0) => format!("{secs} s"),
        (0, minutes) => format!("{minutes} min"),
        (hours, minutes) => format!("{hours} h {minutes} min"),
    }
}
