//! The curves of a run: the numbers of `metrics.jsonl` by column. A long curve is sent to the page
//! as the mean and the range of groups of neighbouring points.

use std::fmt;
use std::ops::Range;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::{Map, Value, json};

use crate::followed_file::Lines;

/// The fields that are read. Lines of steps have those of `STEPS`, lines of evaluations those of
/// `EVALUATIONS`.
const FIELDS: [&str; 18] = [
    "step", "samples", "loss", "aux_loss", "lr", "grad_norm", "samples_per_sec", "tokens_per_sec",
    "mfu", "step_ms", "data_wait_ms", "peak_memory_bytes", "skipped_updates", "rejected_rows",
    "eval_loss", "eval_image_gain", "eval_exact", "eval_token_f1",
];
const STEP: usize = 0;
const ROWS: usize = 1;
const STEP_MS: usize = 9;
const STEPS: Range<usize> = 2..14;
const EVALUATIONS: Range<usize> = 14..18;

/// A curve with more points is sent as this many groups of points at most.
const MAX_POINTS: usize = 600;
/// Number of damaged lines that are named; the others are counted.
const MAX_NAMED: usize = 5;

/// All curves of a run.
#[derive(Debug)]
pub(crate) struct Metrics {
    steps: Curves,
    evaluations: Curves,
    damaged: Vec<String>,
    num_damaged: u64,
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            steps: Curves::new(STEPS),
            evaluations: Curves::new(EVALUATIONS),
            damaged: Vec::new(),
            num_damaged: 0,
        }
    }
}

impl Metrics {
    /// The last step with a line; 0 without one.
    pub(crate) fn last_step(&self) -> f64 {
        self.steps.last().map_or(0.0, |at| at.step)
    }

    /// Seconds between the last two lines.
    pub(crate) fn secs_between_lines(&self) -> f64 {
        let points = &self.steps.points;
        let before = points.len().checked_sub(2).map_or(0.0, |index| points[index].secs);
        self.steps.last().map_or(0.0, |at| at.secs - before)
    }

    /// What was wrong with lines that are left out.
    pub(crate) fn problems(&self) -> Vec<String> {
        let mut problems = self.damaged.clone();
        let rest = self.num_damaged - problems.len() as u64;
        if rest > 0 {
            let lines = vlm_display::count(rest, "more line");
            problems.push(format!("metrics.jsonl: {lines} cannot be read either"));
        }
        problems
    }

    /// The curves of the steps and of the evaluations.
    pub(crate) fn to_json(&self) -> [Value; 2] {
        [&self.steps, &self.evaluations].map(Curves::to_json)
    }

    fn add(&mut self, line: &Line) -> Result<(), String> {
        let step = line.0[STEP].ok_or("it has no `step`")?;
        // Only a run that repeats steps, after it was resumed, writes an earlier step.
        let before = self.steps.last().copied().unwrap_or_default();
        match line.0[ROWS] {
            Some(rows) => {
                self.steps.remove_from(step);
                self.evaluations.remove_from(step);
                let before = self.steps.last().copied().unwrap_or_default();
                let secs = line.0[STEP_MS].unwrap_or(0.0) * 1e-3 * (step - before.step);
                self.steps.push(Point { step, rows, secs: before.secs + secs }, line);
            }
            None => {
                self.evaluations.remove_from(step);
                self.evaluations.push(Point { step, ..before }, line);
            }
        }
        Ok(())
    }
}

impl Lines for Metrics {
    fn clear(&mut self) {
        *self = Self::default();
    }

    fn line(&mut self, number: u64, text: &[u8]) {
        if text.is_empty() {
            return;
        }
        let line = serde_json::from_slice::<Line>(text).map_err(|error| error.to_string());
        if let Err(problem) = line.and_then(|line| self.add(&line)) {
            self.num_damaged += 1;
            if self.damaged.len() < MAX_NAMED {
                self.damaged.push(format!(
                    "metrics.jsonl line {number} cannot be read and is left out: {problem}"
                ));
            }
        }
    }
}

/// The position of a line on each of the three axes.
#[derive(Debug, Clone, Copy, Default)]
struct Point {
    step: f64,
    /// Number of rows trained on so far.
    rows: f64,
    /// Seconds of training so far, without evaluations and checkpoints.
    secs: f64,
}

/// Curves over the same points.
#[derive(Debug)]
struct Curves {
    fields: Range<usize>,
    points: Vec<Point>,
    /// Values by field; NaN where a line has none.
    values: Vec<Vec<f32>>,
}

impl Curves {
    fn new(fields: Range<usize>) -> Self {
        Self { points: Vec::new(), values: vec![Vec::new(); fields.len()], fields }
    }

    fn last(&self) -> Option<&Point> {
        self.points.last()
    }

    fn push(&mut self, point: Point, line: &Line) {
        self.points.push(point);
        for (values, value) in self.values.iter_mut().zip(&line.0[self.fields.clone()]) {
            values.push(value.map_or(f32::NAN, |value| value as f32));
        }
    }

    /// Removes the points of `step` and later ones.
    fn remove_from(&mut self, step: f64) {
        while self.last().is_some_and(|last| last.step >= step) {
            self.points.pop();
            self.values.iter_mut().for_each(|values| _ = values.pop());
        }
    }

