//! Counts with their nouns.

use std::fmt::Display;

/// The number with its noun, which is given in the singular and ends in "s" unless the number is 1:
/// `count(2, "rejected row")` is "2 rejected rows". After "ch", "sh", "s" and "x" the ending is
/// "es" except in "epochs", and "y" after a consonant becomes "ies".
pub fn count<N: Display + PartialEq + From<u8>>(number: N, noun: &str) -> String {
    if number == N::from(1) {
        return format!("{number} {noun}");
    }
    match noun.strip_suffix('y') {
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{number} {stem}ies"),
        _ if noun.ends_with("epoch") => format!("{number} {noun}s"),
        _ if noun.ends_with(['s', 'x']) || noun.ends_with("ch") || noun.ends_with("sh") => {
            format!("{number} {noun}es")
        }
        _ => format!("{number} {noun}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_one_is_singular() {
        assert_eq!(count(1_usize, "row"), "1 row");
        assert_eq!(count(0_u64, "row"), "0 rows");
        assert_eq!(count(2_i64, "rejected row"), "2 rejected rows");
    }

    #[test]
    fn endings_are_those_of_english_nouns() {
        let nouns = ["batch", "epoch", "process", "box", "entry", "key"];
        let plural = ["batches", "epochs", "processes", "boxes", "entries", "keys"];
        assert_eq!(nouns.map(|noun| count(3, noun)), plural.map(|noun| format!("3 {noun}")));
    }
}
