//! The options of a server.

use std::time::Duration;

/// The options of a server.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Name of the model in requests and answers.
    pub model_name: String,
    /// The key that requests must have; `None` if they need none.
    pub api_key: Option<String>,
    /// Largest number of answers that are generated at the same time, in one batch.
    pub max_batch: usize,
    /// Largest number of further requests, which wait. One more is refused.
    pub max_queue: usize,
    /// Largest number of tokens of an answer.
    pub max_new_tokens: usize,
    /// Largest number of tokens of a prompt with its answer; `None` for the model's number of
    /// positions, which is never exceeded. The memory of a batch is that of its longest row, times
    /// the number of rows.
    pub max_seq_len: Option<usize>,
    /// Largest number of bytes of the body of a request.
    pub max_body_bytes: usize,
    /// Largest number of pixels of an image.
    pub max_pixels: u64,
    /// Time in which the headers of a request, and then its body, must arrive.
    pub read_timeout: Duration,
    /// Time for which a client may read nothing of what is sent to it.
    pub write_timeout: Duration,
    /// Time in which an answer must be complete.
    pub request_timeout: Duration,
    /// Time that answers have to become complete when the server is being stopped.
    pub grace: Duration,
}
