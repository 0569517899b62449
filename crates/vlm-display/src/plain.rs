use std::borrow::Cow;

/// A name with control characters escaped, because they could change the terminal.
pub fn plain(name: &str) -> Cow<'_, str> {
    if name.chars().any(char::is_control) {
        name.escape_debug().to_string().into()
    } else {
        name.into()
    }
}

#[cfg(test)]
mod tests {
    use super::plain;

    #[test]
    fn control_characters_are_escaped_and_others_are_not() {
        assert_eq!(plain("a\u{1b}[2Jb\n"), "a\\u{1b}[2Jb\\n");
        assert_eq!(plain("größe.png"), "größe.png");
    }
}
