//! Renders chat templates, the Jinja text that comes with a tokenizer, in the same way as Hugging
//! Face.

use std::collections::BTreeMap;

use chrono::format::StrftimeItems;
use chrono::{DateTime, Utc};
use minijinja::machinery::WhitespaceConfig;
use minijinja::{Environment, Error, ErrorKind, Value, context};
use serde::Serialize;

use crate::bounded_template::BoundedTemplate;
use crate::caught::caught;
use crate::generation_tag::replace_generation_tags;
use crate::limits::MAX_CONVERSATION_BYTES;
use crate::reject::{Reject, RejectReason};
use crate::rows::Role;
use crate::template_limits;

const NAME: &str = "chat_template";

/// A turn in the form that a template takes.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Message {
    pub(crate) role: Role,
    pub(crate) content: Content,
}

/// The content of a message: text, or a list of parts as in the processors of vision-language
/// models.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<Part>),
}

impl Content {
    /// Length of the text in bytes.
    fn num_bytes(&self) -> usize {
        let of_part = |part: &Part| match part {
            Part::Text { text } => text.len(),
            Part::Image => 0,
        };
        match self {
            Self::Text(text) => text.len(),
            Self::Parts(parts) => parts.iter().map(of_part).sum(),
        }
    }
}

/// A part of a message: `{"type": "text", "text": …}` or `{"type": "image"}`.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub(crate) enum Part {
    Text { text: String },
    Image,
}

/// What a template renders.
#[derive(Debug, Clone, Default)]
pub(crate) struct TemplateInput {
    pub(crate) messages: Vec<Message>,
    /// The functions that the assistant may call: a list of objects.
    pub(crate) tools: Option<serde_json::Value>,
}

/// A compiled chat template.
#[derive(Debug)]
pub(crate) struct ChatTemplate {
    environment: Environment<'static>,
    compiled: BoundedTemplate,
    special_tokens: BTreeMap<String, String>,
}

