//! Text that is cut to fit into a message.

/// `text`, cut after `max_chars` characters; a cut text ends with its length, as `abc… (5
/// characters)`.
pub fn shorten(text: &str, max_chars: usize) -> String {
    match text.char_indices().nth(max_chars) {
        Some((end, _)) => format!("{}… ({} characters)", &text[..end], text.chars().count()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_longer_text_is_cut_and_its_length_is_that_in_characters() {
        assert_eq!(shorten("éèê", 3), "éèê");
        assert_eq!(shorten("éèêë", 3), "éèê… (4 characters)");
    }
}
