//! Reads the body of a request within limits of size and time.

use std::future::poll_fn;
use std::pin::Pin;
use std::time::Duration;

use axum::body::Body;
use hyper::StatusCode;
use hyper::body::Body as _;
use tokio::time::timeout;

use crate::api_error::ApiError;

/// What is too much is still read up to this number of bytes, and not kept, because a client that
/// is writing does not read the answer.
const MAX_DISCARDED: usize = 256 << 20;

/// The bytes of a body of at most `limit` bytes that arrives within `time`.
///
/// # Errors
/// It is larger or takes longer; the connection fails.
pub(crate) async fn read(body: Body, limit: usize, time: Duration) -> Result<Vec<u8>, ApiError> {
    timeout(time, read_all(body, limit)).await.unwrap_or_else(|_| {
        let message = format!("the request did not arrive within {} s", time.as_secs());
        Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "request_timeout", message))
    })
}

/// Reads and discards a body, so that the client then reads the answer.
pub(crate) async fn discard(body: Body, time: Duration) {
    // The request is answered with another error.
    let _ = read(body, 0, time).await;
}

async fn read_all(mut body: Body, limit: usize) -> Result<Vec<u8>, ApiError> {
    let (mut bytes, mut num_bytes) = (Vec::new(), 0);
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        let frame = frame.map_err(|error| {
            let message = format!("the request cannot be read: {error}");
            ApiError::new(StatusCode::BAD_REQUEST, "unreadable_request", message)
        })?;
        let Ok(data) = frame.into_data() else { continue };
        num_bytes += data.len();
        if num_bytes <= limit {
            bytes.extend_from_slice(&data);
        } else if num_bytes <= MAX_DISCARDED {
            bytes = Vec::new();
        } else {
            break;
        }
    }
    if num_bytes <= limit {
        return Ok(bytes);
    }
    let message = format!("the request has more than {limit} bytes; make its images smaller");
    Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message))
}
