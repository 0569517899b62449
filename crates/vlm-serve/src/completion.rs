//! Answers in OpenAI's form: one JSON object, or a stream of server-sent events.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::body::Body;
use axum::response::Response;
use hyper::body::{Bytes, Frame};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::api_error::ApiError;
use crate::random::random_u64;
use crate::scheduler::{Event, Finish};

/// A proxy may close a connection on which nothing is sent for a minute. A comment is sent this
/// often.
const COMMENT_INTERVAL: Duration = Duration::from_secs(15);

/// What is the same in all parts of an answer.
#[derive(Debug)]
pub(crate) struct Completion {
    id: String,
    created: u64,
    pub(crate) model: String,
    pub(crate) num_prompt_tokens: usize,
    pub(crate) warnings: Vec<String>,
}

/// Seconds since 1970.
pub(crate) fn unix_time() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

impl Completion {
    pub(crate) fn new(model: String, num_prompt_tokens: usize, warnings: Vec<String>) -> Self {
        let id = format!("chatcmpl-{:016x}{:016x}", random_u64(), random_u64());
        Self { id, created: unix_time(), model, num_prompt_tokens, warnings }
    }

    /// Waits for the whole answer.
    ///
    /// # Errors
    /// It cannot be completed.
    pub(crate) async fn whole(
        self,
        mut events: UnboundedReceiver<Event>,
    ) -> Result<Response, ApiError> {
        let mut content = String::new();
        let finish = loop {
            match events.recv().await {
                Some(Event::Text(text)) => content += &text,
                Some(Event::Done(finish)) => break finish,
                Some(Event::Failed(error)) => return Err(error),
                None => return Err(no_end()),
            }
        };
        let mut body = self.object("chat.completion");
        body["choices"] = json!([{
            "index": 0,
            "message": {"role": "assistant", "content": content, "refusal": null},
            "logprobs": null,
            "finish_reason": finish.reason,
        }]);
        body["usage"] = self.usage(finish);
        Ok(json_response(&body))
    }

    /// An answer that is sent while it is generated.
    pub(crate) fn stream(self, events: UnboundedReceiver<Event>, includes_usage: bool) -> Response {
        let mut comments = interval_at(Instant::now() + COMMENT_INTERVAL, COMMENT_INTERVAL);
        comments.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut stream = EventStream {
            completion: self,
            events,
            includes_usage,
            comments,
            ready: VecDeque::new(),
            has_ended: false,
        };
        stream.push_delta(&json!({"role": "assistant", "content": ""}), None);
        let mut response = Response::new(Body::new(stream));
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        // For nginx, which otherwise collects the events before it passes them on.
        headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        response
    }

    fn object(&self, kind: &str) -> Value {
        let mut object = json!({
            "id": self.id, "object": kind, "created": self.created, "model": self.model,
        });
        if !self.warnings.is_empty() {
            object["warnings"] = json!(self.warnings);
        }
        object
    }

    fn usage(&self, finish: Finish) -> Value {
        json!({
            "prompt_tokens": self.num_prompt_tokens,
            "completion_tokens": finish.num_tokens,
            "total_tokens": self.num_prompt_tokens + finish.num_tokens,
        })
    }
}

/// A response with a JSON body.
pub(crate) fn json_response(value: &Value) -> Response {
    let mut response = Response::new(Body::from(value.to_string()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// The answer's channel was closed before its end.
fn no_end() -> ApiError {
    ApiError::internal("the answer ended unexpectedly")
}

/// The body of a streamed answer. When the client leaves, it is dropped with its channel, by which
/// the scheduler notices.
struct EventStream {
    completion: Completion,
    events: UnboundedReceiver<Event>,
    includes_usage: bool,
    comments: Interval,
    ready: VecDeque<Bytes>,
    has_ended: bool,
}

impl EventStream {
    fn push(&mut self, value: &Value) {
        self.ready.push_back(format!("data: {value}\n\n").into());
    }

    fn push_delta(&mut self, delta: &Value, finish_reason: Option<&str>) {
        let mut chunk = self.completion.object("chat.completion.chunk");
        // Once is enough.
        self.completion.warnings.clear();
        chunk["choices"] = json!([{
            "index": 0, "delta": delta, "logprobs": null, "finish_reason": finish_reason,
        }]);
        if self.includes_usage {
            chunk["usage"] = Value::Null;
        }
        self.push(&chunk);
    }

    fn push_event(&mut self, event: Option<Event>) {
        self.has_ended = !matches!(event, Some(Event::Text(_)));
        match event {
            Some(Event::Text(text)) => self.push_delta(&json!({"content": text}), None),
            Some(Event::Done(finish)) => {
                self.push_delta(&json!({}), Some(finish.reason));
                if self.includes_usage {
                    let mut chunk = self.completion.object("chat.completion.chunk");
                    chunk["choices"] = json!([]);
                    chunk["usage"] = self.completion.usage(finish);
                    self.push(&chunk);
                }
                self.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
            }
            Some(Event::Failed(error)) => self.push(&error.json()),
            None => self.push(&no_end().json()),
        }
    }
}

impl hyper::body::Body for EventStream {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            if self.has_ended {
                return Poll::Ready(None);
            }
            if let Poll::Ready(event) = self.events.poll_recv(context) {
                self.push_event(event);
                continue;
            }
            ready!(self.comments.poll_tick(context));
            self.ready.push_back(Bytes::from_static(b": waiting\n\n"));
        }
    }
}
