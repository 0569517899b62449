//! Events of a training run. The trainer sends each [`Event`] to every [`EventSink`], which writes
//! it to a file or shows it, for example as a progress bar.

use serde::Serialize;
use vlm_infer::evaluation::{EvalReport, EvalSample};

use crate::TrainError;
use crate::train_state::Counters;

/// Receives the events of a training run, in order. Only rank 0 sends events.
///
/// A closure is a sink, too:
///
/// ```no_run
/// use vlm_train::{Event, Run, TrainConfig};
///
/// let mut run = Run::prepare(TrainConfig::default())?;
/// run.add_sink(|event: &Event| {
///     if let Event::Log(line) = event {
///         println!("step {}: loss {:?}", line.step, line.loss);
///     }
///     Ok(())
/// });
/// # Ok::<(), vlm_train::TrainError>(())
/// ```
pub trait EventSink {
    /// Handles one event.
    ///
    /// # Errors
    /// An error ends the training, so a sink should return one only if the training is useless
    /// without its output.
    fn event(&mut self, event: &Event) -> Result<(), TrainError>;
}

impl<F: FnMut(&Event) -> Result<(), TrainError>> EventSink for F {
    fn event(&mut self, event: &Event) -> Result<(), TrainError> {
        self(event)
    }
}

/// An event of a training run.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// The training begins, or continues from a checkpoint.
    Started {
        /// Number of steps (micro-batches) that an earlier run has done.
        done_steps: u64,
        /// The step at which the training ends.
        last_step: u64,
    },
    /// A step ended.
    Step(StepReport),
    /// A step ended for which a log line is written. It follows the [`Event::Step`] of the step.
    Log(&'a LogLine),
    /// The model was evaluated.
    Evaluation(&'a EvalLine),
    /// Some evaluation rows with the answers that the model generated for them. It follows the
    /// [`Event::Evaluation`] of the step.
    Samples {
        /// Number of steps (micro-batches) done.
        step: u64,
        /// The rows.
        samples: &'a [EvalSample],
    },
    /// The training ended: all steps are done, or it was asked to stop. Not sent after an error.
    Ended,
}

impl Event<'_> {
    /// The line of `metrics.jsonl` for this event, as JSON; `None` for events without a line.
    ///
    /// # Errors
    /// A value that cannot be serialized, which does not occur: the lines hold numbers only.
    pub fn to_json_line(&self) -> Result<Option<serde_json::Value>, serde_json::Error> {
        match self {
            Self::Log(line) => serde_json::to_value(line).map(Some),
            Self::Evaluation(line) => serde_json::to_value(line).map(Some),
            Self::Started { .. } | Self::Step(_) | Self::Samples { .. } | Self::Ended => Ok(None),
        }
    }
}

/// Report of a step that ended.
#[derive(Debug, Clone, Copy, PartialEq)]
#[non_exhaustive]
pub struct StepReport {
    /// Number of steps (micro-batches) done, this one included.
    pub step: u64,
    /// Number of the epoch, from 0.
    pub epoch: u64,
    /// Loss of this micro-batch over all ranks, in nats per supervised token. `None` when it had no
    /// supervised token, and on a GPU for steps without a log line, because reading the loss makes
    /// the host wait for the GPU.
    pub loss: Option<f64>,
    /// Learning rate of this micro-batch.
    pub lr: f64,
    /// Rows per second since the last log line; just after it those of that line.
    pub samples_per_sec: f64,
    /// Whether an [`Event::Log`] with the numbers of this step follows.
    pub is_logged: bool,
    /// Model FLOPs utilisation over the same time, as in [`LogLine::mfu`]; `None` if it is unknown.
    pub mfu: Option<f64>,
}

