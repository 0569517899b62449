//! `report.html`: one page about a run, made from the files in its out-dir. The page loads nothing
//! from elsewhere.

mod chart;
mod page;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write;
use std::path::Path;

use serde::{Serialize, Serializer};
use serde_json::Value;
use vlm_display::{Align, Table};

use crate::leaves::leaves;
use crate::{TrainError, samples};
use page::{Chart, Page};

/// Name of the page in a run's folder.
pub const FILE_NAME: &str = "report.html";

/// A section of the page about rows that were not trained on.
#[derive(Debug, Clone, Serialize)]
pub struct HeldOutSection {
    /// Scores.
    pub scores: Table,
    /// Some of the rows.
    pub examples: Vec<Example>,
}

/// A row with what the model generated for it.
#[derive(Debug, Clone, Serialize)]
pub struct Example {
    /// The row's image, as a PNG file.
    #[serde(serialize_with = "as_base64")]
    pub png: Vec<u8>,
    /// The row's first question.
    pub prompt: String,
    /// The row's answer to it.
    pub expected: String,
    /// The model's answer.
    pub generated: String,
}

fn as_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&base64::encode(bytes))
}

/// Columns of the log and of the evaluations that are drawn: name, title, unit, and whether the curve is smoothed.
const CURVES: [(&str, &str, &str, bool); 8] = [
    ("loss", "Loss", "nats per supervised token", true),
    ("lr", "Learning rate", "", false),
    ("eval_image_gain", "Image gain", "loss with other images − loss, nats per token", false),
    ("grad_norm", "Gradient norm", "before clipping", true),
    ("samples_per_sec", "Throughput", "rows per second", true),
    ("step_ms", "Step", "milliseconds", true),
    ("mfu", "Model FLOPs utilisation", "share of the device's matrix rate", true),
    ("peak_memory_bytes", "Peak memory", "GiB", false),
];

/// Writes the page from what the folder holds: `summary.json`, and where they are there
/// `metrics.jsonl`, `samples.jsonl`, `config.json` and `rejected.jsonl`; `held_out` becomes a section of it.
///
/// # Errors
/// A file that cannot be read or written, with its path.
pub fn write(out_dir: &Path, held_out: Option<&HeldOutSection>) -> Result<(), TrainError> {
    let page = compose(out_dir, held_out)?;
    let path = out_dir.join(FILE_NAME);
    vlm_torch::write_atomically(&path, |file| {
        file.write_all(page.as_bytes()).map_err(|e| TrainError::at(&path, e))
    })
}

fn compose(out_dir: &Path, held_out: Option<&HeldOutSection>) -> Result<String, TrainError> {
    let summary = read_json(&out_dir.join("summary.json"))?;
    let config = read_json(&out_dir.join("config.json"))?;
    let metrics = read_lines(&out_dir.join("metrics.jsonl"))?;
    let rejected = read_lines(&out_dir.join("rejected.jsonl"))?;
    let samples = read_lines(&out_dir.join(samples::FILE_NAME))?;
    let name = std::path::absolute(out_dir).unwrap_or_else(|_| out_dir.to_owned());
    let name = name.file_name().map_or("run".into(), |name| name.to_string_lossy());
    let charts = CURVES.into_iter().filter_map(|(column, title, unit, is_noisy)| {
        let points = points(&metrics, column);
        let draw = || Chart { title, unit, svg: chart::draw(title, &points, is_noisy) };
        (points.len() > 1).then(draw)
    });
    let page = Page {
        name: &name,
        status: summary["status"].as_str().unwrap_or("unknown"),
        tiles: tiles(&summary),
        charts: charts.collect(),
        held_out,
        samples: (!samples.is_empty()).then(|| samples_by_row(&samples)),
        rejected: (!rejected.is_empty()).then(|| rejected_by_reason(&rejected)),
        summary: flat(&summary),
        settings: flat(&config),
    };
    page.to_html().map_err(|error| TrainError::Failed(format!("{FILE_NAME}: {error}")))
}

