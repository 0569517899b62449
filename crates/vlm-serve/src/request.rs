//! The body of a request for a chat completion: what this server reads, ignores and refuses.
//!
//! A field that would change the answer and is not implemented is refused, unless it has the value
//! that changes nothing. Nothing here knows models or connections.

use serde_json::{Map, Value, json};
use vlm_data::{IMAGE_TAG, Role, Turn};
use vlm_model::sampling::Sampling;

use crate::api_error::ApiError;
use crate::data_url;
use crate::random::random_u64;
use crate::request_fields::{
    boolean, count, has_no_effect, max_tokens, number, object, refused, stop_texts,
};

/// Fields that do not concern the answer.
const WITHOUT_EFFECT: [&str; 8] = [
    "metadata", "parallel_tool_calls", "prompt_cache_key", "prompt_cache_retention",
    "safety_identifier", "service_tier", "store", "user",
];

/// A request for a chat completion.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    pub(crate) turns: Vec<Turn>,
    pub(crate) images: Vec<RequestImage>,
    pub(crate) sampling: Sampling,
    pub(crate) max_new_tokens: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) is_stream: bool,
    pub(crate) includes_usage: bool,
    /// What was ignored although it could matter to the client.
    pub(crate) warnings: Vec<String>,
}

/// An image of a request.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct RequestImage {
    /// Its part of the request, such as `messages[0].content[1]`.
    pub(crate) param: String,
    /// The encoded image.
    pub(crate) bytes: Vec<u8>,
}