/// A line of `metrics.jsonl` for a step.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct LogLine {
    /// Number of steps (micro-batches) done, this one included.
    pub step: u64,
    /// Number of updates of the weights.
    pub update: u64,
    /// Number of the epoch, from 0.
    pub epoch: u64,
    /// Loss of this micro-batch over all ranks, in nats per supervised token, the auxiliary loss
    /// included; null when it had no supervised token.
    pub loss: Option<f64>,
    /// Auxiliary loss that balances the load of the experts; absent for models without experts.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub aux_loss: Option<f64>,
    /// Learning rate of this micro-batch.
    pub lr: f64,
    /// Norm of all gradients before clipping; null when the step ended no update.
    pub grad_norm: Option<f64>,
    /// Number of rows trained on so far.
    pub samples: u64,
    /// Number of tokens in these rows, padding not counted.
    pub tokens: u64,
    /// Number of supervised tokens in these rows.
    pub supervised_tokens: u64,
    /// Rows per second since the previous line.
    pub samples_per_sec: f64,
    /// Tokens per second since the previous line.
    pub tokens_per_sec: f64,
    /// Mean time per step that the trainer waited for data since the previous line, in
    /// milliseconds.
    pub data_wait_ms: f64,
    /// Mean time per step since the previous line, in milliseconds, including the wait for data.
    pub step_ms: f64,
    /// Time that the training waited for checkpoints since the previous line, in milliseconds: for
    /// an earlier one that was still being written, and for the copy of the weights.
    pub save_wait_ms: f64,
    /// Operations per second that the steps since the previous line needed, on all ranks together:
    /// the matrix products of forward and backward pass, without padding. Absent if they are not
    /// counted.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub flops_per_sec: Option<f64>,
    /// Model FLOPs utilisation: `flops_per_sec` as a share of the rate of matrix products of the
    /// run's devices, which is measured at the start, or that of a known GPU's data sheet. Absent if
    /// it is unknown.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mfu: Option<f64>,
    /// Largest amount of memory in use so far, in bytes: that of the process on a CPU, that of the
    /// allocator on a GPU.
    pub peak_memory_bytes: u64,
    /// Number of updates skipped so far because loss or gradient was not finite.
    pub skipped_updates: u64,
    /// Number of distinct rows rejected so far.
    pub rejected_rows: u64,
}

/// A line of `metrics.jsonl` for an evaluation. Unlike a [`LogLine`] it has no field `loss`.
#[derive(Debug, Clone, Serialize)]
#[non_exhaustive]
pub struct EvalLine {
    /// Number of steps (micro-batches) done.
    pub step: u64,
    /// Number of updates of the weights.
    pub update: u64,
    /// Number of the epoch, from 0.
    pub epoch: u64,
    /// Mean cross-entropy, in nats per supervised token.
    pub eval_loss: Option<f64>,
    /// Perplexity: e to the power of the loss.
    pub eval_perplexity: Option<f64>,
    /// Number of rows that the loss was computed on.
    pub eval_rows: u64,
    /// Number of rejected rows.
    pub eval_rejected_rows: u64,
    /// Number of supervised tokens that the loss was computed on.
    pub eval_supervised_tokens: u64,
    /// How much higher the loss is with the images of other rows, in nats per supervised token;
    /// absent if no row could get other images.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eval_image_gain: Option<f64>,
    /// Number of rows for which a caption was generated.
    pub eval_captions: u64,
    /// Share of these captions that equal the expected text exactly.
    pub eval_exact: Option<f64>,
    /// Mean F1 score of their words.
    pub eval_token_f1: Option<f64>,
    /// Duration of the evaluation, in seconds.
    pub eval_secs: f64,
}

impl EvalLine {
    /// The line for an evaluation after the steps in `counters`.
    pub(crate) fn new(counters: Counters, epoch: u64, report: &EvalReport) -> Self {
        Self {
            step: counters.step,
            update: counters.update,
            epoch,
            eval_loss: report.loss,
            eval_perplexity: report.perplexity,
            eval_rows: report.rows,
            eval_rejected_rows: report.rejected_rows,
            eval_supervised_tokens: report.supervised_tokens,
            eval_image_gain: report.image_gain,
            eval_captions: report.captions,
            eval_exact: report.exact,
            eval_token_f1: report.token_f1,
            eval_secs: report.secs,
        }
    }
}
