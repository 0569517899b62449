//! Measures the preparation and opening of a data set and the making of batches from it, with
//! generated data sets that are removed afterwards.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use serde::{Deserialize, Serialize};
use vlm_data::{
    Batch, ChatTokenizer, FeatureCache, FeatureCacheWriter, FeatureKey, FeaturesDtype,
    ImagePlaceholder, ImageProcessor, ImageReading, Loader, LoaderConfig, RowSource, open_source,
};
use vlm_display::Table;
use vlm_display::count;

use super::data_args::{DataArgs, Part};
use super::dataset::{self, DatasetArgs, Form};
use super::measurements::target;
use crate::program::output_of;
use crate::sys;
use crate::workspace::Workspace;

/// Number of distinct images with cached features: few enough that the system keeps the features in
/// memory, so that the speed of the disk does not matter.
const NUM_IMAGES: usize = 2000;
const BATCH_SIZE: usize = 16;
/// Tokens per image with ViT-B/16.
const VIT_TOKENS: usize = 196;
/// Tokens per image with the demo's encoder.
const DEMO_TOKENS: usize = 49;

/// Runs the measurements that `args` asks for and adds them to `table`.
pub fn measure(
    workspace: &Workspace,
    args: &DataArgs,
    scratch: &Path,
    table: &mut Table,
) -> Result<()> {
    let bench = Rows { workspace, args, scratch };
    if args.wants(Part::Preparing) {
        bench.preparing(table)?;
    }
    if args.wants(Part::Features) {
        bench.features(table)?;
    }
    if args.wants(Part::Padding) {
        bench.padding(table)?;
    }
    if args.wants(Part::Raw) {
        bench.raw(table)?;
    }
    Ok(())
}

struct Rows<'a> {
    workspace: &'a Workspace,
    args: &'a DataArgs,
    scratch: &'a Path,
}

