//! The server: its connections, and its end.

use std::future::{Future, poll_fn};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::TcpStream;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use vlm_data::ImageLimits;
use vlm_infer::VisionLanguageModel;

use crate::completion::unix_time;
use crate::options::ServeOptions;
use crate::routes::{Service, router};
use crate::scheduler::Scheduler;
use crate::write_timeout::WriteTimeout;

/// Largest number of open connections; further ones wait in the system's queue until one ends.
const MAX_CONNECTIONS: usize = 512;

/// Number of threads that prepare prompts.
const NUM_PREPARING: usize = 4;

/// Time between two looks at what cannot be waited for.
const POLL: Duration = Duration::from_millis(20);

/// Time for what was answered to reach its clients, when the server ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// An error of the server itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The address cannot be used.
    #[error("cannot listen on {host}, port {port}: {source}")]
    Listen {
        /// The host that was given.
        host: String,
        /// The port that was given.
        port: u16,
        /// The error of the system.
        source: io::Error,
    },
    /// A thread or the event loop cannot be started.
    #[error("the server cannot be started: {0}")]
    Start(io::Error),
    /// The thread of the connections has failed.
    #[error("internal error in the thread of the connections")]
    Connections,
}

/// A server that listens and does not answer yet.
#[derive(Debug)]
pub struct Server {
    listener: TcpListener,
    address: SocketAddr,
}

impl Server {
    /// Listens on a port of a host; port 0 stands for one that is free.
    ///
    /// # Errors
    /// The host is not known, or the port is in use.
    pub fn bind(host: &str, port: u16) -> Result<Self, ServeError> {
        let error = |source| ServeError::Listen { host: host.to_owned(), port, source };
        let listener = TcpListener::bind((host, port)).map_err(error)?;
        listener.set_nonblocking(true).map_err(error)?;
        let address = listener.local_addr().map_err(error)?;
        Ok(Self { listener, address })
    }

    /// The address that the server listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers requests until `stop` is true. Then new requests are refused, and those that were
    /// accepted have the time `grace` to be completed. The calling thread runs the model.
    ///
    /// # Errors
    /// The server cannot be started; an internal error.
    pub fn run(
        self,
        model: &VisionLanguageModel,
        options: ServeOptions,
        stop: &AtomicBool,
    ) -> Result<(), ServeError> {
        let mut limits = ImageLimits::default();
        limits.max_pixels = options.max_pixels;
        let max_positions = model.model.lm().max_positions() as usize;
        let max_batch = options.max_batch;
        let (scheduler, queue) = Scheduler::new();
        let service = Arc::new(Service {
            slots: Arc::new(Semaphore::new(max_batch + options.max_queue)),
            max_seq_len: options.max_seq_len.unwrap_or(max_positions).min(max_positions),
            options,
            tokenizer: Arc::clone(&model.tokenizer),
            processor: model.processor.as_ref().clone().with_limits(limits),
            tokens_per_image: model.model.tokens_per_image() as usize,
            scheduler,
            is_stopping: AtomicBool::new(false),
            started: unix_time(),
        });
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .max_blocking_threads(NUM_PREPARING)
            .build()
            .map_err(ServeError::Start)?;
        // Its end drops the scheduler, which ends the queue.
        let connections = move || runtime.block_on(serve(self.listener, service, stop));
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("connections".into());
            let thread = thread.spawn_scoped(scope, connections).map_err(ServeError::Start)?;
            queue.run(model, max_batch);
            thread.join().map_err(|_| ServeError::Connections)?.map_err(ServeError::Start)
        })
    }
}

async fn serve(listener: TcpListener, service: Arc<Service>, stop: &AtomicBool) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    let (stopping, is_stopping) = watch::channel(false);
    let mut connections = JoinSet::new();
    while !stop.load(Ordering::Relaxed) {
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            sleep(POLL).await;
            continue;
        }
        match timeout(POLL, listener.accept()).await {
            Ok(Ok((stream, _))) => {
                connections.spawn(connection(stream, Arc::clone(&service), is_stopping.clone()));
            }
            // For example, too many open files: connections that end make room.
            Ok(Err(error)) => {
                tracing::warn!("a connection cannot be accepted: {error}");
                sleep(POLL).await;
            }
            Err(_) => {}
        }
    }
    drop(listener);
    service.is_stopping.store(true, Ordering::Relaxed);
    // An error means that there are no connections.
    let _ = stopping.send(true);
    let is_idle = || service.slots.available_permits() == service.max_requests();
    let end = Instant::now() + service.options.grace;
    while !is_idle() && Instant::now() < end {
        sleep(POLL).await;
    }
    service.scheduler.abort();
    let _ = timeout(LAST_WORDS, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
    Ok(())
}

/// Answers the requests of one connection.
async fn connection(stream: TcpStream, service: Arc<Service>, mut stopping: watch::Receiver<bool>) {
    // Without it, small pieces of an answer wait for each other.
    let _ = stream.set_nodelay(true);
    let io = TokioIo::new(WriteTimeout::new(stream, service.options.write_timeout));
    let read_timeout = service.options.read_timeout;
    let handlers = TowerToHyperService::new(router(service));
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(read_timeout)
            .serve_connection(io, handlers)
    );
    let mut stopping = pin!(stopping.wait_for(|&is_stopping| is_stopping));
    let mut is_told = false;
    let ended = poll_fn(|context| {
        if !is_told && stopping.as_mut().poll(context).is_ready() {
            is_told = true;
            connection.as_mut().graceful_shutdown();
        }
        connection.as_mut().poll(context)
    });
    if let Err(error) = ended.await {
        tracing::debug!("a connection ended: {error}");
    }
}
