//! Limits the number of rejected rows: counts the rows of an epoch and fails when too many are
//! rejected.

use std::collections::BTreeMap;

use vlm_display::count;

use crate::error::DataError;
use crate::reject::{RejectReason, Rejected};

/// Default of the largest fraction of rejected rows, in training, evaluation and `prepare-data`.
pub const DEFAULT_MAX_REJECTED_FRACTION: f64 = 0.05;

/// Smallest number of rejected rows that fails before the end of an epoch: a fraction of few rows
/// says little about all rows.
const MIN_REJECTED: usize = 10;
const NUM_EXAMPLES: usize = 5;

/// Counts the usable and rejected rows of an epoch against the limit.
#[derive(Debug)]
pub struct RejectBudget {
    max_fraction: f64,
    num_seen: usize,
    /// Rejected rows of this epoch that an earlier process counted.
    num_earlier: usize,
    by_reason: BTreeMap<RejectReason, usize>,
    examples: Vec<Rejected>,
}

impl RejectBudget {
    /// A budget in which `max_fraction` of the rows may be rejected; 0 allows none.
    pub fn new(max_fraction: f64) -> Self {
        Self::resumed(max_fraction, 0, 0)
    }

    /// The budget of an epoch of which an earlier process counted `num_seen` rows, `num_rejected`
    /// of them rejected.
    pub fn resumed(max_fraction: f64, num_seen: usize, num_rejected: usize) -> Self {
        Self {
            max_fraction,
            num_seen,
            num_earlier: num_rejected,
            by_reason: BTreeMap::new(),
            examples: Vec::new(),
        }
    }

    /// Counts `num_usable` usable rows and the rejected ones.
    ///
    /// # Errors
    /// [`DataError::TooManyRejected`] as soon as there are too many.
    pub fn add(&mut self, num_usable: usize, rejected: &[Rejected]) -> Result<(), DataError> {
        self.num_seen += num_usable + rejected.len();
        for rejected in rejected {
            *self.by_reason.entry(rejected.reason).or_default() += 1;
            if self.examples.len() < NUM_EXAMPLES {
                self.examples.push(rejected.clone());
            }
        }
        let is_enough = self.num_rejected() >= MIN_REJECTED || self.max_fraction == 0.0;
        if is_enough && self.is_over() {
            return Err(self.too_many());
        }
        Ok(())
    }

    /// Checks a whole epoch: the limit applies however few rows there are, and at least one row
    /// must have been usable.
    ///
    /// # Errors
    /// [`DataError::TooManyRejected`].
    pub fn at_end(&self) -> Result<(), DataError> {
        let is_none_usable = self.num_seen > 0 && self.num_rejected() == self.num_seen;
        if is_none_usable || self.is_over() { Err(self.too_many()) } else { Ok(()) }
    }

    /// Number of rows counted so far, including rejected ones.
    pub fn num_seen(&self) -> usize {
        self.num_seen
    }

    /// Number of rejected rows counted so far.
    pub fn num_rejected(&self) -> usize {
        self.num_earlier + self.by_reason.values().sum::<usize>()
    }

    fn is_over(&self) -> bool {
        self.num_rejected() as f64 > self.max_fraction * self.num_seen as f64
    }

    /// The error that tells how many rows were rejected, why, and what to do.
    pub fn too_many(&self) -> DataError {
        let counts = RejectCounts {
            num_rows: self.num_seen,
            num_earlier: self.num_earlier,
            by_reason: &self.by_reason,
            max_fraction: self.max_fraction,
        };
        DataError::TooManyRejected(counts.message(&self.examples))
    }
}

/// The counts for a message, most frequent reason first: `3 missing-image, 1 invalid-row`.
pub fn count_by_reason(by_reason: &BTreeMap<RejectReason, usize>) -> String {
    let counts = most_frequent_first(by_reason).into_iter();
    counts.map(|(reason, count)| format!("{count} {reason}")).collect::<Vec<_>>().join(", ")
}

fn most_frequent_first(by_reason: &BTreeMap<RejectReason, usize>) -> Vec<(RejectReason, usize)> {
    let mut reasons: Vec<_> = by_reason.iter().map(|(&reason, &count)| (reason, count)).collect();
    reasons.sort_by_key(|&(reason, count)| (std::cmp::Reverse(count), reason));
    reasons
}

/// The content of the message about too many rejected rows.
pub(crate) struct RejectCounts<'a> {
    /// Number of all rows.
    pub(crate) num_rows: usize,
    /// Rejected rows whose reasons are not in `by_reason`.
    pub(crate) num_earlier: usize,
    pub(crate) by_reason: &'a BTreeMap<RejectReason, usize>,
    pub(crate) max_fraction: f64,
}

