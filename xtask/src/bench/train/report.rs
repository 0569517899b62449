//! The results: a table, JSON and a picture.

use std::fs;
use std::path::Path;
use std::thread::available_parallelism;

use anyhow::{Context, Result};
use serde::Serialize;
use vlm_display::Table;
use vlm_display::count;

use super::args::TrainArgs;
use super::chart;
use super::form::Form;
use super::inputs::Inputs;
use super::losses::{LossCheck, TOLERANCE};
use super::measured_run::Run;
use crate::bench::measurements::{table, target};

const GIB: f64 = (1_u64 << 30) as f64;

/// What a run measures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Ours, with the vision encoder in every step.
    Ours,
    /// Ours, with cached features.
    OursCached,
    Reference,
}

/// The results of all runs of one side.
#[derive(Debug, Default, Serialize)]
pub struct Measured {
    /// Duration of every measured step, in seconds, in the order of the runs.
    pub step_secs: Vec<f64>,
    /// Median of them.
    pub median_step_secs: f64,
    /// Rows per second at the median.
    pub rows_per_sec: f64,
    /// Largest peak memory of the runs.
    pub peak_bytes: u64,
    /// Operations that a step needs, as ours counts them.
    pub flops_per_step: Option<f64>,
    /// Needed operations per second as a share of the matrix rate.
    pub share_of_matrix_rate: Option<f64>,
}

/// All results.
#[derive(Debug, Serialize)]
pub struct Report {
    form: Form,
    /// The model of the processor and the number of its cores that are used.
    machine: String,
    dtype: String,
    batch_size: usize,
    rows: usize,
    images: usize,
    /// Largest rate of matrix products that was measured at the start of our runs.
    matrix_flops_per_sec: Option<f64>,
    ours: Measured,
    ours_cached: Measured,
    reference: Option<Measured>,
    losses: Option<LossCheck>,
}

impl Report {
    /// A report without measurements.
    pub fn new(
        form: Form,
        args: &TrainArgs,
        inputs: &Inputs,
        losses: Option<LossCheck>,
    ) -> Result<Self> {
        let path = "/proc/cpuinfo";
        let info = fs::read_to_string(path).with_context(|| format!("reading {path}"))?;
        let model = info.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
        let cores = count(available_parallelism().map_or(1, usize::from), "core");
        Ok(Self {
            form,
            machine: format!("{}, {cores}", model.map_or("unknown processor", |(_, name)| name)),
            dtype: args.dtype.clone(),
            batch_size: args.batch_size,
            rows: inputs.num_rows,
            images: inputs.num_images,
            matrix_flops_per_sec: None,
            ours: Measured::default(),
            ours_cached: Measured::default(),
            reference: None,
            losses,
        })
    }

    /// Adds a run of a side.
    pub fn add(&mut self, side: Side, run: Run) {
        let measured = match side {
            Side::Ours => &mut self.ours,
            Side::OursCached => &mut self.ours_cached,
            Side::Reference => self.reference.get_or_insert_default(),
        };
        measured.step_secs.extend(run.step_secs);
        measured.median_step_secs = median(&measured.step_secs);
        measured.rows_per_sec = self.batch_size as f64 / measured.median_step_secs;
        measured.peak_bytes = measured.peak_bytes.max(run.peak_bytes);
        if let Some(flops) = run.flops {
            measured.flops_per_step = Some(flops.iter().sum::<f64>() / flops.len() as f64);
        }
        let rates = [self.matrix_flops_per_sec, run.matrix_rate];
        self.matrix_flops_per_sec = rates.into_iter().flatten().reduce(f64::max);
        // The reference needs the same operations as ours with the encoder.
        if let Some(reference) = &mut self.reference {
            reference.flops_per_step = self.ours.flops_per_step;
        }
        let rate = self.matrix_flops_per_sec;
        let sides = [&mut self.ours, &mut self.ours_cached].into_iter().chain(&mut self.reference);
        for side in sides {
            let per_sec = side.flops_per_step.map(|flops| flops / side.median_step_secs);
            side.share_of_matrix_rate = per_sec.zip(rate).map(|(flops, rate)| flops / rate);
        }
    }

