//! Accuracy on the held-out rows before and after training.

use serde::Serialize;
use serde_json::{Map, Value};
use vlm_demo::{Asked, HeldOutGroup};
use vlm_display::{Align, Table};
use vlm_infer::text_score::{is_exact, words};

/// Counts of correct rows and words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Accuracy {
    /// Number of rows.
    pub num_rows: usize,
    /// Number of rows whose generated text equals the expected text.
    pub num_exact: usize,
    /// Number of words in the expected texts.
    pub num_words: usize,
    /// Number of these words that the generated text has at the same position.
    pub num_right_words: usize,
}

impl Accuracy {
    /// Adds a row with its generated text and the expected text.
    pub fn add(&mut self, text: &str, expected: &str) {
        let (words, found) = (words(expected), words(text));
        self.num_rows += 1;
        self.num_exact += usize::from(is_exact(text, expected));
        self.num_words += words.len();
        self.num_right_words +=
            words.iter().zip(&found).filter(|(word, found)| word == found).count();
    }

    /// Fraction of rows that are exactly right, from 0 to 1; 0 without rows.
    pub fn exact(&self) -> f64 {
        fraction(self.num_exact, self.num_rows)
    }

    /// Fraction of words that are right, from 0 to 1; 0 without words.
    pub fn by_word(&self) -> f64 {
        fraction(self.num_right_words, self.num_words)
    }

    fn merge(&mut self, other: &Accuracy) {
        self.num_rows += other.num_rows;
        self.num_exact += other.num_exact;
        self.num_words += other.num_words;
        self.num_right_words += other.num_right_words;
    }
}

fn fraction(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The accuracy of a model in each group of rows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GroupAccuracy {
    groups: Vec<(HeldOutGroup, Accuracy)>,
}

impl GroupAccuracy {
    /// Adds a row of `group` with its generated text and the expected text.
    pub fn add(&mut self, group: HeldOutGroup, text: &str, expected: &str) {
        let index =
            self.groups.iter().position(|(known, _)| *known == group).unwrap_or_else(|| {
                self.groups.push((group, Accuracy::default()));
                self.groups.len() - 1
            });
        self.groups[index].1.add(text, expected);
    }

    /// The accuracy on the rows of all groups for which `selects` returns true.
    pub fn of(&self, selects: impl Fn(&HeldOutGroup) -> bool) -> Accuracy {
        let mut sum = Accuracy::default();
        let selected = self.groups.iter().filter(|(group, _)| selects(group));
        selected.for_each(|(_, accuracy)| sum.merge(accuracy));
        sum
    }

    /// The accuracy on captions of images with `num_objects` objects.
    pub fn captions(&self, num_objects: usize) -> Accuracy {
        self.of(|group| group.asked == Asked::Caption && group.num_objects == num_objects)
    }
}

/// The accuracies that the demo reports.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DemoScores {
    /// The model before training: the starting weights with a random projector.
    pub before: GroupAccuracy,
    /// The model after training.
    pub after: GroupAccuracy,
    /// The model after training with blank images, which shows what it can guess without seeing.
    pub blank: GroupAccuracy,
}

type GroupFilter = fn(&HeldOutGroup) -> bool;

/// Lines of the table: a label, and the groups that it covers.
const LINES: [(&str, GroupFilter); 5] = [
    ("captions, one object", |group| group.asked == Asked::Caption && group.num_objects == 1),
    ("captions, two objects", |group| group.asked == Asked::Caption && group.num_objects == 2),
    ("captions, unseen pair", |group| group.asked == Asked::Caption && group.unseen_pair),
    ("how many objects", |group| group.asked == Asked::Count),
    ("how many, unseen pair", |group| group.asked == Asked::Count && group.unseen_pair),
];

impl DemoScores {
    /// The entries of `summary.json`, each from 0 to 1. `heldout_exact_before`, `_after` and
    /// `_lm_only` are for captions of images with one object.
    pub fn summary(&self) -> Map<String, Value> {
        let captions =
            |accuracy: &GroupAccuracy, num_objects| accuracy.captions(num_objects).exact();
        let questions =
            |accuracy: &GroupAccuracy| accuracy.of(|group| group.asked != Asked::Caption).exact();
        let unseen = |accuracy: &GroupAccuracy| accuracy.of(|group| group.unseen_pair).exact();
        let values = [
            ("heldout_exact_before", captions(&self.before, 1)),
            ("heldout_exact_after", captions(&self.after, 1)),
            ("heldout_exact_lm_only", captions(&self.blank, 1)),
            ("heldout_exact_two_before", captions(&self.before, 2)),
            ("heldout_exact_two_after", captions(&self.after, 2)),
            ("heldout_exact_two_lm_only", captions(&self.blank, 2)),
            ("heldout_questions_before", questions(&self.before)),
            ("heldout_questions_after", questions(&self.after)),
            ("heldout_questions_lm_only", questions(&self.blank)),
            ("heldout_unseen_pair_after", unseen(&self.after)),
            ("heldout_words_after", self.after.captions(1).by_word()),
            ("heldout_words_two_after", self.after.captions(2).by_word()),
        ];
        values.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
    }

    /// The table of exactly right rows, for the report.
    pub fn table(&self) -> Table {
        let head = ["held-out rows, answered exactly", "rows", "before", "after", "blank images"];
        let columns = [&self.before, &self.after, &self.blank];
        let mut table = Table::new(&[Align::Left, Align::Right]).with_head(&head);
        for (name, selects) in LINES {
            let [before, after, blank] =
                columns.map(|accuracy| percent(accuracy.of(selects).exact()));
            table.push(&[&name, &self.after.of(selects).num_rows, &before, &after, &blank]);
        }
        table
    }
}

fn percent(fraction: f64) -> String {
    format!("{:.1}%", 100.0 * fraction)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: HeldOutGroup =
        HeldOutGroup { num_objects: 1, unseen_pair: false, asked: Asked::Caption };
    const TWO_UNSEEN: HeldOutGroup =
        HeldOutGroup { num_objects: 2, unseen_pair: true, asked: Asked::Count };

    #[test]
    fn a_wrong_colour_is_one_wrong_word_and_not_exact() {
        let mut accuracy = Accuracy::default();
        accuracy.add("A small red ring.", "A small blue ring.");
        accuracy.add("A small red ring.", "A small red ring.");
        assert_eq!((accuracy.exact(), accuracy.by_word()), (0.5, 7.0 / 8.0));
        accuracy.add("", "A");
        assert_eq!(accuracy.num_right_words, 7);
    }

    #[test]
    fn table_has_a_line_for_each_kind_of_row() {
        let mut scores = DemoScores::default();
        scores.after.add(ONE, "a", "a");
        scores.after.add(TWO_UNSEEN, "a", "b");
        assert_eq!(scores.after.captions(1).exact(), 1.0);
        assert_eq!(scores.after.captions(2).num_rows, 0);
        let table = scores.table();
        assert_eq!(table.rows.len(), LINES.len());
        assert_eq!(table.rows[0], ["captions, one object", "1", "0.0%", "100.0%", "0.0%"]);
        assert_eq!(table.rows[4][..4], ["how many, unseen pair", "1", "0.0%", "0.0%"]);
    }
}