impl RejectCounts<'_> {
    pub(crate) fn message(&self, examples: &[Rejected]) -> String {
        let mut counts = count_by_reason(self.by_reason);
        let num_rejected = self.num_earlier + self.by_reason.values().sum::<usize>();
        if self.num_earlier > 0 {
            let separator = if counts.is_empty() { "" } else { ", " };
            counts += &format!("{separator}{} before this run was resumed", self.num_earlier);
        }
        // A fraction of 1 allows all rows, so there is no limit to raise.
        let (limit, or_allow) = if self.max_fraction >= 1.0 {
            (String::new(), "")
        } else {
            let limit = match self.max_fraction * 100.0 {
                0.0 => "; the limit is 0".to_owned(),
                percent => format!("; the limit is {}%", (percent * 100.0).round() / 100.0),
            };
            (limit, " To allow more, raise `max_rejected_fraction`.")
        };
        let rows = count(self.num_rows, "row");
        let mut message = format!("{num_rejected} of {rows} cannot be used ({counts}){limit}.");
        if !examples.is_empty() {
            message += " The first rejected rows:";
        }
        for Rejected { location, reason, detail, .. } in examples.iter().take(NUM_EXAMPLES) {
            message += &format!("\n  {location}: {reason}: {detail}");
        }
        let reasons = most_frequent_first(self.by_reason);
        let advice = reasons.first().map_or("", |&(reason, _)| advice(reason));
        message + "\n" + advice + or_allow
    }
}

fn advice(reason: RejectReason) -> &'static str {
    match reason {
        RejectReason::MissingImage | RejectReason::ImageOutsideRoot => {
            "Check `images_path`: image names in the rows are relative to it."
        }
        RejectReason::UnreadableImage | RejectReason::ImageTooLarge => {
            "Check the image files, or fetch or convert them again."
        }
        RejectReason::CutThroughImage | RejectReason::NoSupervisedToken => {
            "Raise `max_seq_len`, or check that the rows end with a turn of the assistant."
        }
        RejectReason::ImageWithoutPlaceholder
        | RejectReason::PlaceholderWithoutImage
        | RejectReason::PlaceholderInText => {
            "Check that the turns hold one <image> for each name in \"image\"."
        }
        RejectReason::TemplateRefused | RejectReason::TokenizerFailed => {
            "Check that `tokenizer` is the one that the data and the model were made for."
        }
        RejectReason::NotInFeatureCache => {
            "Run `vlm cache-features` on these rows, into the same folder: it adds the missing images."
        }
        RejectReason::UnsupportedMedia => {
            "The rows have video or audio, and only images and text can be trained on: remove these rows."
        }
        RejectReason::AmbiguousImages => {
            "Rename the key that holds the images to \"image\", or put all images of a row into one list."
        }
        RejectReason::RatingTooLow => "Lower the smallest rating in `min_rating`.",
        RejectReason::InvalidRow => {
            "Check that `data_path` is a file of rows; docs/data.md lists the supported forms."
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
    fn before_the_end_a_share_of_few_rejected_rows_ends_nothing() {
        let mut budget = RejectBudget::new(0.1);
        budget.add(0, &rejected(9)).unwrap();
        budget.add(91, &rejected(1)).unwrap();
        let error = budget.add(0, &rejected(1)).unwrap_err().to_string();
        assert!(error.starts_with("11 of 102 rows cannot be used (11 missing-image)"), "{error}");
        assert!(error.contains("; the limit is 10%."), "{error}");
        assert!(error.contains("\n  a.jsonl:0: missing-image: no file"), "{error}");
        assert!(error.contains("`images_path`"), "{error}");
    }

    #[test]
    fn at_the_end_of_an_epoch_the_limit_holds_however_few_rows_there_are() {
        let mut budget = RejectBudget::new(0.05);
        budget.add(9, &rejected(8)).unwrap();
        let error = budget.at_end().unwrap_err().to_string();
        assert!(error.starts_with("8 of 17 rows cannot be used"), "{error}");
        let mut budget = RejectBudget::new(0.05);
        budget.add(19, &rejected(1)).unwrap();
        assert!(budget.at_end().is_ok(), "1 of 20 is 5%");
    }

    #[test]
    fn a_fraction_of_zero_allows_no_rejected_row() {
        let mut budget = RejectBudget::new(0.0);
        budget.add(500, &[]).unwrap();
        let error = budget.add(3, &rejected(1)).unwrap_err().to_string();
        assert!(error.contains("1 of 504 rows") && error.contains("; the limit is 0."), "{error}");
    }

    #[test]
    fn an_epoch_without_a_usable_row_is_an_error() {
        let mut budget = RejectBudget::new(1.0);
        budget.add(0, &rejected(3)).unwrap();
        assert!(budget.at_end().is_err());
        budget.add(1, &rejected(0)).unwrap();
        assert!(budget.at_end().is_ok());
    }

    #[test]
    fn a_continued_epoch_counts_the_rows_before_it() {
        let mut budget = RejectBudget::resumed(0.05, 98, 4);
        budget.add(1, &rejected(1)).unwrap();
        assert!(budget.at_end().is_ok(), "5 of 100, though 1 of 2 since");
        budget.add(0, &rejected(1)).unwrap();
        let error = budget.at_end().unwrap_err().to_string();
        assert!(error.contains("(2 missing-image, 4 before this run was resumed)"), "{error}");
    }
}
