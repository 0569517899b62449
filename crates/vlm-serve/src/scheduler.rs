//! What the thread of the model does: it generates for all requests in one batch. A request joins the
//! batch between two steps; one whose client has left is removed from it.

use std::any::Any;
use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

use hyper::StatusCode;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;
use vlm_infer::{GenerationBatch, InferError, NewPrompt, PreparedPrompt, VisionLanguageModel};
use vlm_model::generate::{Decoded, RowEnd};
use vlm_model::sampling::Sampling;

use crate::answer_text::AnswerText;
use crate::api_error::ApiError;

/// A request whose prompt is prepared.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) prompt: PreparedPrompt,
    pub(crate) sampling: Sampling,
    pub(crate) max_new_tokens: usize,
    pub(crate) stop: Vec<String>,
    pub(crate) begun: Instant,
    pub(crate) deadline: Instant,
    /// Receives the answer. The channel has no bound, because one client must not stop the batch;
    /// an answer is as long as `max_new_tokens` at most.
    pub(crate) events: UnboundedSender<Event>,
    /// The place of this request among those that the server accepts.
    pub(crate) slot: OwnedSemaphorePermit,
}

/// What happens to an answer.
#[derive(Debug)]
pub(crate) enum Event {
    /// A further piece of its text.
    Text(String),
    /// It is complete.
    Done(Finish),
    /// It cannot be completed.
    Failed(ApiError),
}

/// How an answer ended.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Finish {
    /// `stop` or `length`.
    pub(crate) reason: &'static str,
    /// Number of generated tokens.
    pub(crate) num_tokens: usize,
}

/// The other threads' access to the scheduler.
#[derive(Debug)]
pub(crate) struct Scheduler {
    jobs: Sender<Job>,
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    /// All answers are to fail, because the server ends.
    is_aborted: AtomicBool,
    /// Moving average of the time from request to answer, in milliseconds.
    average_millis: AtomicU64,
}

/// What the thread of the model works on.
#[derive(Debug)]
pub(crate) struct Queue {
    jobs: Receiver<Job>,
    shared: Arc<Shared>,
}

impl Scheduler {
    /// A scheduler, and the queue that the thread of the model works on.
    pub(crate) fn new() -> (Self, Queue) {
        let (sender, jobs) = channel();
        let shared = Arc::new(Shared::default());
        (Self { jobs: sender, shared: Arc::clone(&shared) }, Queue { jobs, shared })
    }

    /// Adds a job.
    ///
    /// # Errors
    /// The thread has ended, which is an internal error.
    pub(crate) fn add(&self, job: Job) -> Result<(), ApiError> {
        self.jobs.send(job).map_err(|_| ApiError::internal("the thread of the model has ended"))
    }

    /// Lets all answers fail.
    pub(crate) fn abort(&self) {
        self.shared.is_aborted.store(true, Ordering::Relaxed);
    }

    /// A guess of the seconds until an answer is complete that is requested now, at least 1.
    pub(crate) fn expected_secs(&self) -> u64 {
        (self.shared.average_millis.load(Ordering::Relaxed) / 1000).clamp(1, 60)
    }
}

/// An answer that is being generated.
struct Answer {
    job: Job,
    text: AnswerText,
    num_tokens: usize,
}

struct Worker<'a> {
    model: &'a VisionLanguageModel,
    max_batch: usize,
    shared: &'a Shared,
    batch: GenerationBatch<'a>,
    waiting: VecDeque<Job>,
    answers: BTreeMap<u64, Answer>,
    next_key: u64,
}

impl Queue {
    /// Generates until the scheduler is dropped and all jobs are done.
    pub(crate) fn run(&self, model: &VisionLanguageModel, max_batch: usize) {
        let mut worker = Worker {
            model,
            max_batch,
            shared: &self.shared,
            batch: model.generator().batch(),
            waiting: VecDeque::new(),
            answers: BTreeMap::new(),
            next_key: 0,
        };
        loop {
            if worker.answers.is_empty() && worker.waiting.is_empty() {
                let Ok(job) = self.jobs.recv() else { return };
                worker.waiting.push_back(job);
            }
            worker.waiting.extend(self.jobs.try_iter());
            worker.remove_hopeless();
            worker.start_waiting();
            worker.step();
        }
    }
}