    /// `step`, `rows` and `secs` of each group of points, and for each field with a value `mean`,
    /// and where a group has several points `low` and `high`; `last` has the last values alone.
    fn to_json(&self) -> Value {
        let size = self.points.len().div_ceil(MAX_POINTS).max(1);
        let axis = |of: fn(&Point) -> f64| -> Vec<f64> {
            self.points.chunks(size).map(|group| of(&group[group.len() / 2])).collect()
        };
        let mut all = Map::new();
        all.insert("step".into(), axis(|point| point.step).into());
        all.insert("rows".into(), axis(|point| point.rows).into());
        all.insert("secs".into(), axis(|point| point.secs).into());
        let at = self.last().copied().unwrap_or_default();
        let mut last = json!({ "step": at.step, "rows": at.rows, "secs": at.secs });
        for (name, values) in FIELDS[self.fields.clone()].iter().zip(&self.values) {
            let groups: Vec<Option<Group>> = values.chunks(size).map(Group::of).collect();
            if groups.iter().all(Option::is_none) {
                continue;
            }
            let of = |get: fn(&Group) -> f32| -> Vec<Option<f32>> {
                groups.iter().map(|group| group.as_ref().map(get)).collect()
            };
            last[*name] = json!(values.iter().rfind(|value| value.is_finite()));
            let mut curve = json!({ "mean": of(|group| group.mean) });
            if size > 1 {
                curve["low"] = json!(of(|group| group.low));
                curve["high"] = json!(of(|group| group.high));
            }
            all.insert((*name).to_owned(), curve);
        }
        all.insert("last".into(), last);
        all.into()
    }
}

/// Neighbouring values.
struct Group {
    low: f32,
    mean: f32,
    high: f32,
}

impl Group {
    /// `None` without a finite value.
    fn of(values: &[f32]) -> Option<Self> {
        let finite = || values.iter().copied().filter(|value| value.is_finite());
        let count = finite().count();
        (count > 0).then(|| Self {
            low: finite().fold(f32::INFINITY, f32::min),
            mean: (finite().map(f64::from).sum::<f64>() / count as f64) as f32,
            high: finite().fold(f32::NEG_INFINITY, f32::max),
        })
    }
}

/// The numbers of a line by their position in `FIELDS`.
struct Line([Option<f64>; FIELDS.len()]);

impl<'de> Deserialize<'de> for Line {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Line;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("an object of numbers")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Line, A::Error> {
                let mut line = Line([None; FIELDS.len()]);
                while let Some(Field(field)) = map.next_key()? {
                    match field {
                        Some(field) => line.0[field] = map.next_value()?,
                        None => _ = map.next_value::<IgnoredAny>()?,
                    }
                }
                Ok(line)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// The position of a name in `FIELDS`, without a copy of the name.
struct Field(Option<usize>);

impl<'de> Deserialize<'de> for Field {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Name;
        impl Visitor<'_> for Name {
            type Value = Field;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a name")
            }

            fn visit_str<E>(self, name: &str) -> Result<Field, E> {
                Ok(Field(FIELDS.iter().position(|field| *field == name)))
            }
        }
        deserializer.deserialize_str(Name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metrics(lines: &[&str]) -> Metrics {
        let mut metrics = Metrics::default();
        for (index, line) in lines.iter().enumerate() {
            metrics.line(index as u64 + 1, line.as_bytes());
        }
        metrics
    }

    #[test]
    fn steps_that_a_resumed_run_repeats_replace_the_earlier_ones() {
        let [steps, evaluations] = metrics(&[
            r#"{"step":10,"samples":40,"loss":3.0,"step_ms":100}"#,
            r#"{"step":10,"eval_loss":3.5}"#,
            r#"{"step":20,"samples":80,"loss":2.0,"step_ms":100}"#,
            r#"{"step":20,"eval_loss":2.5}"#,
            r#"{"step":30,"samples":120,"loss":null,"step_ms":100}"#,
            r#"{"step":20,"samples":80,"loss":1.5,"step_ms":300}"#,
        ])
        .to_json();
        assert_eq!(steps["step"], json!([10.0, 20.0]));
        assert_eq!(steps["rows"], json!([40.0, 80.0]));
        assert_eq!(steps["secs"], json!([1.0, 4.0]));
        assert_eq!(steps["loss"], json!({ "mean": [3.0, 1.5] }));
        assert!(steps["grad_norm"].is_null(), "no line has it");
        assert_eq!(
            steps["last"],
            json!({"step": 20.0, "rows": 80.0, "secs": 4.0, "loss": 1.5, "step_ms": 300.0})
        );
        assert_eq!(evaluations["step"], json!([10.0]));
    }

    #[test]
    fn a_damaged_line_is_named_and_left_out() {
        let good = r#"{"step":1,"samples":4,"loss":3.0,"note":{"any":[1]}}"#;
        let found = metrics(&[good, r#"{"step":2,"sam"#, r#"{"step":"x"}"#, "{}", "", "[1]"]);
        let problems = found.problems();
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(problems[0].starts_with("metrics.jsonl line 2 "), "{problems:?}");
        assert!(problems[2].ends_with("it has no `step`"), "{problems:?}");
        assert_eq!(found.last_step(), 1.0);
        let many = metrics(&["x"; 9]).problems();
        assert_eq!(many.len(), 6);
        assert!(many[5].contains("4 more lines"), "{many:?}");
    }

    #[test]
    fn a_long_curve_keeps_its_extremes() {
        let mut metrics = Metrics::default();
        for step in 1..=10_000 {
            let loss = if step == 5000 { 7.0 } else { 1.0 };
            let line = json!({ "step": step, "samples": step, "loss": loss }).to_string();
            metrics.line(step, line.as_bytes());
        }
        let [steps, _] = metrics.to_json();
        let high = steps["loss"]["high"].as_array().unwrap();
        assert!(high.len() <= MAX_POINTS && high.len() > MAX_POINTS / 2);
        assert_eq!(high.iter().filter_map(Value::as_f64).fold(0.0, f64::max), 7.0);
        let low = steps["loss"]["low"].as_array().unwrap();
        assert!(low.iter().all(|value| value == 1.0));
    }
}
