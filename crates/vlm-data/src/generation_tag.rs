//! Replaces `{% generation %}` tags in a chat template. Training libraries use them to find the
//! assistant's text; they print nothing. The template engine does not know them, so they are read
//! as a block without variables, which keeps the scope and the whitespace control that they have
//! elsewhere.

/// The template with each `generation` tag replaced by `with` and each `endgeneration` by
/// `endwith`. Comments, strings and raw blocks are not changed.
pub(crate) fn replace_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    let mut in_raw = false;
    while let Some(at) = rest.find('{') {
        out.push_str(&rest[..at]);
        rest = &rest[at..];
        let end = match rest.as_bytes().get(1) {
            Some(b'#') if !in_raw => rest.find("#}").map(|end| end + 2),
            Some(b'{') if !in_raw => end_of_code(rest, "}}"),
            Some(b'%') => end_of_code(rest, "%}"),
            _ => Some(1),
        };
        // An unclosed tag is an error that the engine reports with its line.
        let (tag, after) = rest.split_at(end.unwrap_or(rest.len()));
        rest = after;
        match tag.starts_with("{%").then(|| word_of(tag)) {
            Some("raw") => in_raw = true,
            Some("endraw") => in_raw = false,
            Some(word @ ("generation" | "endgeneration")) if !in_raw => {
                let block = if word == "generation" { "with" } else { "endwith" };
                out.push_str(&tag.replacen(word, block, 1));
                continue;
            }
            _ => {}
        }
        out.push_str(tag);
    }
    out + rest
}

/// Length of the tag at the start of `text`, including `close`, which does not count within a
/// string.
fn end_of_code(text: &str, close: &str) -> Option<usize> {
    let mut quote = None;
    let mut escaped = false;
    for (at, c) in text.char_indices().skip(2) {
        match quote {
            Some(_) if escaped => escaped = false,
            Some(_) if c == '\\' => escaped = true,
            Some(open) if c == open => quote = None,
            Some(_) => {}
            None if text[at..].starts_with(close) => return Some(at + close.len()),
            None if c == '"' || c == '\'' => quote = Some(c),
            None => {}
        }
    }
    None
}

/// The content of a block tag, without its whitespace control.
fn word_of(tag: &str) -> &str {
    let inside = tag.strip_prefix("{%").and_then(|tag| tag.strip_suffix("%}")).unwrap_or_default();
    inside.trim_start_matches(['-', '+']).trim_end_matches(['-', '+']).trim()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tags_outside_of_comments_strings_and_raw_blocks_are_replaced() {
        let source = "{%- generation %}{{ '{% generation %}' + \"%}\" }}{%endgeneration-%}\
                      {# {% generation %} #}{% raw %}{% generation %}{% endraw %}{ {% if x %}";
        assert_eq!(
            replace_generation_tags(source),
            "{%- with %}{{ '{% generation %}' + \"%}\" }}{%endwith-%}\
             {# {% generation %} #}{% raw %}{% generation %}{% endraw %}{ {% if x %}"
        );
        for unclosed in ["a {% generation", "{{ '", "{# x", "{"] {
            assert_eq!(replace_generation_tags(unclosed), unclosed);
        }
    }
}