impl ChatTemplate {
    /// Compiles `source`. `special_tokens` are the tokenizer's special tokens by the names under
    /// which the template sees them, such as `eos_token`; other names are undefined.
    ///
    /// # Errors
    /// A syntax error of the template, with its line.
    pub(crate) fn new(
        source: &str,
        special_tokens: BTreeMap<String, String>,
    ) -> Result<Self, String> {
        let mut environment = Environment::new();
        template_limits::set_up(&mut environment);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| now(Utc::now(), &format));
        let whitespace = WhitespaceConfig {
            keep_trailing_newline: false,
            lstrip_blocks: true,
            trim_blocks: true,
        };
        // The compiled template refers to the source for as long as the program runs.
        let source: &'static str = replace_generation_tags(source).leak();
        let compiled = caught(|| BoundedTemplate::compile(NAME, source, whitespace))
            .map_err(|panic| unsupported(&panic))?
            .map_err(|e| explain(&e))?;
        environment.set_fuel(Some(compiled.max_steps()));
        Ok(Self { environment, compiled, special_tokens })
    }

    /// The prompt of `input`. With `add_generation_prompt` the template opens the answer that is
    /// to be generated.
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`]: the template raises an error, as many do for roles out of
    /// order, or it reaches one of the limits of [`template_limits`].
    /// [`RejectReason::InvalidRow`]: the conversation is too long.
    pub(crate) fn render(
        &self,
        input: &TemplateInput,
        add_generation_prompt: bool,
    ) -> Result<String, Reject> {
        let TemplateInput { messages, tools } = input;
        let bytes: usize = messages.iter().map(|message| message.content.num_bytes()).sum();
        check_length("the conversation has", bytes)?;
        let special_tokens = Value::from_serialize(&self.special_tokens);
        let root = context! {
            messages,
            add_generation_prompt,
            // Hugging Face always passes these two, and templates test whether they are none.
            tools,
            documents => (),
            ..special_tokens
        };
        let reject = |problem| Reject::new(RejectReason::TemplateRefused, problem);
        let refused =
            |e: &Error| reject(format!("the chat template raised an error: {}", explain(e)));
        let text = caught(|| self.compiled.render(&self.environment, root))
            .map_err(|panic| reject(format!("the chat template: {}", unsupported(&panic))))?
            .map_err(|e| refused(&e))?;
        let added = text.len().saturating_sub(bytes);
        if added > MAX_CONVERSATION_BYTES {
            let problem = format!("it adds {added} bytes to the conversation");
            return Err(refused(&template_limits::exceeded(&problem)));
        }
        check_length("with what the chat template adds, the conversation has", text.len())?;
        Ok(text)
    }
}

fn check_length(what_has: &str, bytes: usize) -> Result<(), Reject> {
    if bytes > MAX_CONVERSATION_BYTES {
        return Err(Reject::invalid_row(format!(
            "{what_has} {bytes} bytes of text; the limit is {MAX_CONVERSATION_BYTES}"
        )));
    }
    Ok(())
}

/// Python's `strftime` in UTC; an unknown code is left as it is.
fn now(time: DateTime<Utc>, format: &str) -> String {
    time.format_with_items(StrftimeItems::new_lenient(format)).to_string()
}

/// The message for a panic of the template engine.
fn unsupported(panic: &str) -> String {
    format!("it has a construct that the template engine does not support ({panic})")
}

fn explain(error: &Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    if let Some(limit) = template_limits::explain(error) {
        return limit + &line;
    }
    match error.detail() {
        Some(detail) => format!("{detail}{line}"),
        None => format!("{error}{line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(source: &str) -> Result<ChatTemplate, String> {
        ChatTemplate::new(source, BTreeMap::from([("bos_token".to_owned(), "<s>".to_owned())]))
    }

    fn render(source: &str, turns: &[(Role, &str)]) -> Result<String, Reject> {
        let message =
            |&(role, text): &(Role, &str)| Message { role, content: Content::Text(text.into()) };
        let messages = turns.iter().map(message).collect();
        compile(source).unwrap().render(&TemplateInput { messages, tools: None }, true)
    }

    #[test]
    fn dates_are_those_of_python() {
        // datetime.utcfromtimestamp(1709209805).strftime("%A %a %d %b %B %Y %y %m %H:%M:%S %%")
        let time = DateTime::from_timestamp(1_709_209_805, 0).unwrap();
        assert_eq!(
            now(time, "%A %a %d %b %B %Y %y %m %H:%M:%S %% %!"),
            "Thursday Thu 29 Feb February 2024 24 02 12:30:05 % %!"
        );
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_known() {
        let source = "  {% for m in messages %}\n{{ bos_token + m['content'].strip() }}\n  \
                      {% endfor %}\n{{ m is defined }}{{ messages | tojson }}";
        assert_eq!(
            render(source, &[(Role::User, " é ")]).unwrap(),
            "<s>é\nFalse[{\"role\": \"user\", \"content\": \" é \"}]"
        );
    }

    #[test]
    fn names_that_hugging_face_does_not_pass_are_undefined_and_two_are_none() {
        let source = "{{ pad_token }}{{ pad_token is defined }}{{ tools is none }}\
                      {{ documents is none }}";
        assert_eq!(render(source, &[]).unwrap(), "FalseTrueTrue");
    }

    #[test]
    fn generation_tags_print_nothing_and_loops_may_be_left() {
        let source = "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}\
                      {%- if m.role == 'user' %}{% continue %}{% endif %}\
                      {%- generation -%}  {{ m.content }}  {%- endgeneration %}\n!{% endfor %}";
        let turns = [(Role::User, "q"), (Role::Assistant, "a"), (Role::Assistant, "b")];
        assert_eq!(render(source, &turns).unwrap(), "a!");
    }

    #[test]
    fn a_template_may_refuse_a_conversation() {
        let source = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}\
                      {% endif %}";
        let reject = render(source, &[(Role::Assistant, "a")]).unwrap_err();
        assert_eq!(reject.reason, RejectReason::TemplateRefused);
        assert!(reject.detail.contains("user first"), "{}", reject.detail);
    }

    #[test]
    fn a_conversation_too_long_to_be_tokenized_is_refused_before_and_after_the_template() {
        let source = "{{ messages[0].content }}<s>";
        let longest = "x".repeat(MAX_CONVERSATION_BYTES - 3);
        let text = render(source, &[(Role::User, &longest)]).unwrap();
        assert_eq!(text.len(), MAX_CONVERSATION_BYTES);
        for (added, start) in [(1, "with what the chat template adds, "), (4, "the conversation")] {
            let content = longest.clone() + &"y".repeat(added);
            let reject = render(source, &[(Role::User, &content)]).unwrap_err();
            assert_eq!(reject.reason, RejectReason::InvalidRow);
            assert!(reject.detail.starts_with(start), "{}", reject.detail);
            let end = format!("the limit is {MAX_CONVERSATION_BYTES}");
            assert!(reject.detail.ends_with(&end), "{}", reject.detail);
        }
    }

    #[test]
    fn bad_syntax_is_reported_with_its_line() {
        let error = compile("a\n{% if %}").unwrap_err();
        assert!(error.contains("line 2"), "{error}");
    }

    #[test]
    fn a_panic_of_the_template_engine_is_an_error() {
        // Found by fuzzing: minijinja 2.24 expects a name after `as`.
        let error = compile("{% import 'x' as y() %}").unwrap_err();
        assert!(error.contains("does not support"), "{error}");
    }
}
