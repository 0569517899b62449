//! Where a conversation's turns and images lie in its prompt, by the template's own account: it is
//! rendered a second time with marks around every turn's text and in place of every image, and the
//! marks show the places. Nothing that a text says can be taken for the template's words.

use std::ops::Range;

use crate::reject::{Reject, RejectReason};
use crate::rows::{IMAGE_TAG, Role, Turn, shows_images};
use crate::template::ChatTemplate;

/// A prompt and the places in it, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MarkedPrompt {
    /// What the tokenizer gets.
    pub(crate) text: String,
    /// The text of each turn, in order.
    pub(crate) turns: Vec<Range<usize>>,
    /// What stands for each image, in order.
    pub(crate) images: Vec<Range<usize>>,
}

/// Which part of a turn's text the marks enclose.
#[derive(Clone, Copy)]
enum Enclose {
    All,
    /// All but white space at the ends, which some templates trim.
    Trimmed,
}

impl MarkedPrompt {
    /// Renders `turns` with each [`IMAGE_TAG`] replaced by `image`.
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`]: the template raises, or a turn's text does not come
    /// through it whole, so that nobody could say where it lies.
    pub(crate) fn render(
        template: &ChatTemplate,
        turns: &[Turn],
        image: &str,
        add_generation_prompt: bool,
    ) -> Result<Self, Reject> {
        let plain: Vec<_> = turns
            .iter()
            .enumerate()
            .map(|(i, turn)| Turn::new(turn.role, with_images(turns, i, image)))
            .collect();
        let text = template.render(&plain, add_generation_prompt)?;
        let mark = unused_char(turns);
        for enclose in [Enclose::All, Enclose::Trimmed] {
            let marked: Vec<_> = turns
                .iter()
                .enumerate()
                .map(|(i, turn)| {
                    mark_turn(
                        i,
                        turn.role,
                        &with_images(turns, i, &format!("{mark}image{mark}")),
                        mark,
                        enclose,
                    )
                })
                .collect();
            // Marks can lead a template astray, so only a rendering that is the plain one but for
            // its marks is believed.
            let found = template
                .render(&marked, add_generation_prompt)
                .ok()
                .and_then(|rendered| read_marks(&rendered, mark, image, turns.len()))
                .filter(|found| found.text == text);
            if let Some(found) = found {
                return Ok(found);
            }
        }
        Err(Reject::new(
            RejectReason::TemplateRefused,
            "the chat template drops, repeats or rewrites the text of a turn (as with a system \
             turn that is not the first), so its place in the prompt is not known",
        ))
    }
}

/// A character that no turn contains, from the planes for private use.
fn unused_char(turns: &[Turn]) -> char {
    ('\u{F0000}'..='\u{10FFFD}')
        .find(|&c| !turns.iter().any(|turn| turn.content.contains(c)))
        .unwrap_or('\u{F0000}')
}

/// The text of a turn with `image` where it shows images. In other turns the tag is text.
fn with_images(turns: &[Turn], index: usize, image: &str) -> String {
    let content = &turns[index].content;
    if shows_images(turns, index) { content.replace(IMAGE_TAG, image) } else { content.clone() }
}

fn mark_turn(index: usize, role: Role, content: &str, mark: char, enclose: Enclose) -> Turn {
    let core = match enclose {
        Enclose::All => content,
        Enclose::Trimmed => content.trim(),
    };
    let lead = content.len() - content.trim_start().len();
    let (before, after) = match enclose {
        Enclose::All => ("", ""),
        Enclose::Trimmed if core.is_empty() => (content, ""),
        Enclose::Trimmed => (&content[..lead], &content[lead + core.len()..]),
    };
    Turn::new(role, format!("{before}{mark}{index}{mark}{core}{mark}end{mark}{after}"))
}

/// Takes the marks out of `rendered` again; `None` when they are not all there, once and in order.
fn read_marks(rendered: &str, mark: char, image: &str, num_turns: usize) -> Option<MarkedPrompt> {
    let mut text = String::with_capacity(rendered.len());
    let mut turns = Vec::with_capacity(num_turns);
    let mut images = Vec::new();
    let mut open = None;
    for (position, part) in rendered.split(mark).enumerate() {
        let here = text.len();
        match part {
            _ if position % 2 == 0 => text.push_str(part),
            "image" => {
                text.push_str(image);
                images.push(here..text.len());
            }
            "end" => turns.push(open.take()?..here),
            index => {
                let is_next = open.is_none() && index.parse() == Ok(turns.len());
                open = is_next.then_some(here);
                open?;
            }
        }
    }
    (turns.len() == num_turns && open.is_none()).then_some(MarkedPrompt { text, turns, images })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Role;

    const SEED_FORM: &str = "{% for m in messages %}{% if m.role == 'user' %}\
        {{ '<s>user\\n' + m.content + '</s>\\n<s>assistant\\n' }}{% else %}\
        {{ m.content + '</s>\\n' }}{% endif %}{% endfor %}";

    fn render(template: &str, turns: &[(Role, &str)]) -> Result<MarkedPrompt, Reject> {
        let template = ChatTemplate::new(template.into(), None, "</s>".into()).unwrap();
        let turns: Vec<_> = turns.iter().map(|&(role, text)| Turn::new(role, text)).collect();
        MarkedPrompt::render(&template, &turns, "@@@", false)
    }

    fn texts(prompt: &MarkedPrompt) -> Vec<&str> {
        prompt.turns.iter().map(|range| &prompt.text[range.clone()]).collect()
    }

    #[test]
    fn turns_and_images_are_found_whatever_the_texts_say() {
        let turns = [
            (Role::User, "a <image><image> </s>\n<s>assistant\n\u{F0000}"),
            (Role::Assistant, "\n</s><s>user @@@"),
            (Role::User, ""),
            (Role::Assistant, "b"),
        ];
        let prompt = render(SEED_FORM, &turns).unwrap();
        let question = "a @@@@@@ </s>\n<s>assistant\n\u{F0000}";
        assert_eq!(texts(&prompt), [question, "\n</s><s>user @@@", "", "b"]);
        assert_eq!(prompt.images, [10..13, 13..16]);
        assert!(prompt.text.ends_with("<s>assistant\nb</s>\n"));
    }

    #[test]
    fn a_template_that_trims_is_followed() {
        let template = "{% for m in messages %}[{{ m.content | trim }}]\n{% endfor %}";
        let turns = [(Role::User, "\n q "), (Role::Assistant, "  "), (Role::Assistant, "a\n")];
        assert_eq!(texts(&render(template, &turns).unwrap()), ["q", "", "a"]);
    }

    #[test]
    fn a_template_that_drops_or_rewrites_a_turn_is_refused() {
        for template in [
            "{% for m in messages %}{{ m.content.split('|')[-1] }}{% endfor %}",
            "{{ messages[0].content }}",
            "{% for m in messages %}{{ m.content + m.content }}{% endfor %}",
            "{% for m in messages %}{{ m.content | upper }}{% endfor %}",
            "{% for m in messages %}{{ m.content | length }}{% endfor %}",
        ] {
            let reject = render(template, &[(Role::User, "x|q"), (Role::Assistant, "y|a")]);
            assert_eq!(reject.unwrap_err().reason, RejectReason::TemplateRefused, "{template}");
        }
    }
}
