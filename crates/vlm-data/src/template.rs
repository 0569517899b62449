//! Chat templates: the Jinja text that comes with a tokenizer, rendered as Hugging Face does.

use std::time::SystemTime;

use minijinja::{Environment, Error, ErrorKind, Value, context};

use crate::civil_time::CivilTime;
use crate::reject::{Reject, RejectReason};
use crate::rows::Turn;

const NAME: &str = "chat_template";

/// A compiled chat template.
#[derive(Debug)]
pub struct ChatTemplate {
    environment: Environment<'static>,
    bos_token: Option<String>,
    eos_token: String,
}

impl ChatTemplate {
    /// Compiles `source`. `bos_token` and `eos_token` are what the template sees by these names.
    ///
    /// # Errors
    /// The template's syntax, as text with its line.
    pub fn new(
        source: String,
        bos_token: Option<String>,
        eos_token: String,
    ) -> Result<Self, String> {
        let mut environment = Environment::new();
        environment.set_trim_blocks(true);
        environment.set_lstrip_blocks(true);
        environment
            .set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
            Err(Error::new(ErrorKind::InvalidOperation, message))
        });
        environment.add_function("strftime_now", |format: String| {
            CivilTime::from(SystemTime::now()).format(&format)
        });
        environment.add_filter("tojson", |value: Value| -> Result<String, Error> {
            serde_json::to_string(&value)
                .map_err(|e| Error::new(ErrorKind::BadSerialization, e.to_string()))
        });
        environment.add_template_owned(NAME, source).map_err(|e| explain(&e))?;
        Ok(Self { environment, bos_token, eos_token })
    }

    /// The prompt of `turns`; with `add_generation_prompt` the template opens the answer that is
    /// to be generated.
    ///
    /// # Errors
    /// [`RejectReason::TemplateRefused`]: the template raises, as many do on roles out of order.
    pub fn render(&self, turns: &[Turn], add_generation_prompt: bool) -> Result<String, Reject> {
        self.environment
            .get_template(NAME)
            .and_then(|template| {
                template.render(context! {
                    messages => turns,
                    add_generation_prompt,
                    bos_token => self.bos_token,
                    eos_token => self.eos_token,
                })
            })
            .map_err(|e| {
                Reject::new(
                    RejectReason::TemplateRefused,
                    format!("the chat template refuses the conversation: {}", explain(&e)),
                )
            })
    }
}

fn explain(error: &Error) -> String {
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    match error.detail() {
        Some(detail) => format!("{detail}{line}"),
        None => format!("{error}{line}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Role;

    fn render(source: &str, turns: &[Turn]) -> Result<String, Reject> {
        let template = ChatTemplate::new(source.into(), Some("<s>".into()), "</s>".into()).unwrap();
        template.render(turns, true)
    }

    #[test]
    fn blocks_are_trimmed_and_python_methods_known() {
        let source = "  {% for m in messages %}\n{{ bos_token + m['content'].strip() }}\n  \
                      {% endfor %}\n{{ m is defined }}{{ messages | tojson }}";
        assert_eq!(
            render(source, &[Turn::new(Role::User, " é ")]).unwrap(),
            "<s>é\nFalse[{\"role\":\"user\",\"content\":\" é \"}]"
        );
    }

    #[test]
    fn a_template_may_refuse_a_conversation() {
        let source = "{% if messages[0].role != 'user' %}{{ raise_exception('user first') }}\
                      {% endif %}";
        let reject = render(source, &[Turn::new(Role::Assistant, "a")]).unwrap_err();
        assert_eq!(reject.reason, RejectReason::TemplateRefused);
        assert!(reject.detail.contains("user first"), "{}", reject.detail);
    }

    #[test]
    fn bad_syntax_is_reported_with_its_line() {
        let error = ChatTemplate::new("a\n{% if %}".into(), None, String::new()).unwrap_err();
        assert!(error.contains("line 2"), "{error}");
    }
}
