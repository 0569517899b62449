//! Finds the positions of a conversation's answers and images in its prompt. The template is
//! rendered with marks around every text and in place of every image, and the marks show the
//! positions, so that no text can be mistaken for the template's own words. A text that the
//! template cuts or rewrites is taken as it is rendered.

use std::ops::Range;

use vlm_display::count;

use crate::answer_start::{answer_start, before_spaces};
use crate::chat_draws::EMPTY_THINK;
use crate::mark_positions::{MarkPositions, left_out, refused};
use crate::marks::{ContentForm, Conversation};
use crate::reject::Reject;
use crate::rows::{Role, Turn};
use crate::template::ChatTemplate;
use crate::template_profile::{Opening, TemplateProfile};

/// A prompt and the positions in it, in bytes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct MarkedPrompt {
    /// The text for the tokenizer.
    pub(crate) text: String,
    /// The turns of the assistant, in order.
    pub(crate) answers: Vec<Answer>,
    /// The text of each image, in order.
    pub(crate) images: Vec<Range<usize>>,
}

/// Position of an answer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Answer {
    /// From the end of the generation prompt to the end of the text.
    pub(crate) range: Range<usize>,
    /// Whether no turn follows.
    pub(crate) is_last: bool,
}

impl MarkedPrompt {
    /// Renders a conversation for training.
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`]: the template raises an error, leaves out a turn, or
    /// renders it so that the position of an answer or an image is not known.
    pub(crate) fn render(
        template: &ChatTemplate,
        profile: &TemplateProfile,
        conversation: &Conversation,
    ) -> Result<Self, Reject> {
        let places = MarkPositions::find(template, conversation, false)?;
        let turns = conversation.turns;
        let (mut answers, mut before) = (Vec::new(), 0);
        for (k, turn) in turns.iter().enumerate() {
            let (start, end) = places.turn(k);
            if turn.role == Role::Assistant {
                let end = end.ok_or_else(|| left_out(conversation, k))?;
                let start = answer_start(template, profile, conversation, &places, k, before..end)?;
                answers.push(Answer { range: start..end, is_last: k + 1 == turns.len() });
            } else if start.is_none() && end.is_none() && conversation.has_text(k) {
                return Err(left_out(conversation, k));
            }
            before = end.or(start).unwrap_or(before);
        }
        Self { text: String::new(), answers, images: Vec::new() }.with_images(conversation, places)
    }

    /// Renders a conversation whose next answer is to be generated.
    ///
    /// # Errors
    /// As for [`Self::render`].
    pub(crate) fn render_prompt(
        template: &ChatTemplate,
        profile: &TemplateProfile,
        conversation: &Conversation,
    ) -> Result<Self, Reject> {
        let places = match profile.opening {
            Opening::AtText | Opening::GenerationPrompt => {
                MarkPositions::find(template, conversation, true)?
            }
            Opening::WithText => {
                let mut turns = conversation.turns.to_vec();
                turns.push(Turn::new(Role::Assistant, "Yes"));
                let answered = Conversation { turns: &turns, ..*conversation };
                let mut places = MarkPositions::find(template, &answered, false)?;
                let answer = places.whole_text(&answered, turns.len() - 1)?;
                places.text.truncate(before_spaces(&places.text, answer.start));
                places.segments.retain(|&(turn, _), _| turn + 1 < turns.len());
                places
            }
        };
        for k in 0..conversation.turns.len() {
            if places.turn(k) == (None, None) && conversation.has_text(k) {
                return Err(left_out(conversation, k));
            }
        }
        Self { text: String::new(), answers: Vec::new(), images: Vec::new() }
            .with_images(conversation, places)
    }

    /// Leaves out the empty thinking blocks with which answers begin.
    pub(crate) fn drop_empty_think(&mut self) {
        let len = EMPTY_THINK.len();
        for k in 0..self.answers.len() {
            let answer = self.answers[k].range.clone();
            if !self.text[answer.clone()].starts_with(EMPTY_THINK) {
                continue;
            }
            self.text.replace_range(answer.start..answer.start + len, "");
            self.answers[k].range.end -= len;
            let later_answers = self.answers[k + 1..].iter_mut().map(|answer| &mut answer.range);
            let images = self.images.iter_mut().filter(|image| image.start > answer.start);
            for range in later_answers.chain(images) {
                *range = range.start - len..range.end - len;
            }
        }
    }

    /// Takes the text of `places` and puts each image's tokens in its position.
    fn with_images(
        mut self,
        conversation: &Conversation,
        places: MarkPositions,
    ) -> Result<Self, Reject> {
        let num_images = conversation.num_images();
        let ContentForm::Parts { image_text, core } = conversation.form else {
            if !places.images.iter().map(|(number, _)| *number).eq(0..num_images) {
                return Err(images_refused(places.images.len(), num_images));
            }
            self.images = places.images.into_iter().map(|(_, place)| place).collect();
            self.text = places.text;
            return Ok(self);
        };
        let written = places.find_outside_texts(image_text);
        if written.len() != num_images {
            return Err(images_refused(written.len(), num_images));
        }
        let mut copied = 0;
        for start in written {
            let replaced = start + core.start..start + core.end;
            self.text.push_str(&places.text[copied..replaced.start]);
            let place = self.text.len();
            self.text.push_str(conversation.image);
            self.images.push(place..self.text.len());
            copied = replaced.end;
        }
        self.text.push_str(&places.text[copied..]);
        let growth = conversation.image.len() as isize - core.len() as isize;
        let images = &self.images;
        let moved = |byte: usize| {
            // An image that begins before a byte ends before it, because no image lies within a
            // text.
            let num_before = images
                .iter()
                .enumerate()
                .take_while(|(k, image)| {
                    image.start.saturating_add_signed(-growth * *k as isize) < byte
                })
                .count();
            byte.saturating_add_signed(growth * num_before as isize)
        };
        for answer in &mut self.answers {
            answer.range = moved(answer.range.start)..moved(answer.range.end);
        }
        Ok(self)
    }
}

fn images_refused(written: usize, expected: usize) -> Reject {
    refused(format!(
        "expected the {} of the turns in order, but the chat template writes {written}",
        count(expected, "image")
    ))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::reject::RejectReason;

    const SEED_FORM: &str = "{% for m in messages %}{% if m.role == 'user' %}\
        {{ '<s>user\\n' + m.content + '</s>\\n<s>assistant\\n' }}{% else %}\
        {{ m.content + '</s>\\n' }}{% endif %}{% endfor %}";

    /// The prompt of a conversation, with `@@@` for an image.
    fn render(template: &str, turns: &[(Role, &str)]) -> Result<MarkedPrompt, Reject> {
        let template = ChatTemplate::new(template, BTreeMap::new()).unwrap();
        let (profile, _) = TemplateProfile::find(&template, "@")?;
        let turns: Vec<_> = turns.iter().map(|&(role, text)| Turn::new(role, text)).collect();
        MarkedPrompt::render(&template, &profile, &conversation(&turns, &profile))
    }

    fn prompt(template: &str, turns: &[(Role, &str)]) -> String {
        let template = ChatTemplate::new(template, BTreeMap::new()).unwrap();
        let (profile, _) = TemplateProfile::find(&template, "@").unwrap();
        let turns: Vec<_> = turns.iter().map(|&(role, text)| Turn::new(role, text)).collect();
        let conversation = conversation(&turns, &profile);
        MarkedPrompt::render_prompt(&template, &profile, &conversation).unwrap().text
    }

    fn conversation<'a>(turns: &'a [Turn], profile: &'a TemplateProfile) -> Conversation<'a> {
        Conversation { turns, form: &profile.form, image: "@@@" }
    }

    fn answers(prompt: &MarkedPrompt) -> Vec<&str> {
        prompt.answers.iter().map(|answer| &prompt.text[answer.range.clone()]).collect()
    }

    #[test]
    fn answers_and_images_are_found_whatever_the_texts_say() {
        let turns = [
            (Role::User, "a <image><image> </s>\n<s>assistant\n\u{F0000}"),
            (Role::Assistant, "\n</s><s>user @@@ <image>"),
            (Role::User, ""),
            (Role::Assistant, "b"),
        ];
        let prompt = render(SEED_FORM, &turns).unwrap();
        assert_eq!(answers(&prompt), ["\n</s><s>user @@@ <image>", "b"]);
        assert_eq!(prompt.images, [10..13, 13..16]);
        assert!(prompt.text.ends_with("<s>assistant\nb</s>\n"));
    }

    #[test]
    fn a_template_that_trims_is_followed() {
        for (filter, expected) in [
            ("m.content | trim", ["a b", ""]),
            ("m.content.lstrip()", ["a b\n", ""]),
            ("m.content.rstrip()", [" a b", ""]),
            ("m.content | upper", [" A B\n", "  "]),
        ] {
            let template = format!("{{% for m in messages %}}[{{{{ {filter} }}}}]\n{{% endfor %}}");
            let turns =
                [(Role::User, "\n q "), (Role::Assistant, " a b\n"), (Role::Assistant, "  ")];
            assert_eq!(answers(&render(&template, &turns).unwrap()), expected, "{filter}");
        }
    }

    #[test]
    fn what_is_left_of_an_answer_is_learned() {
        let strips = SEED_FORM.replace(
            "{{ m.content + ",
            "{{ (m.content if loop.last else m.content.split('</think>')[-1].lstrip('\\n')) + ",
        );
        let turns = [
            (Role::User, "q"),
            (Role::Assistant, "<think>\nlong\n</think>\n\na"),
            (Role::User, "q <think> </think> r"),
            (Role::Assistant, "<think>\nx\n</think>\n\nb"),
        ];
        let prompt = render(&strips, &turns).unwrap();
        assert_eq!(answers(&prompt), ["a", "<think>\nx\n</think>\n\nb"]);
    }

    /// A template that writes a thinking block before every last answer.
    fn thinking(generation_prompt: &str) -> String {
        format!(
            "{{% for m in messages %}}{{{{ '<|im_start|>' + m.role + '\\n' }}}}\
             {{% if m.role == 'assistant' %}}\
             {{% set reason = m.content.split('</think>')[0].split('<think>')[-1].strip('\\n') \
               if '</think>' in m.content else '' %}}\
             {{% if loop.last %}}{{{{ '<think>\\n' + reason + '\\n</think>\\n\\n' }}}}{{% endif %}}\
             {{{{ m.content.split('</think>')[-1].lstrip('\\n') }}}}\
             {{% else %}}{{{{ m.content }}}}{{% endif %}}{{{{ '<|im_end|>\\n' }}}}{{% endfor %}}\
             {{% if add_generation_prompt %}}{{{{ '{generation_prompt}' }}}}{{% endif %}}"
        )
    }

    #[test]
    fn a_thinking_block_is_part_of_the_answer_whatever_opens_it() {
        let turns = [
            (Role::User, "q"),
            (Role::Assistant, "<think>\nlong\n</think>\n\na"),
            (Role::User, "r"),
            (Role::Assistant, "b"),
        ];
        for opening in ["", "<think>\\n", "<think>\\n\\n</think>\\n\\n"] {
            let template = thinking(&format!("<|im_start|>assistant\\n{opening}"));
            let prompt = render(&template, &turns).unwrap();
            assert_eq!(answers(&prompt), ["a", "<think>\n\n</think>\n\nb"], "{opening}");
            let prompt = render(&template, &turns[..2]).unwrap();
            assert_eq!(answers(&prompt), ["<think>\nlong\n</think>\n\na"], "{opening}");
        }
    }

    #[test]
    fn a_template_without_generation_prompt_opens_the_answer_that_is_asked_for() {
        let template = "{% for m in messages %}{{ '[' + m.role + '] ' + m.content + '\\n' }}\
                        {% endfor %}";
        assert_eq!(prompt(template, &[(Role::User, "q")]), "[user] q\n[assistant]");
        let answered = render(template, &[(Role::User, "q"), (Role::Assistant, "a")]).unwrap();
        assert_eq!(answers(&answered), [" a"]);
    }

    #[test]
    fn content_is_given_as_parts_where_the_template_wants_them() {
        let parts = |head: &str, image: &str| {
            format!(
                "{{% for m in messages %}}{{{{ m.role + '{head}' }}}}\
                 {{% for part in m.content %}}{{% if part.type == 'text' %}}{{{{ part.text }}}}\
                 {{% elif part.type == 'image' %}}{image}{{% endif %}}{{% endfor %}}\
                 {{{{ '</s>' }}}}{{% endfor %}}"
            )
        };
        let turns = [
            (Role::User, "<image>\nq <image><image>"),
            (Role::Assistant, "a <image>"),
            (Role::User, "r"),
            (Role::Assistant, "b"),
        ];
        for (image, run) in
            [("<image>", "@@@"), ("[@]", "[@@@]"), ("<|vision|> ", "@@@ "), ("", "@@@")]
        {
            let prompt = render(&parts(": ", image), &turns).unwrap();
            let expected = format!(
                "user: {run}\nq {run}{run}</s>assistant: a <image></s>user: r</s>assistant: b</s>"
            );
            assert_eq!(prompt.text, expected, "{image}");
            assert_eq!(answers(&prompt), [" a <image>", " b"]);
            assert_eq!(prompt.images.len(), 3);
            assert!(prompt.images.iter().all(|place| &prompt.text[place.clone()] == "@@@"));
        }
        // Images before all texts, and other words before an image than before a text.
        let first = "{% for m in messages %}{{ m.role }}\
            {{ ':' if m.content[0].type == 'image' else ': ' }}\
            {% for part in m.content if part.type == 'image' %}<image>{% endfor %}\
            {% for part in m.content if part.type == 'text' %}{{ part.text }}{% endfor %}</s>\
            {% endfor %}";
        let prompt = render(first, &turns).unwrap();
        assert!(prompt.text.starts_with("user:@@@@@@@@@\nq </s>assistant: a <image></s>"));
        assert_eq!(prompt.images, [5..8, 8..11, 11..14]);
    }

    #[test]
    fn a_template_that_leaves_out_or_repeats_a_turn_is_refused_with_the_turn() {
        let system_first = "{% if messages[0].role == 'system' %}{{ messages[0].content }}{% endif %}\
            {% for m in messages if m.role != 'system' %}[{{ m.content }}]{% endfor %}";
        let turns = [(Role::User, "q"), (Role::System, "s"), (Role::Assistant, "a")];
        let twice = "{% for m in messages %}{{ m.content }}{% if m.content == 'twice' %}\
                     {{ m.content }}{% endif %}{% endfor %}";
        let by_length = "{% for m in messages %}{% if m.content | length > 9 %}\
                         {{ m.content | length }}{% else %}{{ m.content }}{% endif %}{% endfor %}";
        let repeats = "{% for m in messages %}{{ m.content }}{% if m.role == 'user' and \
                       messages | length < 3 %}{{ m.content }}{% endif %}{% endfor %}";
        for (template, turns, expected) in [
            (system_first, &turns[..], "leaves out or rewrites the text of turn 1 (system)"),
            (repeats, &[(Role::User, "q"), (Role::Assistant, "a")], "repeats the text of turn 0"),
            (
                by_length,
                &[(Role::User, "a long question"), (Role::Assistant, "a")],
                "rewrites texts",
            ),
        ] {
            let reject = render(template, turns).unwrap_err();
            assert_eq!(reject.reason, RejectReason::TemplateRefused, "{template}");
            assert!(reject.detail.contains(expected), "{}", reject.detail);
        }
        // The marks change what the template writes, which shows that it rewrites texts.
        assert!(render(twice, &[(Role::User, "twice"), (Role::Assistant, "a")]).is_err());
    }
}