impl ChatRequest {
    /// Reads the body of a request to the model with the name `model_name`.
    ///
    /// # Errors
    /// A field that is wrong or not supported; the error names it.
    pub(crate) fn parse(
        body: &[u8],
        model_name: &str,
        max_new_tokens: usize,
    ) -> Result<Self, ApiError> {
        let value: Value = serde_json::from_slice(body)
            .map_err(|e| ApiError::field("body", format!("expected a JSON object: {e}")))?;
        let Value::Object(fields) = value else {
            return Err(ApiError::field("body", "expected a JSON object"));
        };
        let mut request = Self {
            turns: Vec::new(),
            images: Vec::new(),
            sampling: Sampling { seed: random_u64(), ..Sampling::default() },
            max_new_tokens,
            stop: Vec::new(),
            is_stream: false,
            includes_usage: false,
            warnings: Vec::new(),
        };
        for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
            request.read_field(name, value, model_name)?;
        }
        request.max_new_tokens = max_tokens(&fields, max_new_tokens)?;
        if fields.get("stream_options").is_some_and(|v| !v.is_null()) && !request.is_stream {
            return Err(ApiError::field("stream_options", "is allowed only if `stream` is true"));
        }
        if request.turns.is_empty() {
            return Err(ApiError::field("messages", "expected a list with at least one message"));
        }
        request.sampling.validate().map_err(|error| {
            let message = error.to_string();
            // The messages of `Sampling::validate` begin with the name of the setting.
            let name = message.split('`').nth(1).unwrap_or("body").to_owned();
            ApiError::field(name, message)
        })?;
        Ok(request)
    }

    fn read_field(&mut self, name: &str, value: &Value, model_name: &str) -> Result<(), ApiError> {
        match name {
            "messages" => self.read_messages(value)?,
            "model" => match value.as_str() {
                Some(found) if found == model_name => {}
                Some(found) => return Err(no_such_model(found, model_name)),
                None => return Err(ApiError::field(name, "expected a text")),
            },
            "temperature" => self.sampling.temperature = number(name, value)?,
            "top_p" => self.sampling.top_p = number(name, value)?,
            "repetition_penalty" => self.sampling.repetition_penalty = number(name, value)?,
            "top_k" => self.sampling.top_k = count(name, value)?,
            "seed" => match value.as_i64().map(|seed| seed as u64).or(value.as_u64()) {
                Some(seed) => self.sampling.seed = seed,
                None => return Err(ApiError::field(name, "expected a whole number")),
            },
            "stop" => self.stop = stop_texts(value)?,
            "stream" => self.is_stream = boolean(name, value)?,
            "stream_options" => self.read_stream_options(value)?,
            "max_tokens" | "max_completion_tokens" => {} // `max_tokens` compares the two.
            _ if WITHOUT_EFFECT.contains(&name) || has_no_effect(name, value) => {}
            _ => return Err(refused(name, value)),
        }
        Ok(())
    }

    fn read_stream_options(&mut self, value: &Value) -> Result<(), ApiError> {
        for (key, value) in object("stream_options", value)? {
            let name = format!("stream_options.{key}");
            match key.as_str() {
                "include_usage" => self.includes_usage = boolean(&name, value)?,
                // Padding against the observation of lengths in encrypted connections.
                "include_obfuscation" => {}
                _ => return Err(ApiError::unsupported(name, "is not supported by this server")),
            }
        }
        Ok(())
    }

    fn read_messages(&mut self, value: &Value) -> Result<(), ApiError> {
        let messages = value.as_array();
        let messages = messages.ok_or_else(|| ApiError::field("messages", "expected a list"))?;
        for (index, message) in messages.iter().enumerate() {
            self.read_message(&format!("messages[{index}]"), message)?;
        }
        Ok(())
    }

    fn read_message(&mut self, param: &str, message: &Value) -> Result<(), ApiError> {
        let fields = object(param, message)?;
        let role = match fields.get("role").and_then(Value::as_str) {
            Some("system" | "developer") => Role::System,
            Some("user") => Role::User,
            Some("assistant") => Role::Assistant,
            found => {
                let found = found.map_or("none".to_owned(), |role| format!("{role:?}"));
                let expected = "expected \"system\", \"user\" or \"assistant\"";
                let problem = format!("{expected}, found {found}");
                return Err(ApiError::field(format!("{param}.role"), problem));
            }
        };
        let is_empty = |value: &Value| value.is_null() || *value == json!([]);
        if let Some(key) = fields.iter().find_map(|(key, value)| {
            (!matches!(key.as_str(), "role" | "content") && !is_empty(value)).then_some(key)
        }) {
            let param = format!("{param}.{key}");
            return Err(ApiError::unsupported(param, "is not supported by this server"));
        }
        let param = format!("{param}.content");
        let content = match fields.get("content") {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Array(parts)) => self.read_parts(&param, parts, role)?,
            _ => return Err(ApiError::field(param, "expected a text or a list of parts")),
        };
        self.turns.push(Turn::new(role, content));
        let turns = &self.turns;
        if vlm_data::num_image_tags(turns) != self.images.len() {
            let problem = format!(
                "the text contains {IMAGE_TAG}, which stands for an image: send the image as a part \
                 of the type `image_url` instead"
            );
            return Err(ApiError::field(param, problem));
        }
        Ok(())
    }

    /// The text of a message, with an [`IMAGE_TAG`] for each image. In a message with one text, the
    /// images come before it, as in the rows that models are trained with; among several texts they
    /// stay where they are.
    fn read_parts(&mut self, param: &str, parts: &[Value], role: Role) -> Result<String, ApiError> {
        let mut lines = Vec::new();
        for (index, part) in parts.iter().enumerate() {
            let param = format!("{param}[{index}]");
            let fields = object(&param, part)?;
            match fields.get("type").and_then(Value::as_str) {
                Some("text") => match fields.get("text").and_then(Value::as_str) {
                    Some(text) => lines.push(text.to_owned()),
                    None => return Err(ApiError::field(param + ".text", "expected a text")),
                },
                Some("image_url") if role == Role::User => {
                    let bytes = self.read_image(&param, fields)?;
                    self.images.push(RequestImage { param, bytes });
                    lines.push(IMAGE_TAG.to_owned());
                }
                Some("image_url") => {
                    let problem = "images are allowed only in messages with the role \"user\"";
                    return Err(ApiError::field(param, problem));
                }
                found => {
                    let found = found.map_or("none".to_owned(), |kind| format!("{kind:?}"));
                    let problem = format!("expected \"text\" or \"image_url\", found {found}");
                    return Err(ApiError::field(param + ".type", problem));
                }
            }
        }
        if lines.is_empty() {
            return Err(ApiError::field(param, "expected at least one part"));
        }
        let num_texts = lines.iter().filter(|line| *line != IMAGE_TAG).count();
        if num_texts == 1 {
            lines.sort_by_key(|line| line != IMAGE_TAG);
        }
        Ok(lines.join("\n"))
    }

    fn read_image(
        &mut self,
        param: &str,
        fields: &Map<String, Value>,
    ) -> Result<Vec<u8>, ApiError> {
        let param = format!("{param}.image_url");
        let image = fields.get("image_url").unwrap_or(&Value::Null);
        let image = object(&param, image)?;
        let detail = image.get("detail").filter(|value| !value.is_null());
        match detail.map(|value| value.as_str().unwrap_or_default()) {
            None | Some("auto") => {}
            Some(detail @ ("low" | "high" | "original")) => self.warnings.push(format!(
                "{param}.detail: {detail:?} has no effect; the model reads every image in one size"
            )),
            Some(_) => {
                let problem = "expected \"auto\", \"low\" or \"high\"";
                return Err(ApiError::field(param + ".detail", problem));
            }
        }
        let url = image.get("url").and_then(Value::as_str);
        let param = param + ".url";
        let url = url.ok_or_else(|| ApiError::field(&param, "expected a data URL"))?;
        data_url::decode(url).map_err(|problem| ApiError::field(param, problem))
    }
}

