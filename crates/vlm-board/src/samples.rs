//! The files of a run that are about single rows: `samples.jsonl`, whose rows are answered at each
//! evaluation, and `rejected.jsonl`.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::followed_file::Lines;

/// Folder of the images of the rows in `samples.jsonl`.
pub const SAMPLE_IMAGES: &str = "samples";

/// Largest number of answers to a row that are sent: those of the first evaluations and the last.
const MAX_ANSWERS: usize = 60;

/// Name of the image of `row` in the folder [`SAMPLE_IMAGES`].
pub fn image_file_name(row: u64) -> String {
    format!("{row}.png")
}

/// The answers to the sampled rows, by row.
#[derive(Debug, Default)]
pub(crate) struct Samples(BTreeMap<u64, Sample>);

#[derive(Debug, Clone, Deserialize)]
struct SampleLine {
    step: u64,
    row: u64,
    location: String,
    question: String,
    expected: String,
    generated: String,
}

/// A row with the answers to it.
#[derive(Debug)]
struct Sample {
    line: SampleLine,
    answers: Vec<Answer>,
}

/// An answer, and the first and last step of the evaluations in which it was given.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Answer {
    first_step: u64,
    last_step: u64,
    text: String,
}

impl Samples {
    /// The rows with their answers; `image` gives the address of a row's image.
    pub(crate) fn to_json(&self, image: impl Fn(u64) -> Option<String>) -> Value {
        let sample = |(&row, sample): (&u64, &Sample)| {
            let SampleLine { location, question, expected, .. } = &sample.line;
            let answers = &sample.answers;
            let skipped = answers.len().saturating_sub(MAX_ANSWERS);
            let kept = |index: usize| index < MAX_ANSWERS / 2 || index >= MAX_ANSWERS / 2 + skipped;
            let answers: Vec<&Answer> = (0..answers.len())
                .filter(|&index| kept(index))
                .map(|index| &answers[index])
                .collect();
            json!({
                "location": location, "question": question, "expected": expected,
                "image": image(row), "answers": answers,
            })
        };
        self.0.iter().map(sample).collect()
    }
}

impl Lines for Samples {
    fn clear(&mut self) {
        self.0.clear();
    }

    fn line(&mut self, _number: u64, text: &[u8]) {
        // A line that a crash left half-written holds nothing to show.
        let Ok(line) = serde_json::from_slice::<SampleLine>(text) else { return };
        let (step, text) = (line.step, line.generated.clone());
        let sample = self.0.entry(line.row);
        let sample = sample.or_insert_with(|| Sample { line, answers: Vec::new() });
        sample.answers.retain(|answer| answer.first_step < step);
        match sample.answers.last_mut() {
            Some(last) if last.text == text => last.last_step = step,
            _ => sample.answers.push(Answer { first_step: step, last_step: step, text }),
        }
    }
}

/// The numbers of rejected rows by reason, each with one row.
#[derive(Debug, Default)]
pub(crate) struct RejectedRows(BTreeMap<String, (u64, RejectedLine)>);

#[derive(Debug, Deserialize)]
struct RejectedLine {
    reason: String,
    #[serde(default)]
    location: String,
    #[serde(default)]
    detail: String,
}

impl RejectedRows {
    /// The reasons, the most frequent one first.
    pub(crate) fn to_json(&self) -> Value {
        let mut reasons: Vec<_> = self.0.iter().collect();
        reasons.sort_by_key(|(_, (rows, _))| std::cmp::Reverse(*rows));
        let reason = |(reason, (rows, first)): (&String, &(u64, RejectedLine))| json!({"reason": reason, "rows": rows, "location": first.location, "detail": first.detail});
        reasons.into_iter().map(reason).collect()
    }
}

impl Lines for RejectedRows {
    fn clear(&mut self) {
        self.0.clear();
    }

    fn line(&mut self, _number: u64, text: &[u8]) {
        if let Ok(line) = serde_json::from_slice::<RejectedLine>(text) {
            self.0.entry(line.reason.clone()).or_insert((0, line)).0 += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_answers_in_a_row_are_one_and_repeated_steps_replace_earlier_ones() {
        let mut samples = Samples::default();
        let mut add = |step: u64, row: u64, generated: &str| {
            let line = json!({"step": step, "row": row, "location": "e.jsonl:1", "question": "What?",
                              "expected": "A star.", "generated": generated});
            samples.line(0, line.to_string().as_bytes());
        };
        for (step, text) in [(2, "x"), (4, "y"), (6, "y"), (8, "z"), (8, "A <star>.")] {
            add(step, 0, text);
        }
        add(8, 3, "w");
        let all = samples.to_json(|row| (row == 0).then(|| "0.png".into()));
        let answers = &all[0]["answers"];
        assert_eq!(answers[1], json!({"first_step": 4, "last_step": 6, "text": "y"}));
        assert_eq!((answers[2]["text"].as_str(), answers[3].is_null()), (Some("A <star>."), true));
        assert_eq!((all[0]["image"].as_str(), all[1]["image"].as_str()), (Some("0.png"), None));
    }

    #[test]
    fn rejected_rows_are_counted_by_reason() {
        let mut rejected = RejectedRows::default();
        for (row, reason) in ["missing-image", "too-long", "missing-image"].iter().enumerate() {
            let line = json!({"row": row, "reason": reason, "location": format!("a:{row}")});
            rejected.line(0, line.to_string().as_bytes());
        }
        let all = rejected.to_json();
        assert_eq!(all[0]["reason"], "missing-image");
        assert_eq!((all[0]["rows"].as_u64(), all[0]["location"].as_str()), (Some(2), Some("a:0")));
    }
}
