//! The folder of a run, which may still be written.

use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};

use crate::followed_file::FollowedFile;
use crate::held_out::{HELD_OUT_FILE, data_url};
use crate::metrics::Metrics;
use crate::samples::{RejectedRows, SAMPLE_IMAGES, Samples, image_file_name};

/// A file by which a folder is recognized as that of a run.
const MARKS: [&str; 2] = ["metrics.jsonl", "config.json"];

/// Everything that was read of a run so far.
#[derive(Debug)]
pub(crate) struct RunFolder {
    path: PathBuf,
    name: String,
    is_removed: bool,
    /// Time of the last change of `metrics.jsonl`, in seconds since 1970.
    written_at: u64,
    files: [FollowedFile; 3],
    metrics: Metrics,
    samples: Samples,
    rejected: RejectedRows,
    config: Value,
    summary: Value,
    /// Files that cannot be read.
    problems: Vec<String>,
    held_out: Value,
    /// Time of the last change of its file, which is read only when it changes: it holds images.
    held_out_written: Option<SystemTime>,
}

/// Where the page finds the images of the samples.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Images {
    /// In the page.
    Embedded,
    /// At the address for the run with this number.
    Served(usize),
}

impl RunFolder {
    /// A run in `path`, of which nothing is read yet.
    pub(crate) fn new(path: &Path, name: String) -> Self {
        let file = |name: &str| FollowedFile::new(path.join(name));
        Self {
            path: path.to_owned(),
            name,
            is_removed: false,
            written_at: 0,
            files: [file("metrics.jsonl"), file("samples.jsonl"), file("rejected.jsonl")],
            metrics: Metrics::default(),
            samples: Samples::default(),
            rejected: RejectedRows::default(),
            config: Value::Null,
            summary: Value::Null,
            problems: Vec::new(),
            held_out: Value::Null,
            held_out_written: None,
        }
    }

    /// Whether a folder looks like that of a run.
    pub(crate) fn is_run(path: &Path) -> bool {
        MARKS.iter().any(|name| path.join(name).is_file())
    }

    /// Reads what was written since the last call. Returns whether anything changed.
    pub(crate) fn refresh(&mut self) -> bool {
        let was_removed = std::mem::replace(&mut self.is_removed, !self.path.is_dir());
        if self.is_removed {
            return !was_removed;
        }
        let mut problems = Vec::new();
        let [metrics, samples, rejected] = &mut self.files;
        let reads = [
            (metrics.read_new(&mut self.metrics), metrics.path().to_owned()),
            (samples.read_new(&mut self.samples), samples.path().to_owned()),
            (rejected.read_new(&mut self.rejected), rejected.path().to_owned()),
        ];
        let mut is_changed = was_removed;
        for (read, path) in reads {
            match read {
                Ok(changed) => is_changed |= changed,
                Err(error) => problems.push(format!("{}: {error}", path.display())),
            }
        }
        for (name, value) in
            [("config.json", &mut self.config), ("summary.json", &mut self.summary)]
        {
            match read_json(&self.path.join(name)) {
                Ok(found) => {
                    is_changed |= *value != found;
                    *value = found;
                }
                Err(problem) => problems.push(problem),
            }
        }
        is_changed |= self.refresh_held_out(&mut problems);
        let written = fs::metadata(self.files[0].path()).and_then(|found| found.modified());
        let written = written.ok().and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        self.written_at = written.map_or(self.written_at, |time| time.as_secs());
        is_changed |= problems != self.problems;
        self.problems = problems;
        is_changed
    }

    /// Reads the section about rows that were not trained on if its file has changed. Returns
    /// whether it has.
    fn refresh_held_out(&mut self, problems: &mut Vec<String>) -> bool {
        let path = self.path.join(HELD_OUT_FILE);
        let written = fs::metadata(&path).and_then(|found| found.modified()).ok();
        if written == self.held_out_written {
            return false;
        }
        match read_json(&path) {
            Ok(found) => (self.held_out, self.held_out_written) = (found, written),
            Err(problem) => problems.push(problem),
        }
        true
    }

    /// What the page shows of the run.
    pub(crate) fn to_json(&self, images: Images) -> Value {
        let [steps, evaluations] = self.metrics.to_json();
        let image = |row: u64| match images {
            Images::Embedded => self.image(row).map(|png| data_url(&png)),
            Images::Served(run) => {
                let path = self.path.join(SAMPLE_IMAGES).join(image_file_name(row));
                path.is_file().then(|| format!("image?run={run}&row={row}"))
            }
        };
        // A run that was continued has more steps than its earlier summary.
        let has_ended =
            self.summary["steps"].as_f64().is_some_and(|s| s >= self.metrics.last_step());
        let mut problems = self.problems.clone();
        problems.extend(self.metrics.problems());
        json!({
            "name": self.name,
            "what": self.what(),
            "ended": if has_ended { self.summary["status"].as_str() } else { None },
            "removed": self.is_removed,
            "written_at": self.written_at,
            "secs_between_lines": self.metrics.secs_between_lines(),
            "steps": steps,
            "evaluations": evaluations,
            "samples": self.samples.to_json(image),
            "rejected": self.rejected.to_json(),
            "held_out": if has_ended { &self.held_out } else { &Value::Null },
            "config": self.config,
            "summary": if has_ended { &self.summary } else { &Value::Null },
            "problems": problems,
        })
    }

    /// The image of a sampled row, as PNG.
    pub(crate) fn image(&self, row: u64) -> Option<Vec<u8>> {
        fs::read(self.path.join(SAMPLE_IMAGES).join(image_file_name(row))).ok()
    }

    /// What was trained on what: `pretrain: lm.safetensors + vision on train.jsonl`.
    pub(crate) fn what(&self) -> Option<String> {
        let run = &self.config["run"];
        let stage = run["stage"].as_str()?;
        let parts: Vec<String> =
            ["lm", "vision"].iter().filter_map(|part| base_name(&run["model"][part])).collect();
        let rows = match &run["data"]["data_path"] {
            Value::Array(paths) if paths.len() > 1 => {
                Some(vlm_display::count(paths.len() as u64, "data set"))
            }
            Value::Array(paths) => paths.first().and_then(base_name),
            path => base_name(path),
        };
        let rows = rows.map_or(String::new(), |rows| format!(" on {rows}"));
        Some(format!("{stage}: {}{rows}", parts.join(" + ")))
    }

    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

fn base_name(path: &Value) -> Option<String> {
    let name = Path::new(path.as_str()?).file_name()?;
    Some(name.to_string_lossy().into_owned())
}

/// The content of a file, `null` without one.
fn read_json(path: &Path) -> Result<Value, String> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Value::Null),
        Err(error) => return Err(format!("{}: {error}", path.display())),
    };
    serde_json::from_slice(&text).map_err(|error| format!("{}: {error}", path.display()))
}
