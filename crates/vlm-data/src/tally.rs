//! Whether too many rows were rejected to go on.

use std::collections::BTreeMap;

use crate::error::DataError;
use crate::reject::{RejectReason, Rejected};

/// Fewer rejected rows than this end no epoch that has usable ones: shares of small numbers say
/// little.
const MIN_REJECTED: usize = 10;
const NUM_EXAMPLES: usize = 5;

/// Counts an epoch's rows as they come: a loader's own, or those of all processes that train together.
#[derive(Debug)]
pub struct Tally {
    max_fraction: f64,
    num_seen: usize,
    by_reason: BTreeMap<RejectReason, usize>,
    examples: Vec<Rejected>,
}

impl Tally {
    /// Of all rows, `max_fraction` may be rejected.
    pub fn new(max_fraction: f64) -> Self {
        Self { max_fraction, num_seen: 0, by_reason: BTreeMap::new(), examples: Vec::new() }
    }

    /// Counts `num_usable` rows, and those that are not.
    ///
    /// # Errors
    /// [`DataError::TooManyRejected`] as soon as that is so.
    pub fn add(&mut self, num_usable: usize, rejected: &[Rejected]) -> Result<(), DataError> {
        self.num_seen += num_usable + rejected.len();
        for rejected in rejected {
            *self.by_reason.entry(rejected.reason).or_default() += 1;
            if self.examples.len() < NUM_EXAMPLES {
                self.examples.push(rejected.clone());
            }
        }
        let num_rejected = self.num_rejected();
        let is_over = num_rejected as f64 > self.max_fraction * self.num_seen as f64;
        if num_rejected >= MIN_REJECTED && is_over {
            return Err(DataError::TooManyRejected(self.message()));
        }
        Ok(())
    }

    /// # Errors
    /// [`DataError::TooManyRejected`] when not one row could be used.
    pub(crate) fn at_end(&self) -> Result<(), DataError> {
        if self.num_seen > 0 && self.num_rejected() == self.num_seen {
            return Err(DataError::TooManyRejected(self.message()));
        }
        Ok(())
    }

    fn num_rejected(&self) -> usize {
        self.by_reason.values().sum()
    }

    fn message(&self) -> String {
        let mut reasons: Vec<_> = self.by_reason.iter().collect();
        reasons.sort_by_key(|&(reason, &count)| (std::cmp::Reverse(count), *reason));
        let counts: Vec<_> =
            reasons.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        let num_rejected = self.num_rejected();
        // More than all cannot be allowed; an evaluation has no limit to raise either.
        let (limit, or_allow) = if self.max_fraction >= 1.0 {
            (String::new(), "")
        } else {
            let percent = self.max_fraction * 100.0;
            let or_allow = " Or allow more with --max-rejected-fraction.";
            (format!("; at most {percent:.0}% may be"), or_allow)
        };
        let mut message = format!(
            "{num_rejected} of {} rows cannot be used ({}){limit}. The first of them:",
            self.num_seen,
            counts.join(", "),
        );
        for Rejected { location, reason, detail, .. } in &self.examples {
            message += &format!("\n  {location}: {reason}: {detail}");
        }
        let advice = reasons.first().map_or("", |(reason, _)| advice(**reason));
        message + "\n" + advice + or_allow
    }
}

fn advice(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::MissingImage | RejectReason::ImageOutsideRoot => {
            "Check --images-path: image names in the rows are relative to it."
        }
        RejectReason::UnreadableImage | RejectReason::ImageTooLarge => {
            "Check the image files, or prepare them anew."
        }
        RejectReason::CutThroughImage | RejectReason::NoSupervisedToken => {
            "Raise --max-seq-len, or check that the rows end with the assistant's turn."
        }
        RejectReason::ImageWithoutPlaceholder
        | RejectReason::PlaceholderWithoutImage
        | RejectReason::PlaceholderInText => {
            "Check that the turns hold one <image> for each name in \"image\"."
        }
        RejectReason::TemplateRefused | RejectReason::TokenizerFailed => {
            "Check that --tokenizer is the one that the data and the model were made for."
        }
        RejectReason::NotInFeatureCache => {
            "Run `vlm cache-features` on these rows, into the same folder: it adds what is missing."
        }
        RejectReason::UnsupportedMedia => {
            "The rows have videos or sounds; take those rows out, only images and text are trained on."
        }
        RejectReason::AmbiguousImages => {
            "Name the key that holds the images in the option image_keys, or put all images of a row \
             into one list."
        }
        RejectReason::RatingTooLow => "Lower the ratings wanted of the turns.",
        RejectReason::InvalidRow => {
            "Check that --data-path is a file of rows; docs/data.md lists the forms that are read."
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rejected(num_rejected: usize) -> Vec<Rejected> {
        (0..num_rejected)
            .map(|row| Rejected {
                row,
                location: format!("a.jsonl:{row}"),
                reason: RejectReason::MissingImage,
                detail: "no file".into(),
            })
            .collect()
    }

    #[test]
    fn few_rejected_rows_are_borne_and_many_are_not() {
        let mut tally = Tally::new(0.1);
        tally.add(0, &rejected(9)).unwrap();
        tally.add(91, &rejected(1)).unwrap();
        let error = tally.add(0, &rejected(1)).unwrap_err().to_string();
        assert!(error.starts_with("11 of 102 rows cannot be used (11 missing-image)"), "{error}");
        assert!(error.contains("\n  a.jsonl:0: missing-image: no file"), "{error}");
        assert!(error.contains("--images-path"), "{error}");
    }

    #[test]
    fn an_epoch_without_a_usable_row_is_an_error() {
        let mut tally = Tally::new(1.0);
        tally.add(0, &rejected(3)).unwrap();
        assert!(tally.at_end().is_err());
        tally.add(1, &rejected(0)).unwrap();
        assert!(tally.at_end().is_ok());
    }
}