    /// The results as a table, with the targets that they are compared with.
    pub fn table(&self) -> Table {
        let mut table = table();
        let Self { machine, dtype, rows, images, batch_size, .. } = self;
        table.push(&[&"machine", machine]);
        table.push(&[
            &"training",
            &format!(
                "{:?}, {rows} rows, {images} images, batch {batch_size}, ours in {dtype}",
                self.form
            ),
        ]);
        if let Some(check) = &self.losses {
            let steps = count(check.reference.len(), "step");
            let name = format!(
                "largest difference of the losses in {steps} at batch {}",
                check.batch_size
            );
            let found = format!("{:.1e}", check.max_difference);
            table.push(&[&name, &found, &target(&format!("<= {TOLERANCE:.0e}"), check.is_equal)]);
        }
        let rate = self.matrix_flops_per_sec;
        table.push(&[&"matrix rate", &share_of(rate, 1e9, " GFLOP/s")]);
        for (name, side) in self.sides() {
            let speed = format!(
                "{:.2} rows/s, {:.0} ms a step",
                side.rows_per_sec,
                side.median_step_secs * 1e3
            );
            table.push(&[&name, &speed]);
            table.push(&[&"  peak memory", &format!("{:.2} GiB", side.peak_bytes as f64 / GIB)]);
            let share = side.share_of_matrix_rate;
            let is_ours = name != "reference";
            let goal = share.filter(|_| is_ours).map(|share| target(">= 75%", share >= 0.75));
            table.push(&[
                &"  needed operations, share of the matrix rate",
                &share_of(share, 0.01, "%"),
                &goal.unwrap_or_default(),
            ]);
        }
        let Some(reference) = &self.reference else { return table };
        let in_loop = if self.form == Form::April { 3.5 } else { 5.0 };
        for (name, side, least) in
            [("in the loop", &self.ours, in_loop), ("cached", &self.ours_cached, 8.0)]
        {
            let ratio = side.rows_per_sec / reference.rows_per_sec;
            table.push(&[
                &format!("ours {name} / reference"),
                &format!("{ratio:.1}"),
                &target(&format!(">= {least}"), ratio >= least),
            ]);
            let memory = side.peak_bytes as f64 / reference.peak_bytes as f64;
            table.push(&[
                &"  peak memory / reference",
                &format!("{memory:.2}"),
                &target("<= 0.25", memory <= 0.25),
            ]);
        }
        table
    }

    /// The sides that were measured, with their names.
    fn sides(&self) -> Vec<(&'static str, &Measured)> {
        let ours = [("ours in the loop", &self.ours), ("ours cached", &self.ours_cached)];
        ours.into_iter().chain(self.reference.as_ref().map(|side| ("reference", side))).collect()
    }

    /// Writes the results as JSON and as a picture.
    ///
    /// # Errors
    /// A failure of the file system, with the path.
    pub fn write(&self, json: Option<&Path>, svg: Option<&Path>) -> Result<()> {
        if let Some(path) = json {
            let text = serde_json::to_string_pretty(self)? + "\n";
            fs::write(path, text).with_context(|| format!("writing {}", path.display()))?;
        }
        let Some(path) = svg else { return Ok(()) };
        let sides = self.sides();
        let bars = |value: fn(&Measured) -> f64| -> Vec<(&str, f64)> {
            sides.iter().map(|(name, side)| (*name, value(side))).collect()
        };
        let panels = [
            ("rows per second", bars(|side| side.rows_per_sec)),
            ("peak memory, GiB", bars(|side| side.peak_bytes as f64 / GIB)),
        ];
        let svg = chart::draw(&self.machine, &panels)?;
        fs::write(path, svg).with_context(|| format!("writing {}", path.display()))
    }
}

/// A number in a unit, or a dash.
fn share_of(value: Option<f64>, unit: f64, name: &str) -> String {
    value.map_or("–".to_owned(), |value| format!("{:.0}{name}", value / unit))
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() % 2 {
        0 => (sorted[middle - 1] + sorted[middle]) / 2.0,
        _ => sorted[middle],
    }
}
