//! How the demo's captions compare with what the pictures show, told as a table.

use serde::Serialize;
use serde_json::{Map, Value};
use vlm_data::demo::HeldOutGroup;

use vlm_infer::text_score::{is_exact, words};

/// Sums over captions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Accuracy {
    /// Captions compared.
    pub num_captions: usize,
    /// Of them, equal to the reference to the last character.
    pub num_exact: usize,
    /// Words of the references.
    pub num_words: usize,
    /// Of them, those that stand at the same place in the caption.
    pub num_right_words: usize,
}

impl Accuracy {
    /// Counts one caption.
    pub fn add(&mut self, caption: &str, reference: &str) {
        let (words, found) = (words(reference), words(caption));
        self.num_captions += 1;
        self.num_exact += usize::from(is_exact(caption, reference));
        self.num_words += words.len();
        self.num_right_words +=
            words.iter().zip(&found).filter(|(word, found)| word == found).count();
    }

    /// Share of exact captions, 0 to 1; 0 where there is none.
    pub fn exact(&self) -> f64 {
        share(self.num_exact, self.num_captions)
    }

    /// Share of right words, 0 to 1; 0 where there is none.
    pub fn by_word(&self) -> f64 {
        share(self.num_right_words, self.num_words)
    }

    fn merge(&mut self, other: &Accuracy) {
        self.num_captions += other.num_captions;
        self.num_exact += other.num_exact;
        self.num_words += other.num_words;
        self.num_right_words += other.num_right_words;
    }
}

fn share(part: usize, whole: usize) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// One model's accuracy, group by group.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct GroupAccuracy {
    groups: Vec<(HeldOutGroup, Accuracy)>,
}

impl GroupAccuracy {
    /// Counts one caption in its group.
    pub fn add(&mut self, group: HeldOutGroup, caption: &str, reference: &str) {
        let index =
            self.groups.iter().position(|(known, _)| *known == group).unwrap_or_else(|| {
                self.groups.push((group, Accuracy::default()));
                self.groups.len() - 1
            });
        self.groups[index].1.add(caption, reference);
    }

    /// The sum over groups of `num_objects` objects, of seen or unseen pairs, or (`None`) of both.
    pub fn of(&self, num_objects: usize, unseen_pair: Option<bool>) -> Accuracy {
        let mut sum = Accuracy::default();
        self.groups
            .iter()
            .filter(|(group, _)| group.num_objects == num_objects)
            .filter(|(group, _)| unseen_pair.is_none_or(|unseen| group.unseen_pair == unseen))
            .for_each(|(_, accuracy)| sum.merge(accuracy));
        sum
    }
}

/// The demo's result.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DemoReport {
    /// The starting weights with a random projector.
    pub before: GroupAccuracy,
    /// The aligned model.
    pub after: GroupAccuracy,
    /// The aligned model when every picture is blank: what the language model guesses alone.
    pub blank: GroupAccuracy,
}

impl DemoReport {
    /// The shares that `summary.json` holds, 0 to 1. `heldout_exact_*` are of one object.
    pub fn summary(&self) -> Map<String, Value> {
        let exact = |accuracy: &GroupAccuracy, num_objects| accuracy.of(num_objects, None).exact();
        let values = [
            ("heldout_exact_before", exact(&self.before, 1)),
            ("heldout_exact_after", exact(&self.after, 1)),
            ("heldout_exact_lm_only", exact(&self.blank, 1)),
            ("heldout_exact_two_before", exact(&self.before, 2)),
            ("heldout_exact_two_after", exact(&self.after, 2)),
            ("heldout_exact_two_lm_only", exact(&self.blank, 2)),
            ("heldout_words_after", self.after.of(1, None).by_word()),
            ("heldout_words_two_after", self.after.of(2, None).by_word()),
        ];
        values.into_iter().map(|(name, value)| (name.to_owned(), value.into())).collect()
    }

    /// The table, with a line break after every line.
    pub fn table(&self) -> String {
        let columns = [("before", &self.before), ("after", &self.after), ("blank", &self.blank)];
        let mut table = String::from("held-out pictures     number");
        for (name, _) in columns {
            table += &format!("  {name:>6}: exact  words");
        }
        table.push('\n');
        for (num_objects, name) in [(1, "one object"), (2, "two objects")] {
            for (unseen_pair, pairs) in
                [(Some(false), ", seen pair"), (Some(true), ", unseen pair"), (None, ", all")]
            {
                let number = self.after.of(num_objects, unseen_pair).num_captions;
                table += &format!("{:<24}{number:>4}", format!("{name}{pairs}"));
                for (_, accuracy) in columns {
                    let accuracy = accuracy.of(num_objects, unseen_pair);
                    table += &format!(
                        "  {:>13} {:>6}",
                        percent(accuracy.exact()),
                        percent(accuracy.by_word())
                    );
                }
                table.push('\n');
            }
        }
        table
    }
}

fn percent(share: f64) -> String {
    format!("{:.1}%", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE_SEEN: HeldOutGroup = HeldOutGroup { num_objects: 1, unseen_pair: false };
    const TWO_UNSEEN: HeldOutGroup = HeldOutGroup { num_objects: 2, unseen_pair: true };

    #[test]
    fn a_wrong_colour_costs_one_word_and_the_exactness() {
        let mut accuracy = Accuracy::default();
        accuracy.add("A small red ring.", "A small blue ring.");
        accuracy.add("A small red ring.", "A small red ring.");
        assert_eq!((accuracy.exact(), accuracy.by_word()), (0.5, 7.0 / 8.0));
        accuracy.add("", "A");
        assert_eq!(accuracy.num_right_words, 7);
    }

    #[test]
    fn the_table_tells_every_group() {
        let mut report = DemoReport::default();
        report.after.add(ONE_SEEN, "a", "a");
        report.after.add(TWO_UNSEEN, "a", "b");
        assert_eq!(report.after.of(1, None).exact(), 1.0);
        assert_eq!(report.after.of(2, None).exact(), 0.0);
        assert_eq!(report.after.of(2, Some(false)).num_captions, 0);
        let table = report.table();
        assert_eq!(table.lines().count(), 7);
        let line = table.lines().nth(1).unwrap();
        assert!(line.starts_with("one object, seen pair") && line.contains("100.0%"), "{line}");
        assert!(table.lines().all(|line| line.len() == table.lines().next().unwrap().len()));
    }
}