impl Worker<'_> {
    /// Removes what nobody waits for, and what has taken too long.
    fn remove_hopeless(&mut self) {
        let is_aborted = self.shared.is_aborted.load(Ordering::Relaxed);
        let now = Instant::now();
        let is_hopeless = |job: &Job| {
            let error = if is_aborted {
                ApiError::stopping()
            } else if now >= job.deadline {
                let message = "the answer was not complete within the time limit of this server";
                ApiError::new(StatusCode::GATEWAY_TIMEOUT, "timeout", message)
            } else if job.events.is_closed() {
                tracing::debug!("a client left; its answer is not completed");
                return true;
            } else {
                return false;
            };
            let _ = job.events.send(Event::Failed(error));
            true
        };
        self.waiting.retain(|job| !is_hopeless(job));
        self.answers.retain(|_, answer| !is_hopeless(&answer.job));
        self.batch.retain(|key| self.answers.contains_key(&key));
    }

    /// Adds waiting jobs to the batch, in their order.
    fn start_waiting(&mut self) {
        let num_free = self.max_batch.saturating_sub(self.answers.len()).min(self.waiting.len());
        if num_free == 0 {
            return;
        }
        let first_key = self.next_key;
        for mut job in self.waiting.drain(..num_free) {
            let text = AnswerText::new(std::mem::take(&mut job.stop));
            self.answers.insert(self.next_key, Answer { job, text, num_tokens: 0 });
            self.next_key += 1;
        }
        let new = self.answers.range(first_key..).map(|(&key, answer)| NewPrompt {
            key,
            prompt: &answer.job.prompt,
            sampling: &answer.job.sampling,
            max_new_tokens: answer.job.max_new_tokens,
        });
        let new: Vec<NewPrompt> = new.collect();
        let decoded = guarded(|| self.batch.add(&new));
        self.deliver(decoded, first_key);
    }

    fn step(&mut self) {
        if !self.batch.is_empty() {
            let decoded = guarded(|| self.batch.step());
            self.deliver(decoded, 0);
        }
    }

    /// Sends new text to its clients. An error ends the answers from the key `first_key` on.
    fn deliver(&mut self, decoded: Result<Vec<Decoded>, Failure>, first_key: u64) {
        match decoded {
            Ok(decoded) => decoded.into_iter().for_each(|decoded| self.deliver_token(decoded)),
            Err(failure) => {
                tracing::error!("generation failed: {}", failure.message);
                // After a panic the state of the batch is not known.
                let first_key = if failure.is_panic { 0 } else { first_key };
                for (_, answer) in self.answers.split_off(&first_key) {
                    let error = ApiError::internal(&failure.message);
                    let _ = answer.job.events.send(Event::Failed(error));
                }
                if failure.is_panic {
                    self.batch = self.model.generator().batch();
                }
            }
        }
        self.batch.retain(|key| self.answers.contains_key(&key));
    }

    fn deliver_token(&mut self, Decoded { key, id, end }: Decoded) {
        let Some(answer) = self.answers.get_mut(&key) else { return };
        let tokenizer = &self.model.tokenizer;
        let (mut text, mut is_stopped) = (String::new(), false);
        if let Some(id) = id {
            answer.num_tokens += 1;
            (text, is_stopped) = answer.text.push(tokenizer, id);
        }
        if end.is_some() && !is_stopped {
            let (rest, is_stopped_at_end) = answer.text.finish(tokenizer);
            text += &rest;
            is_stopped = is_stopped_at_end;
        }
        if !text.is_empty() {
            // An error means that the client has left, which is noticed before the next step.
            let _ = answer.job.events.send(Event::Text(text));
        }
        if end.is_none() && !is_stopped {
            return;
        }
        let is_stop = is_stopped || end == Some(RowEnd::StopToken);
        let reason = if is_stop { "stop" } else { "length" };
        let finish = Finish { reason, num_tokens: answer.num_tokens };
        let Some(Answer { job, .. }) = self.answers.remove(&key) else { return };
        // Before the client knows of the end: its next request must find this place free.
        drop(job.slot);
        let _ = job.events.send(Event::Done(finish));
        let millis = job.begun.elapsed().as_millis() as u64;
        let average = self.shared.average_millis.load(Ordering::Relaxed);
        let average = if average == 0 { millis } else { (average * 7 + millis) / 8 };
        self.shared.average_millis.store(average, Ordering::Relaxed);
    }
}

/// Why a step failed.
struct Failure {
    message: String,
    is_panic: bool,
}

/// Runs a step. A panic of a tensor operation, as when there is no memory left, is an error.
fn guarded(
    step: impl FnOnce() -> Result<Vec<Decoded>, InferError>,
) -> Result<Vec<Decoded>, Failure> {
    match catch_unwind(AssertUnwindSafe(step)) {
        Ok(result) => {
            result.map_err(|error| Failure { message: error.to_string(), is_panic: false })
        }
        Err(panic) => Err(Failure { message: first_line(&*panic), is_panic: true }),
    }
}

/// The message of a panic, without the C++ stack frames that libtorch appends.
fn first_line(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref().copied()).unwrap_or("unknown");
    text.lines().next().unwrap_or_default().to_owned()
}