impl Rows<'_> {
    /// Makes a data set in the folder `name` and returns the path of its rows.
    fn make(&self, name: &str, change: impl FnOnce(&mut DatasetArgs)) -> Result<PathBuf> {
        let mut args = DatasetArgs {
            output: self.scratch.join(name),
            rows: self.args.rows,
            form: Form::Jsonl,
            damaged_share: 0.0,
            text_share: 0.0,
            picture_files: None,
            picture_side: 64,
            seed: 0,
        };
        change(&mut args);
        eprintln!("making {} ({name})", count(args.rows, "row"));
        Ok(dataset::make(self.workspace, &args, &mut |_| ())?.rows)
    }

    /// Runs `cargo xtask prepare-data` in its own process. Returns its duration in seconds and its
    /// peak memory in bytes.
    fn prepare(&self, rows: &Path, output: &Path, tokens_per_image: usize) -> Result<(f64, u64)> {
        let started = Instant::now();
        let log = self.scratch.join("prepare-data.log");
        let child = Command::new(std::env::current_exe()?)
            .arg("prepare-data")
            .arg("--input")
            .arg(rows)
            .arg("--output")
            .arg(output)
            .arg("--tokenizer")
            .arg(self.tokenizer_dir())
            // The placeholder that the loaders below use.
            .args(["--image-token", ImagePlaceholder::default().token()])
            .args(["--tokens-per-image", &tokens_per_image.to_string()])
            .stdout(Stdio::null())
            .stderr(File::create(&log)?)
            .spawn()
            .context("starting prepare-data")?;
        let (status, peak_bytes) = sys::wait_with_peak_memory(child)?;
        if !status.success() {
            let log = fs::read_to_string(&log)?;
            bail!("prepare-data failed ({status}):\n{}", log.trim_end());
        }
        Ok((started.elapsed().as_secs_f64(), peak_bytes))
    }

    /// Measures speed and memory of prepare-data for three sizes, and opening the largest set.
    fn preparing(&self, table: &mut Table) -> Result<()> {
        let all = self.args.rows;
        let mut peaks = Vec::new();
        for rows in [all / 100, all / 10, all].map(|rows| rows.max(1)) {
            let input = self.make("to-prepare", |args| {
                args.rows = rows;
                args.form = Form::Llava;
                args.damaged_share = 0.01;
            })?;
            let output = self.scratch.join("prepared");
            let (seconds, peak) = self.prepare(&input, &output, DEMO_TOKENS)?;
            let (speed, megabytes) = (rows as f64 / seconds, peak as f64 / 1e6);
            let what = format!("prepare-data, {} with small images", count(rows, "row"));
            table.push(&[&what, &format!("{speed:.0} rows/s, peak {megabytes:.0} MB")]);
            peaks.push(megabytes);
            fs::remove_dir_all(self.scratch.join("to-prepare"))?;
            if rows < all {
                fs::remove_dir_all(&output)?;
            }
        }
        let growth = peaks[2] - peaks[0];
        table.push(&[
            &"growth of peak memory for 100 times as many rows",
            &format!("{growth:.0} MB"),
            &target("<= 32 MB", growth <= 32.0),
        ]);
        let opened = open_in_process(&self.scratch.join("prepared"))?;
        table.push(&[
            &format!("opening {}", count(opened.num_rows, "prepared row")),
            &format!("{:.1} ms", opened.milliseconds),
            &target("< 100 ms", opened.milliseconds < 100.0),
        ]);
        table.push(&[
            &"resident memory after opening",
            &format!(
                "{:.0} MB, {:.0} MB after reading all",
                opened.megabytes, opened.after_reading
            ),
            &target("< 50 MB", opened.megabytes < 50.0),
        ]);
        fs::remove_dir_all(self.scratch.join("prepared"))?;
        Ok(())
    }

    /// Measures batches from prepared rows and cached features.
    fn features(&self, table: &mut Table) -> Result<()> {
        let rows = self.make("shared", |args| {
            args.rows = 20_000;
            args.picture_files = Some(NUM_IMAGES);
        })?;
        let shapes = [("the demo's", DEMO_TOKENS, 192), ("ViT-B/16's", VIT_TOKENS, 768)];
        for (encoder, num_patches, hidden_size) in shapes {
            let output = self.scratch.join("prepared");
            self.prepare(&rows, &output, num_patches)?;
            let source = open_source(&output, None)?;
            let features = self.scratch.join("features");
            let key = FeatureKey::new(
                "bench".into(),
                "bench".into(),
                FeaturesDtype::Bfloat16,
                num_patches,
                hidden_size,
            );
            fill_cache(source.as_ref(), &features, &key)?;
            let cache = Arc::new(FeatureCache::open(&features, &key)?);
            let reading = ImageReading::Features(cache);
            let mut config = self.config(num_patches);
            config.batch_size = BATCH_SIZE;
            let loader = Loader::new(source, self.tokenizer()?, reading, config)?;
            let speed = self.speed(&loader)?;
            let gigabytes = speed * key.bytes_per_image() as f64 / 1e9;
            table.push(&[
                &format!("prepared rows, {encoder} {num_patches}×{hidden_size} bfloat16 features"),
                &format!("{speed:.0} rows/s, {gigabytes:.1} GB/s"),
                &target(">= 10000", speed >= 1e4),
            ]);
            fs::remove_dir_all(&output)?;
            fs::remove_dir_all(&features)?;
        }
        fs::remove_dir_all(self.scratch.join("shared"))?;
        Ok(())
    }

    /// Measures the fraction of padding when rows of similar length are put together.
    fn padding(&self, table: &mut Table) -> Result<()> {
        let rows = self.make("mixed", |args| {
            args.rows = 20_000;
            args.text_share = 0.3;
            args.picture_files = Some(64);
        })?;
        for (tokens_per_image, form) in [
            (DEMO_TOKENS, "JSON lines"),
            (VIT_TOKENS, "JSON lines"),
            (DEMO_TOKENS, "prepared"),
            (VIT_TOKENS, "prepared"),
        ] {
            let output = self.scratch.join("prepared");
            let path = if form == "prepared" {
                self.prepare(&rows, &output, tokens_per_image)?;
                &output
            } else {
                &rows
            };
            let (mut worst, mut shares) = (0f64, Vec::new());
            for batch_size in [4, 8, 16, 32] {
                let mut config = self.config(tokens_per_image);
                config.batch_size = batch_size;
                let source = open_source(path, None)?;
                let loader = Loader::new(source, self.tokenizer()?, ImageReading::Skip, config)?;
                let share = 100.0 * padding_share(&loader)?;
                worst = worst.max(share);
                shares.push(format!("{share:.1}"));
            }
            table.push(&[
                &format!(
                    "padding, 30% text-only rows, {tokens_per_image} tokens per image, {form}"
                ),
                &format!("{}% at batch sizes 4, 8, 16, 32", shares.join(", ")),
                &target("< 5%", worst < 5.0),
            ]);
            if output.exists() {
                fs::remove_dir_all(&output)?;
            }
        }
        fs::remove_dir_all(self.scratch.join("mixed"))?;
        Ok(())
    }

    /// Measures batches from rows that were not prepared, in every format, with and without
    /// decoding images, and the memory for reading all rows.
    fn raw(&self, table: &mut Table) -> Result<()> {
        for &form in Form::value_variants() {
            let rows = self.make("raw", |args| {
                args.rows = 20_000;
                args.form = form;
            })?;
            let settings = self.scratch.join("preprocessor_config.json");
            fs::write(&settings, "{}")?;
            let processor = Arc::new(ImageProcessor::from_file(&settings)?);
            let mut speeds = Vec::new();
            for reading in [ImageReading::Skip, ImageReading::Pixels(processor)] {
                let loader = Loader::new(
                    open_source(&rows, None)?,
                    self.tokenizer()?,
                    reading,
                    self.config(DEMO_TOKENS),
                )?;
                speeds.push(self.speed(&loader)?);
            }
            let opened = open_in_process(&rows)?;
            let name = form.to_possible_value().map(|value| value.get_name().to_owned());
            table.push(&[
                &format!("raw {}", name.unwrap_or_default()),
                &format!(
                    "{:.0} rows/s without images, {:.0} with small images, opened in {:.0} ms, \
                     {:.0} MB after reading all",
                    speeds[0], speeds[1], opened.milliseconds, opened.after_reading
                ),
            ]);
            fs::remove_dir_all(self.scratch.join("raw"))?;
        }
        Ok(())
    }

    fn config(&self, tokens_per_image: usize) -> LoaderConfig {
        let mut config = LoaderConfig::default();
        config.tokens_per_image = tokens_per_image;
        config.num_workers = self.args.workers;
        config
    }

    fn tokenizer(&self) -> Result<Arc<ChatTokenizer>> {
        Ok(Arc::new(ChatTokenizer::from_dir(&self.tokenizer_dir())?))
    }

    fn tokenizer_dir(&self) -> PathBuf {
        let demo = || self.workspace.data_dir().join("demo-start");
        self.args.tokenizer.clone().unwrap_or_else(demo)
    }

    /// Rows per second of the loader, measured after the first hundred batches.
    fn speed(&self, loader: &Loader) -> Result<f64> {
        let limit = Duration::from_secs_f64(self.args.seconds);
        let mut batches = (0..).flat_map(|epoch| loader.epoch(epoch, 0));
        let mut take =
            || -> Result<Batch> { Ok(batches.next().context("the loader returned no batch")??) };
        for _ in 0..100.min(loader.batches_per_epoch()) {
            take()?;
        }
        let started = Instant::now();
        let mut num_rows = 0;
        while started.elapsed() < limit {
            let batch = take()?;
            ensure!(batch.rejected.is_empty(), "rejected rows: {:?}", batch.rejected);
            num_rows += batch.batch_size;
        }
        Ok(num_rows as f64 / started.elapsed().as_secs_f64())
    }
}

