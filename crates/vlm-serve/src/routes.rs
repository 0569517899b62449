//! The addresses that are served, and what is checked before a request reaches the scheduler.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use hyper::header::{
    AUTHORIZATION, CONTENT_LENGTH, CONTENT_SECURITY_POLICY, CONTENT_TYPE, EXPECT, HeaderMap,
    HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS,
};
use hyper::{Method, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::sync::mpsc::unbounded_channel;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use vlm_data::{ChatTokenizer, ImageProcessor, Reject};
use vlm_infer::PreparedPrompt;
use vlm_model::generate::Prompt;

use crate::api_error::ApiError;
use crate::body;
use crate::completion::{Completion, json_response};
use crate::options::ServeOptions;
use crate::request::{ChatRequest, no_such_model};
use crate::scheduler::{Job, Scheduler};

const PAGE: &str = include_str!("page.html");

/// The page loads nothing from elsewhere, and cannot be made to.
const PAGE_POLICY: &str = concat!(
    "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; ",
    "img-src blob: data:; connect-src 'self'; base-uri 'none'; form-action 'none'; ",
    "frame-ancestors 'none'",
);

/// What the handlers of all connections share.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) options: ServeOptions,
    pub(crate) tokenizer: Arc<ChatTokenizer>,
    pub(crate) processor: ImageProcessor,
    pub(crate) tokens_per_image: usize,
    pub(crate) max_seq_len: usize,
    pub(crate) scheduler: Scheduler,
    /// The places of requests that are read, wait or are answered.
    pub(crate) slots: Arc<Semaphore>,
    pub(crate) is_stopping: AtomicBool,
    pub(crate) started: u64,
}

type Shared = State<Arc<Service>>;

/// The handlers of all addresses.
pub(crate) fn router(service: Arc<Service>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/health", get(health))
        .route("/v1/models", get(models))
        .route("/v1/models/{*id}", get(model))
        .route("/v1/chat/completions", post(chat))
        .fallback(unknown_address)
        .method_not_allowed_fallback(wrong_method)
        .with_state(service)
}

async fn page() -> Response {
    let mut response = Response::new(Body::from(PAGE));
    let headers = response.headers_mut();
    let html = HeaderValue::from_static("text/html; charset=utf-8");
    headers.insert(CONTENT_TYPE, html);
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    response
}

async fn health(State(service): Shared) -> Response {
    if service.is_stopping() {
        return ApiError::stopping().into_response();
    }
    let num_requests = service.max_requests() - service.slots.available_permits();
    json_response(&json!({"status": "ok", "requests": num_requests}))
}

async fn models(State(service): Shared, headers: HeaderMap) -> Result<Response, ApiError> {
    service.authorize(&headers)?;
    Ok(json_response(&json!({"object": "list", "data": [service.model_object()]})))
}

async fn model(
    State(service): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    service.authorize(&headers)?;
    if id != service.options.model_name {
        return Err(no_such_model(&id, &service.options.model_name));
    }
    Ok(json_response(&service.model_object()))
}

async fn unknown_address(uri: Uri) -> ApiError {
    let message = format!(
        "there is nothing at {}; this server has /v1/chat/completions, /v1/models, /health and a \
         page at /",
        vlm_display::shorten(uri.path(), 100)
    );
    ApiError::new(StatusCode::NOT_FOUND, "not_found", message)
}

async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let message = format!("{} does not accept {method}", vlm_display::shorten(uri.path(), 100));
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", message)
}

async fn chat(State(service): Shared, request: Request) -> Result<Response, ApiError> {
    let begun = Instant::now();
    let (head, body) = request.into_parts();
    let time = service.options.read_timeout;
    let slot = match service.admit(&head.headers) {
        Ok(slot) => slot,
        Err(error) => {
            // A client that asks before it sends its body gets the answer at once.
            if !head.headers.contains_key(EXPECT) {
                body::discard(body, time).await;
            }
            return Err(error);
        }
    };
    let bytes = body::read(body, service.options.max_body_bytes, time).await?;
    // Decoding images takes too long for the thread of the connections. The other thread keeps the
    // place of the request, because it continues when the client has left.
    let preparing = {
        let service = Arc::clone(&service);
        tokio::task::spawn_blocking(move || {
            service.prepare(&bytes).map(|(prompt, request)| (prompt, request, slot))
        })
    };
    let prepared = preparing.await.map_err(|_| ApiError::internal("preparing the prompt failed"));
    let (prompt, request, slot) = prepared??;
    let num_prompt_tokens = prompt.prompt.input_ids.len();
    let (events, receiver) = unbounded_channel();
    service.scheduler.add(Job {
        prompt,
        sampling: request.sampling,
        max_new_tokens: request.max_new_tokens,
        stop: request.stop,
        begun,
        deadline: begun + service.options.request_timeout,
        events,
        slot,
    })?;
    let model_name = service.options.model_name.clone();
    let completion = Completion::new(model_name, num_prompt_tokens, request.warnings);
    if request.is_stream {
        return Ok(completion.stream(receiver, request.includes_usage));
    }
    completion.whole(receiver).await
}

