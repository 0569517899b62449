//! `vlm serve`: answers requests over HTTP with a trained model.

use std::net::{IpAddr, SocketAddr};
use std::panic::resume_unwind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use clap::Args;
use vlm_serve::{ServeError, ServeOptions, Server};

use crate::error::CliError;
use crate::flag_values::at_least_one;
use crate::interrupt;
use crate::model_args::ModelArgs;

/// Flags of `vlm serve`.
#[derive(Debug, Args)]
pub struct ServeArgs {
    /// The model, as --model.
    #[arg(value_name = "MODEL", conflicts_with = "model")]
    pub folder: Option<PathBuf>,
    #[command(flatten)]
    pub model: ModelArgs,
    /// Name or address of this machine on which to listen; 0.0.0.0 accepts requests from other
    /// machines.
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    pub host: String,
    /// Port on which to listen; 0 for a free one, which is printed.
    #[arg(long, value_name = "N", default_value_t = 8000)]
    pub port: u16,
    /// Key that every request must have (`Authorization: Bearer KEY`) [default: requests need no
    /// key].
    #[arg(long, value_name = "KEY", env = "VLM_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Name of the model in requests and answers [default: the name of its folder or file].
    #[arg(long, value_name = "NAME")]
    pub model_name: Option<String>,
    /// Largest number of answers that are generated at the same time, in one batch.
    #[arg(long, value_name = "N", default_value_t = 16, value_parser = at_least_one)]
    pub max_batch: usize,
    /// Largest number of further requests, which wait; one more is refused with the status 429.
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_queue: usize,
    /// Largest number of tokens of an answer.
    #[arg(long, value_name = "N", default_value_t = 512, value_parser = at_least_one)]
    pub max_new_tokens: usize,
    /// Largest number of tokens of a prompt with its answer [default: the model's number of
    /// positions]. The memory of a batch is that of its longest row, times the number of rows.
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    pub max_seq_len: Option<usize>,
    /// Largest size of a request, in MiB.
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1024))]
    pub max_body_mib: u32,
    /// Largest size of an image, in millions of pixels.
    #[arg(long, value_name = "N", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=64))]
    pub max_megapixels: u32,
    /// Time in which the headers of a request, and then its body, must arrive.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = secs())]
    pub read_timeout_secs: u32,
    /// Time after which a client that does not read its answer is disconnected.
    #[arg(long, value_name = "N", default_value_t = 30, value_parser = secs())]
    pub write_timeout_secs: u32,
    /// Time in which an answer must be complete, with the time that the request waits.
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = secs())]
    pub request_timeout_secs: u32,
    /// Time that running answers have to become complete after Ctrl-C or SIGTERM.
    #[arg(long, value_name = "N", default_value_t = 30)]
    pub grace_secs: u32,
}

/// Parses a number of seconds.
fn secs() -> clap::builder::RangedI64ValueParser<u32> {
    clap::value_parser!(u32).range(1..=86_400)
}

/// Runs the command in a thread of its own: a panic in the main thread ends the process, but an
/// error of one batch must not end the server.
pub fn run(args: ServeArgs) -> Result<()> {
    let thread = std::thread::Builder::new().name("model".into()).spawn(move || serve(args))?;
    thread.join().unwrap_or_else(|panic| resume_unwind(panic))
}

fn serve(mut args: ServeArgs) -> Result<()> {
    if let Some(folder) = args.folder.take() {
        args.model.model = folder;
    }
    if args.api_key.as_ref().is_some_and(|key| key.trim().is_empty()) {
        let text = "--api-key (or VLM_API_KEY) is empty; leave it out if requests need no key";
        return Err(CliError::Usage(text.to_owned()).into());
    }
    let server = Server::bind(&args.host, args.port).map_err(|error| match error {
        ServeError::Listen { .. } => {
            CliError::Usage(format!("{error}; choose others with --host and --port"))
        }
        _ => CliError::Failed(error.to_string()),
    })?;
    let model = args.model.open()?;
    let stop = interrupt::flag_with(
        "stopping when the running answers are complete; send the signal again to end at once\n",
    )?;
    let options = ServeOptions {
        model_name: args.model_name.unwrap_or_else(|| model_name(&args.model.model)),
        api_key: args.api_key.map(|key| key.trim().to_owned()),
        max_batch: args.max_batch,
        max_queue: args.max_queue,
        max_new_tokens: args.max_new_tokens,
        max_seq_len: args.max_seq_len,
        max_body_bytes: (args.max_body_mib as usize) << 20,
        max_pixels: u64::from(args.max_megapixels) * 1_000_000,
        read_timeout: duration(args.read_timeout_secs),
        write_timeout: duration(args.write_timeout_secs),
        request_timeout: duration(args.request_timeout_secs),
        grace: duration(args.grace_secs),
    };
    let address = server.address();
    if options.api_key.is_none() && !address.ip().is_loopback() {
        tracing::warn!("everyone who reaches {address} can use the model; --api-key sets a key");
    }
    println!("{} is served at {}", options.model_name, url(address));
    println!("There is a page to talk about images, and OpenAI's interface under /v1.");
    println!("Ctrl-C ends the server when the running answers are complete.");
    Ok(server.run(&model, options, &stop)?)
}

fn duration(secs: u32) -> Duration {
    Duration::from_secs(secs.into())
}

/// The last part of a path.
fn model_name(path: &Path) -> String {
    let full = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    full.file_name().map_or_else(|| "vlm".to_owned(), |name| name.to_string_lossy().into_owned())
}

/// The address of the page, for a browser on this machine.
fn url(address: SocketAddr) -> String {
    let host = match address.ip() {
        ip if ip.is_unspecified() => "localhost".to_owned(),
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    };
    format!("http://{host}:{}/", address.port())
}
