//! Evaluation of a model on rows that it was not trained on: loss, perplexity, captions.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use vlm_data::{ChatTokenizer, ImageProcessor, Loader, LoaderConfig, RowSource};
use vlm_model::sampling::Sampling;
use vlm_model::{ModelError, Vlm};

use crate::InferError;
use crate::device_batch::Transfer;
use crate::generator::Generator;
use crate::precision::autocast_kind;
use crate::text_score::{is_exact, token_f1};
use vlm_shapes::Dtype;

/// Settings of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct EvalOptions {
    /// Number of rows in one forward pass.
    pub batch_size: usize,
    /// Number of tokens to which rows are truncated for the loss.
    pub max_seq_len: usize,
    /// Number of loader threads.
    pub num_workers: usize,
    /// Number of rows, from the first on, for which captions are generated.
    pub max_captions: usize,
    /// Largest number of tokens that are generated for a row.
    pub max_new_tokens: usize,
    /// Largest fraction of rejected rows, from 0 to 1; with more the evaluation fails.
    pub max_rejected_fraction: f64,
}

/// The scores of an evaluation.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EvalReport {
    /// Number of rows with supervised tokens.
    pub rows: u64,
    /// Number of rejected rows.
    pub rejected_rows: u64,
    /// Number of supervised tokens.
    pub supervised_tokens: u64,
    /// Mean cross-entropy, in nats per supervised token; `None` without such tokens.
    pub loss: Option<f64>,
    /// Perplexity: `exp(loss)`.
    pub perplexity: Option<f64>,
    /// Number of rows for which a caption was generated and compared.
    pub captions: u64,
    /// Fraction of the captions that equal the expected ones, from 0 to 1.
    pub exact: Option<f64>,
    /// Mean F1 score of the words ([`token_f1`]), from 0 to 1.
    pub token_f1: Option<f64>,
    /// Duration in seconds.
    pub secs: f64,
}

/// Evaluates models on the rows of a dataset.
pub struct Evaluator {
    source: Arc<dyn RowSource>,
    loader: Loader,
    tokenizer: Arc<ChatTokenizer>,
    processor: Arc<ImageProcessor>,
    options: EvalOptions,
}

impl Evaluator {
    /// An evaluator on the rows of `source`. Tokenizer, preprocessing and number of tokens per
    /// image are those of the models to evaluate.
    ///
    /// # Errors
    /// Settings with which no batch can be made.
    pub fn new(
        source: Arc<dyn RowSource>,
        tokenizer: &Arc<ChatTokenizer>,
        processor: &Arc<ImageProcessor>,
        tokens_per_image: usize,
        options: EvalOptions,
    ) -> Result<Self, InferError> {
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

    /// Evaluates a model. Its weights and gradients and the random numbers of libtorch are not
    /// changed. `continues` is called for each batch; when it returns `false`, the evaluation ends
    /// and the result is `None`.
    ///
    /// # Errors
    /// Errors of the loader and of the model.
    pub fn evaluate(
        &self,
        model: &Vlm,
        dtype: Dtype,
        continues: &dyn Fn() -> bool,
    ) -> Result<Option<EvalReport>, InferError> {
        let started = Instant::now();
        let Some(mut report) = tch::no_grad(|| self.losses(model, dtype, continues))? else {
            return Ok(None);
        };
        if self.captions(model, dtype, continues, &mut report)?.is_break() {
            return Ok(None);
        }
        report.secs = started.elapsed().as_secs_f64();
        Ok(Some(report))
    }

    fn losses(
        &self,
        model: &Vlm,
        dtype: Dtype,
        continues: &dyn Fn() -> bool,
    ) -> Result<Option<EvalReport>, InferError> {
        let transfer = Transfer::new(model.device(), &self.processor);
        let (mut rows, mut rejected_rows, mut supervised_tokens, mut sum) = (0, 0, 0, 0.0);
        for batch in self.loader.epoch(0, 0) {
            let batch = batch?;
            if !continues() {
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
        continues: &dyn Fn() -> bool,
        report: &mut EvalReport,
    ) -> Result<ControlFlow<()>, InferError> {
        let generator = Generator {
            model,
            tokenizer: &self.tokenizer,
            processor: &self.processor,
            dtype,
            batch_size: self.options.batch_size,
            max_new_tokens: self.options.max_new_tokens,
            sampling: Sampling::default(),
            blank_images: false,
        };
        let rows: Vec<usize> = (0..self.source.len().min(self.options.max_captions)).collect();
        let (mut exact, mut f1) = (0, 0.0);
        let mut flow = ControlFlow::Continue(());
        generator.generate_rows::<InferError>(&*self.source, &rows, &mut |_, completions| {
            if !continues() {
                flow = ControlFlow::Break(());
            }
            // Rejected rows, and rows without a text to compare with, are not counted.
            for completion in completions.iter().flatten().filter(|c| !c.expected.is_empty()) {
                report.captions += 1;
                exact += u64::from(is_exact(&completion.text, &completion.expected));
                f1 += token_f1(&completion.text, &completion.expected);
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
