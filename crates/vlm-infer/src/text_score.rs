//! Scores of a generated text against the expected one.

/// The words of a text; punctuation is part of its word. Each non-ASCII character, such as a
/// Chinese one, is a word.
pub fn words(text: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let mut is_open = false;
    for character in text.chars() {
        if character.is_whitespace() {
            is_open = false;
        } else if character.is_ascii() && is_open {
            words.last_mut().into_iter().for_each(|word| word.push(character));
        } else {
            words.push(character.to_string());
            is_open = character.is_ascii();
        }
    }
    words
}

/// Whether the texts are equal except for leading and trailing white space.
pub fn is_exact(found: &str, expected: &str) -> bool {
    found.trim() == expected.trim()
}

/// F1 score of the [`words`] that the texts share, in any order (Rajpurkar et al. 2016, section
/// 6.1), from 0 to 1. Unlike there, the texts are not normalized. The score of two empty texts is
/// 1.
pub fn token_f1(found: &str, expected: &str) -> f64 {
    let (mut found, expected) = (words(found), words(expected));
    let total = found.len() + expected.len();
    if total == 0 {
        return 1.0;
    }
    let num_found = found.len();
    for word in &expected {
        if let Some(at) = found.iter().position(|other| other == word) {
            found.swap_remove(at);
        }
    }
    let shared = num_found - found.len();
    2.0 * shared as f64 / total as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_ascii_words_and_chinese_characters() {
        assert_eq!(words("A red ring."), ["A", "red", "ring."]);
        assert_eq!(words("左侧有 ok。"), ["左", "侧", "有", "ok", "。"]);
    }

    /// The numbers are those of Python's Counter, as the SQuAD evaluation uses it:
    /// `n = sum((Counter(a) & Counter(b)).values()); 2 * n / (len(a) + len(b))`.
    #[test]
    fn f1_counts_a_repeated_word_as_often_as_both_texts_have_it() {
        for (found, expected, f1) in [
            ("a red ring", "a red ring", 1.0),
            ("ring red a", "a red ring", 1.0),
            ("a a a", "a b", 0.4),
            ("a red ring and a blue box", "a blue box", 0.6),
            ("红圈", "红方块", 0.4),
            ("x", "", 0.0),
            ("", "", 1.0),
        ] {
            let difference = token_f1(found, expected) - f1;
            assert!(difference.abs() < 1e-12, "{found:?}, {expected:?}: {difference} off");
        }
    }

    #[test]
    fn exact_match_ignores_leading_and_trailing_white_space() {
        assert!(is_exact(" A ring.\n", "A ring."));
        assert!(!is_exact("A ring", "A ring."));
    }
}
