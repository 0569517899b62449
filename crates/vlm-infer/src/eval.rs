//! Judging a model on rows it was not trained on: loss, perplexity, captions.

use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use vlm_data::{ChatTokenizer, ImageProcessor, Loader, LoaderConfig, RowSource, open_source};
use vlm_model::sampling::Sampling;
use vlm_model::{ModelError, Vlm};

use crate::InferError;
use crate::answer::Answerer;
use crate::device_batch::Transfer;
use crate::precision::autocast_kind;
use crate::text_score::{is_exact, token_f1};
use vlm_shapes::Dtype;

/// How rows are judged.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalOptions {
    /// Rows at once.
    pub batch_size: usize,
    /// Tokens a row is cut at, for the loss.
    pub max_seq_len: usize,
    /// Loader threads.
    pub num_workers: usize,
    /// This many rows, from the first on, are answered, too; 0: none.
    pub max_captions: usize,
    /// Most new tokens an answer.
    pub max_new_tokens: usize,
    /// The evaluation fails when more than this share of the rows was rejected.
    pub max_rejected_fraction: f64,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalReport {
    /// Rows that the loss is of.
    pub rows: u64,
    /// Rows that could not be used.
    pub rejected_rows: u64,
    /// Tokens that the loss is of.
    pub supervised_tokens: u64,
    /// Cross-entropy in nats a supervised token, over all of them; `None` when there was none.
    pub loss: Option<f64>,
    /// e to the loss.
    pub perplexity: Option<f64>,
    /// Rows that were answered.
    pub captions: u64,
    /// Share of these answered to the last character, 0 to 1.
    pub exact: Option<f64>,
    /// Mean F1 of the words ([`token_f1`]), 0 to 1.
    pub token_f1: Option<f64>,
    /// How long it took.
    pub secs: f64,
}

/// Rows to judge models on.
pub struct Evaluator {
    source: Arc<dyn RowSource>,
    loader: Loader,
    tokenizer: Arc<ChatTokenizer>,
    processor: Arc<ImageProcessor>,
    options: EvalOptions,
}

impl Evaluator {
    /// Opens the rows of `data_path`; see [`open_source`] for `images_path`.
    ///
    /// # Errors
    /// Rows that cannot be read, settings that make no batch.
    pub fn open(
        data_path: &Path,
        images_path: Option<&Path>,
        tokenizer: &Arc<ChatTokenizer>,
        processor: &Arc<ImageProcessor>,
        tokens_per_image: usize,
        options: EvalOptions,
    ) -> Result<Self, InferError> {
        let source: Arc<dyn RowSource> = open_source(data_path, images_path)?;
        let mut loader_config = LoaderConfig::default();
        loader_config.batch_size = options.batch_size;
        loader_config.max_seq_len = options.max_seq_len;
        loader_config.tokens_per_image = tokens_per_image;
        loader_config.shuffle = false;
        loader_config.num_workers = options.num_workers;
        loader_config.max_rejected_fraction = options.max_rejected_fraction;
        let loader = Loader::new(
            Arc::clone(&source),
            Arc::clone(tokenizer),
            Some(Arc::clone(processor)),
            loader_config,
        )?;
        Ok(Self {
            source,
            loader,
            tokenizer: Arc::clone(tokenizer),
            processor: Arc::clone(processor),
            options,
        })
    }

    /// Judges a model. Neither its weights and gradients nor libtorch's random numbers are touched.
    /// `goes_on` is asked at each batch; when it says no, there is no report: what was counted until
    /// then is not of all rows.
    ///
    /// # Errors
    /// The loader's, the model's.
    pub fn evaluate(
        &self,
        model: &Vlm,
        dtype: Dtype,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<EvalReport>, InferError> {
        let started = Instant::now();
        let Some(mut report) = tch::no_grad(|| self.losses(model, dtype, goes_on))? else {
            return Ok(None);
        };
        if self.captions(model, dtype, goes_on, &mut report)?.is_break() {
            return Ok(None);
        }
        report.secs = started.elapsed().as_secs_f64();
        Ok(Some(report))
    }

    fn losses(
        &self,
        model: &Vlm,
        dtype: Dtype,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<EvalReport>, InferError> {
        let transfer = Transfer::new(model.device(), &self.processor);
        let (mut rows, mut rejected_rows, mut supervised_tokens, mut sum) = (0, 0, 0, 0.0);
        for batch in self.loader.epoch(0, 0) {
            let batch = batch?;
            if !goes_on() {
                return Ok(None);
            }
            rejected_rows += batch.rejected.len() as u64;
            if batch.num_supervised == 0 {
                continue;
            }
            let on_device = transfer.send(&batch)?;
            let loss = vlm_torch::autocast(model.device(), autocast_kind(dtype), || {
                model.loss(&on_device.model, &on_device.supervised, &on_device.targets, false)
            })??;
            rows += batch.batch_size as u64;
            supervised_tokens += batch.num_supervised as u64;
            sum += f64::try_from(&loss.sum).map_err(ModelError::from)?;
        }
        let loss = (supervised_tokens > 0).then(|| sum / supervised_tokens as f64);
        Ok(Some(EvalReport {
            rows,
            rejected_rows,
            supervised_tokens,
            loss,
            perplexity: loss.map(f64::exp),
            captions: 0,
            exact: None,
            token_f1: None,
            secs: 0.0,
        }))
    }

    fn captions(
        &self,
        model: &Vlm,
        dtype: Dtype,
        goes_on: &dyn Fn() -> bool,
        report: &mut EvalReport,
    ) -> Result<ControlFlow<()>, InferError> {
        let answerer = Answerer {
            model,
            tokenizer: &self.tokenizer,
            processor: &self.processor,
            dtype,
            batch_size: self.options.batch_size,
            max_new_tokens: self.options.max_new_tokens,
            sampling: Sampling::default(),
            blank_pictures: false,
        };
        let rows: Vec<usize> = (0..self.source.len().min(self.options.max_captions)).collect();
        let (mut exact, mut f1) = (0, 0.0);
        let mut flow = ControlFlow::Continue(());
        answerer.answer_rows::<InferError>(&*self.source, &rows, &mut |_, answers| {
            if !goes_on() {
                flow = ControlFlow::Break(());
            }
            // A row that asks without an answer to compare with, or cannot be used, is no caption.
            for answer in answers.iter().flatten().filter(|answer| !answer.expected.is_empty()) {
                report.captions += 1;
                exact += u64::from(is_exact(&answer.text, &answer.expected));
                f1 += token_f1(&answer.text, &answer.expected);
            }
            Ok(flow)
        })?;
        if report.captions > 0 {
            report.exact = Some(exact as f64 / report.captions as f64);
            report.token_f1 = Some(f1 / report.captions as f64);
        }
        Ok(flow)
    }
}
