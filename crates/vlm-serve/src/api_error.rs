//! Errors in OpenAI's form: an HTTP status and a JSON object `error` with `message`, `type`,
//! `param` and `code`.

use axum::body::Body;
use axum::response::{IntoResponse, Response};
use hyper::StatusCode;
use hyper::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use serde_json::{Value, json};

/// An error that is answered to a client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    code: &'static str,
    /// The field of the request, such as `messages[0].content[1]`.
    param: Option<String>,
    message: String,
    retry_after_secs: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, param: None, message: message.into(), retry_after_secs: None }
    }

    /// A request that cannot be answered because of its field `param`. The message begins with the
    /// name of the field.
    pub(crate) fn field(param: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        let param = param.into();
        let message = format!("{param}: {problem}");
        let error = Self::new(StatusCode::BAD_REQUEST, "invalid_value", message);
        Self { param: Some(param), ..error }
    }

    /// A field that this server does not implement.
    pub(crate) fn unsupported(param: impl Into<String>, problem: impl std::fmt::Display) -> Self {
        Self { code: "unsupported_parameter", ..Self::field(param, problem) }
    }

    /// The prompt and its images are longer than the model can read.
    pub(crate) fn too_long(message: String) -> Self {
        let error = Self::new(StatusCode::BAD_REQUEST, "context_length_exceeded", message);
        Self { param: Some("messages".into()), ..error }
    }

    /// The server has no room for a further request.
    pub(crate) fn busy(num_requests: usize, retry_after_secs: u64) -> Self {
        let requests = vlm_display::count(num_requests, "request");
        let message = format!("the server already has {requests}; try again later");
        let status = StatusCode::TOO_MANY_REQUESTS;
        let error = Self::new(status, "rate_limit_exceeded", message);
        Self { retry_after_secs: Some(retry_after_secs), ..error }
    }

    /// The server is being stopped.
    pub(crate) fn stopping() -> Self {
        let message = "the server is being stopped";
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_stopping", message)
    }

    /// An error of this program or of the machine.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal_error", message)
    }

    fn kind(&self) -> &'static str {
        match self.status {
            StatusCode::UNAUTHORIZED => "authentication_error",
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        }
    }

    /// The JSON object with the key `error`.
    pub(crate) fn json(&self) -> Value {
        json!({"error": {
            "message": self.message,
            "type": self.kind(),
            "param": self.param,
            "code": self.code,
        }})
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.json().to_string()));
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(secs) = self.retry_after_secs {
            headers.insert(RETRY_AFTER, secs.into());
        }
        response
    }
}