fn padding_share(loader: &Loader) -> Result<f64> {
    let (mut used, mut filled) = (0, 0);
    for batch in loader.epoch(0, 0) {
        let batch = batch?;
        used += batch.lengths.iter().sum::<usize>();
        filled += batch.input_ids.len();
    }
    Ok(1.0 - used as f64 / filled as f64)
}

/// Writes features for every image of `source`. Their values do not matter here.
fn fill_cache(source: &dyn RowSource, folder: &Path, key: &FeatureKey) -> Result<()> {
    let mut writer = FeatureCacheWriter::open(folder, key.clone())?;
    let features = vec![0x3c; key.bytes_per_image()];
    for index in 0..source.len() {
        let row = source.prepared_row(index)?.context("expected prepared rows")?;
        for hash in row.images.iter().filter_map(|image| image.hash) {
            if !writer.known().contains(&hash) {
                writer.append(&[hash], &features)?;
            }
        }
    }
    writer.finish()?;
    Ok(())
}

/// Time and memory of opening a prepared data set.
#[derive(Serialize, Deserialize)]
struct Opened {
    num_rows: usize,
    milliseconds: f64,
    /// Resident memory after opening.
    megabytes: f64,
    /// Resident memory after reading every row, in megabytes.
    after_reading: f64,
}

/// Opens the data set in a new process, whose memory holds nothing else.
fn open_in_process(dir: &Path) -> Result<Opened> {
    let mut command = Command::new(std::env::current_exe()?);
    let output = output_of(command.args(["bench", "open-dataset"]).arg(dir), "open-dataset")?;
    serde_json::from_str(&output).context("reading the output of open-dataset")
}

/// `cargo xtask bench open-dataset`: opens a data set and prints the time and memory as JSON.
pub fn open_and_report(dir: &Path) -> Result<()> {
    let started = Instant::now();
    let source = open_source(dir, None)?;
    let milliseconds = started.elapsed().as_secs_f64() * 1e3;
    let megabytes = sys::resident_bytes()? as f64 / 1e6;
    for index in 0..source.len() {
        if source.prepared_row(index)?.is_none() {
            source.turns(index)?;
        }
    }
    let after_reading = sys::resident_bytes()? as f64 / 1e6;
    let opened = Opened { num_rows: source.len(), milliseconds, megabytes, after_reading };
    println!("{}", serde_json::to_string(&opened)?);
    Ok(())
}