/// The numbers at the top of the page.
fn tiles(summary: &Value) -> Vec<(String, String)> {
    let number = |name: &str| summary[name].as_f64();
    let mut tiles = Vec::new();
    let mut add = |label: &str, value: Option<String>| {
        tiles.extend(value.map(|value| (label.to_owned(), value)));
    };
    add("final loss", number("final_loss").map(|loss| format!("{loss:.4}")));
    let exact = |name: &str| number(name).map(|share| format!("{:.1}%", 100.0 * share));
    add("captions exact, one object", exact("heldout_exact_after"));
    add("captions exact, two objects", exact("heldout_exact_two_after"));
    add("steps", number("steps").map(chart::short));
    add("rows", number("samples").map(chart::short));
    add("rows per second", number("samples_per_sec").map(|rate| format!("{rate:.1}")));
    add("time", number("wall_secs").map(duration));
    add("peak memory", number("peak_memory_bytes").map(|b| format!("{:.2} GiB", b / GIB)));
    add("trained parameters", number("trainable_parameters").map(|n| format!("{:.2} M", n / 1e6)));
    add("rejected rows", number("rejected_rows").map(chart::short));
    add("processes", number("world_size").map(chart::short));
    tiles
}

const GIB: f64 = (1_u64 << 30) as f64;

fn duration(secs: f64) -> String {
    match secs {
        _ if secs >= 7200.0 => format!("{:.1} h", secs / 3600.0),
        _ if secs >= 120.0 => format!("{:.1} min", secs / 60.0),
        _ => format!("{secs:.1} s"),
    }
}

/// `(step, value)` of the log lines that have the column.
fn points(metrics: &[Value], column: &str) -> Vec<(f64, f64)> {
    let scale = if column == "peak_memory_bytes" { GIB } else { 1.0 };
    let point = |line: &Value| Some((line["step"].as_f64()?, line[column].as_f64()? / scale));
    metrics.iter().filter_map(point).collect()
}

/// For each reason the number of rejected rows, and one of them.
fn rejected_by_reason(rejected: &[Value]) -> Table {
    let mut reasons: BTreeMap<&str, (u64, &Value)> = BTreeMap::new();
    for row in rejected {
        reasons.entry(row["reason"].as_str().unwrap_or("unknown")).or_insert((0, row)).0 += 1;
    }
    let mut rows: Vec<_> = reasons.into_iter().collect();
    rows.sort_by_key(|(_, (count, _))| std::cmp::Reverse(*count));
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let head = ["reason", "rows", "for example", ""];
    let mut table = Table::new(&[Align::Left, Align::Right, Align::Left]).with_head(&head);
    for (reason, (count, first)) in rows {
        table.push(&[&reason, &count, &text(&first["location"]), &text(&first["detail"])]);
    }
    table
}

/// For each sampled row the question, the expected answer, and the answers of the first and the last
/// evaluation.
fn samples_by_row(samples: &[Value]) -> Table {
    let steps = || samples.iter().filter_map(|line| line["step"].as_u64());
    let (first, last) = (steps().min().unwrap_or(0), steps().max().unwrap_or(0));
    let shown: Vec<u64> = if first == last { vec![last] } else { vec![first, last] };
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let at = |step: u64| samples.iter().filter(move |line| line["step"] == step);
    let mut table = Table::new(&[Align::Left]);
    table.head = ["row", "question", "expected"].map(str::to_owned).to_vec();
    table.head.extend(shown.iter().map(|step| format!("generated at step {step}")));
    for sample in at(last) {
        let mut cells: Vec<String> =
            ["location", "question", "expected"].iter().map(|key| text(&sample[*key])).collect();
        cells.extend(shown.iter().map(|&step| {
            let same = at(step).find(|other| other["row"] == sample["row"]);
            same.map_or(String::new(), |sample| text(&sample["generated"]))
        }));
        table.rows.push(cells);
    }
    table
}

/// The leaves of a tree with their paths.
fn flat(tree: &Value) -> Table {
    let mut table = Table::new(&[Align::Left]);
    for (path, value) in leaves(tree) {
        match value {
            Value::String(text) => table.push(&[&path, text]),
            other => table.push(&[&path, other]),
        }
    }
    table
}

