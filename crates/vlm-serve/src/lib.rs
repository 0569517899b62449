//! Serves a trained vision-language model over HTTP: the part of OpenAI's chat completions that a
//! small vision-language model can answer, and a web page to talk about an image.
//!
//! One thread generates for all requests in one batch, which requests join while it runs; the
//! connections are served by another thread, and requests are prepared by a few more. This crate
//! knows no flags, no settings of a training and no terminal.

mod answer_text;
mod api_error;
mod body;
mod completion;
mod data_url;
mod options;
mod random;
mod request;
mod request_fields;
mod routes;
mod scheduler;
mod server;
mod write_timeout;

// The build script learns from this dependency where libtorch is.
use vlm_torch as _;

pub use options::ServeOptions;
pub use server::{ServeError, Server};