/// The error for a model that this server does not have.
pub(crate) fn no_such_model(found: &str, model_name: &str) -> ApiError {
    let found = vlm_display::shorten(found, 100);
    let message = format!("model: there is no model {found:?}; this server has {model_name:?}");
    ApiError::new(hyper::StatusCode::NOT_FOUND, "model_not_found", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(body: &Value) -> Result<ChatRequest, ApiError> {
        ChatRequest::parse(body.to_string().as_bytes(), "out", 100)
    }

    /// A request with these fields besides a message.
    fn with(fields: Value) -> Value {
        let mut body = json!({"messages": [{"role": "user", "content": "Hi"}]});
        body.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        body
    }

    fn image() -> Value {
        json!({"type": "image_url", "image_url": {"url": "data:image/png;base64,aGk="}})
    }

    fn text(text: &str) -> Value {
        json!({"type": "text", "text": text})
    }

    #[test]
    fn every_field_of_a_request_is_read() {
        let request = parse(&with(json!({
            "model": "out", "temperature": 0.5, "top_p": 0.9, "top_k": 5, "seed": -1,
            "repetition_penalty": 1.5, "max_completion_tokens": 7, "max_tokens": 7,
            "stop": ["a", "b"], "stream": true, "stream_options": {"include_usage": true},
            "user": "me", "n": 1, "presence_penalty": 0, "tools": null, "logprobs": false,
            "response_format": {"type": "text"},
        })))
        .unwrap();
        let expected = Sampling {
            temperature: 0.5,
            top_p: 0.9,
            top_k: 5,
            seed: u64::MAX,
            repetition_penalty: 1.5,
        };
        assert_eq!(request.sampling, expected);
        assert_eq!((request.max_new_tokens, request.stop.len()), (7, 2));
        assert!(request.is_stream && request.includes_usage && request.warnings.is_empty());
        assert_eq!(parse(&with(json!({}))).unwrap().max_new_tokens, 100);
    }

    #[test]
    fn images_come_before_a_single_text_and_stay_among_several() {
        let content = |parts: Value| {
            let request = parse(&json!({"messages": [{"role": "user", "content": parts}]}));
            request.unwrap().turns[0].content.clone()
        };
        assert_eq!(content(json!([text("What?"), image()])), "<image>\nWhat?");
        assert_eq!(content(json!([text("A:"), image(), text("B?")])), "A:\n<image>\nB?");
        assert_eq!(content(json!([image()])), "<image>");
        let conversation = parse(&json!({"messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "user", "content": [image(), text("What?")]},
            {"role": "assistant", "content": "An <image>.", "refusal": null, "tool_calls": []},
            {"role": "user", "content": [image(), text("And this?")]},
        ]}))
        .unwrap();
        let params: Vec<&str> = conversation.images.iter().map(|i| i.param.as_str()).collect();
        assert_eq!(params, ["messages[1].content[0]", "messages[3].content[0]"]);
        assert_eq!(conversation.turns[0].role, Role::System);
    }

    #[test]
    fn what_has_no_effect_on_the_image_is_a_warning() {
        let mut part = image();
        part["image_url"]["detail"] = json!("high");
        let request = parse(&json!({"messages": [{"role": "user", "content": [part]}]})).unwrap();
        assert!(request.warnings[0].starts_with("messages[0].content[0].image_url.detail"));
    }

    #[test]
    fn wrong_and_unsupported_fields_are_named() {
        let message = |content: Value| json!({"messages": [{"role": "user", "content": content}]});
        let cases = [
            (json!([]), "body"),
            (json!({}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": [{"role": "robot", "content": "x"}]}), "messages[0].role"),
            (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
            (message(json!([])), "messages[0].content"),
            (message(json!("an <image>")), "messages[0].content"),
            (message(json!([{"type": "video"}])), "messages[0].content[0].type"),
            (message(json!([text("a"), {"type": "text"}])), "messages[0].content[1].text"),
            (
                message(json!([{"type": "image_url", "image_url": {"url": "http://a/b.png"}}])),
                "messages[0].content[0].image_url.url",
            ),
            (
                json!({"messages": [{"role": "user", "content": "x", "name": "me"}]}),
                "messages[0].name",
            ),
            (
                json!({"messages": [{"role": "system", "content": [image()]}]}),
                "messages[0].content[0]",
            ),
            (with(json!({"n": 2})), "n"),
            (with(json!({"temperature": -1})), "temperature"),
            (with(json!({"temperature": "hot"})), "temperature"),
            (with(json!({"top_p": 0})), "top_p"),
            (with(json!({"seed": 0.5})), "seed"),
            (with(json!({"max_tokens": 0})), "max_tokens"),
            (with(json!({"max_tokens": 101})), "max_tokens"),
            (with(json!({"max_tokens": 5, "max_completion_tokens": 6})), "max_completion_tokens"),
            (with(json!({"stop": ["a", "b", "c", "d", "e"]})), "stop"),
            (with(json!({"stop": ""})), "stop"),
            (with(json!({"stream_options": {"include_usage": true}})), "stream_options"),
            (with(json!({"logprobs": true})), "logprobs"),
            (with(json!({"response_format": {"type": "json_object"}})), "response_format"),
            (with(json!({"frequency_penalty": 0.5})), "frequency_penalty"),
            (with(json!({"guided_json": {}})), "guided_json"),
        ];
        for (body, param) in cases {
            let error = parse(&body).unwrap_err();
            assert_eq!(error.status, 400, "{body}");
            let error = &error.json()["error"];
            assert_eq!(error["param"], param, "{body}: {error}");
            assert!(error["message"].as_str().unwrap().starts_with(param), "{error}");
        }
        let other = parse(&with(json!({"model": "gpt"}))).unwrap_err();
        assert_eq!(
            (other.status.as_u16(), &other.json()["error"]["code"]),
            (404, &json!("model_not_found"))
        );
    }
}