fn read_json(path: &Path) -> Result<Value, TrainError> {
    let text = fs::read_to_string(path).map_err(|e| TrainError::at(path, e))?;
    serde_json::from_str(&text).map_err(|e| TrainError::at(path, e))
}

/// The lines that hold a value; a file that is not there has none.
fn read_lines(path: &Path) -> Result<Vec<Value>, TrainError> {
    match fs::read_to_string(path) {
        // A line that a crash left half-written does not parse, and is left out.
        Ok(text) => Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(TrainError::at(path, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: String| fs::write(folder.path().join(name), text).unwrap();
        let summary = json!({"status": "finished", "final_loss": 1.25, "steps": 3, "samples": 12});
        write("summary.json", summary.to_string());
        write("config.json", json!({"dim": 512, "run": {"seed": 7, "note": "<b>"}}).to_string());
        let line = |step: u64| json!({"step": step, "loss": 9.0 / step as f64, "lr": 1e-4});
        let lines: Vec<String> = (1..4).map(|step| line(step).to_string()).collect();
        write("metrics.jsonl", lines.join("\n"));
        let bad = |row: u64, reason: &str| json!({"row": row, "reason": reason, "location": "a:1", "detail": "no & sign"});
        let bad = [bad(1, "missing-image"), bad(2, "too-long"), bad(3, "missing-image")];
        write("rejected.jsonl", bad.map(|row| row.to_string()).join("\n"));
        folder
    }

    #[test]
    fn page_holds_curves_settings_and_reasons_and_fetches_nothing() {
        let folder = folder();
        write(folder.path(), None).unwrap();
        let page = fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
        assert_eq!(
            page.matches("<svg").count(),
            2,
            "loss and learning rate; no other column is there"
        );
        for part in ["1.2500", "run.seed", "missing-image", "no &amp; sign", "&lt;b&gt;"] {
            assert!(page.contains(part), "{part} is not in the page");
        }
        for link in ["http://", "https://", "src=\"/", "@import", "url("] {
            assert!(!page.contains(link), "the page fetches {link}");
        }
        let reasons =
            rejected_by_reason(&read_lines(&folder.path().join("rejected.jsonl")).unwrap());
        assert_eq!(reasons.rows[0][..2], ["missing-image", "2"]);
    }

    #[test]
    fn the_answers_of_the_first_and_the_last_evaluation_are_shown() {
        let folder = folder();
        let line = |step: u64, row: u64, generated: &str| {
            json!({"step": step, "row": row, "location": format!("e.jsonl:{}", row + 1),
                   "question": "What?", "expected": "A star.", "generated": generated})
        };
        let lines = [
            line(2, 0, "x x"),
            line(2, 1, "y"),
            line(4, 0, "never shown"),
            line(6, 0, "A <star>."),
            line(6, 1, "z"),
        ];
        let lines = lines.map(|line| line.to_string()).join("\n");
        fs::write(folder.path().join("samples.jsonl"), lines).unwrap();
        let table = samples_by_row(&read_lines(&folder.path().join("samples.jsonl")).unwrap());
        assert_eq!(table.rows[0], ["e.jsonl:1", "What?", "A star.", "x x", "A <star>."]);
        assert_eq!((table.rows.len(), &table.head[4]), (2, &"generated at step 6".to_owned()));
        write(folder.path(), None).unwrap();
        let page = fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
        assert!(page.contains("A &lt;star&gt;.") && !page.contains("never shown"));
    }

    #[test]
    fn the_held_out_section_shows_its_scores_and_images() {
        let folder = folder();
        let example = Example {
            png: b"png".into(),
            prompt: "What?".into(),
            expected: "A star.".into(),
            generated: "A ring.".into(),
        };
        let mut scores = Table::new(&[Align::Right]).with_head(&["rows"]);
        scores.push(&[&"95.0%"]);
        let section = HeldOutSection { scores, examples: vec![example] };
        write(folder.path(), Some(&section)).unwrap();
        let page = fs::read_to_string(folder.path().join(FILE_NAME)).unwrap();
        for part in ["95.0%", "data:image/png;base64,cG5n\"", "A ring.", "expected: A star."] {
            assert!(page.contains(part), "{part}");
        }
    }
}