impl Service {
    /// Largest number of requests at a time.
    pub(crate) fn max_requests(&self) -> usize {
        self.options.max_batch + self.options.max_queue
    }

    fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    fn model_object(&self) -> Value {
        json!({
            "id": self.options.model_name,
            "object": "model",
            "created": self.started,
            "owned_by": "vlm",
        })
    }

    /// Checks the key of a request.
    fn authorize(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(key) = &self.options.api_key else { return Ok(()) };
        // Any bytes are allowed in a key.
        let given = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes);
        let given = given.and_then(|value| {
            value.iter().position(|&byte| byte == b' ').map(|space| value.split_at(space))
        });
        let message = match given {
            Some((scheme, given)) if scheme.eq_ignore_ascii_case(b"bearer") => {
                if is_same(given.trim_ascii(), key.as_bytes()) {
                    return Ok(());
                }
                "the API key is wrong"
            }
            _ => "this server needs an API key: send the header `Authorization: Bearer KEY`",
        };
        Err(ApiError::new(StatusCode::UNAUTHORIZED, "invalid_api_key", message))
    }

    /// Checks what the headers of a request for an answer tell, and takes a place for it.
    fn admit(&self, headers: &HeaderMap) -> Result<OwnedSemaphorePermit, ApiError> {
        self.authorize(headers)?;
        let header = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let media_type = header(CONTENT_TYPE).and_then(|value| value.split(';').next());
        // A page of another site can send other types without asking this server.
        if media_type.map(str::trim) != Some("application/json") {
            let message = "expected the header `Content-Type: application/json`";
            let status = StatusCode::UNSUPPORTED_MEDIA_TYPE;
            return Err(ApiError::new(status, "unsupported_media_type", message));
        }
        let length = header(CONTENT_LENGTH).and_then(|value| value.parse::<u64>().ok());
        if let Some(length) = length.filter(|&n| n > self.options.max_body_bytes as u64) {
            let message = format!(
                "the request has {length} bytes, more than {}; make its images smaller",
                self.options.max_body_bytes
            );
            let status = StatusCode::PAYLOAD_TOO_LARGE;
            return Err(ApiError::new(status, "request_too_large", message));
        }
        if self.is_stopping() {
            return Err(ApiError::stopping());
        }
        Arc::clone(&self.slots)
            .try_acquire_owned()
            .map_err(|_| ApiError::busy(self.max_requests(), self.scheduler.expected_secs()))
    }

    /// Makes tokens and pixels of the body of a request.
    fn prepare(&self, body: &[u8]) -> Result<(PreparedPrompt, ChatRequest), ApiError> {
        let options = &self.options;
        let mut request = ChatRequest::parse(body, &options.model_name, options.max_new_tokens)?;
        let images = std::mem::take(&mut request.images);
        self.check_length(images.len() * self.tokens_per_image, "the images have at least")?;
        let of_messages = |reject: Reject| ApiError::field("messages", reject);
        let (input_ids, starts) = self
            .tokenizer
            .encode_prompt(&request.turns, images.len(), self.tokens_per_image)
            .map_err(of_messages)?;
        self.check_length(input_ids.len(), "the conversation has")?;
        request.max_new_tokens = request.max_new_tokens.min(self.max_seq_len - input_ids.len());
        let mut pixels = Vec::new();
        for image in &images {
            pixels.extend(
                self.processor
                    .preprocess(&image.bytes)
                    .map_err(|reject| ApiError::field(&image.param, reject))?,
            );
        }
        let image_starts = starts.into_iter().map(|start| start as i64).collect();
        let prompt = PreparedPrompt { prompt: Prompt { input_ids, image_starts }, pixels };
        Ok((prompt, request))
    }

    /// Checks that a prompt leaves room for an answer.
    fn check_length(&self, num_tokens: usize, subject: &str) -> Result<(), ApiError> {
        if num_tokens < self.max_seq_len {
            return Ok(());
        }
        Err(ApiError::too_long(format!(
            "messages: {subject} {num_tokens} tokens, but the model reads at most {}, of prompt and \
             answer together; shorten it or start a new one",
            self.max_seq_len
        )))
    }
}

/// Compares two keys in a time that does not depend on where they differ.
fn is_same(a: &[u8], b: &[u8]) -> bool {
    let differing = a.iter().zip(b).fold(0, |differing, (a, b)| differing | (a ^ b));
    a.len() == b.len() && differing == 0
}
