//! Evaluation of a model on rows that it was not trained on: loss, perplexity, image gain, captions.

use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use vlm_data::{Batch, ChatTokenizer, ImageProcessor, Loader, LoaderConfig, RowSource};
use vlm_model::sampling::Sampling;
use vlm_model::{ModelError, RowLosses, Vlm};

use crate::InferError;
use crate::batch_losses::BatchLosses;
use crate::device_batch::Transfer;
use crate::generator::Generator;
use crate::image_gain::ImageGain;
pub use crate::image_gain::MIN_IMAGE_GAIN;
use crate::row_completions::Completion;
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
    /// Number of rows, the first ones that are not rejected, whose generated texts are returned as
    /// [`EvalReport::samples`].
    pub num_samples: usize,
    /// Largest number of tokens that are generated for a row.
    pub max_new_tokens: usize,
    /// Largest fraction of rejected rows, from 0 to 1; with more the evaluation fails.
    pub max_rejected_fraction: f64,
}

/// The scores of an evaluation.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
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
    /// How much higher the loss is with the images of other rows, in nats per supervised token, over
    /// the rows that got other images; absent without such rows, as when all images are the same.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_gain: Option<f64>,
    /// Number of rows that got the images of other rows for `image_gain`.
    pub image_gain_rows: u64,
    /// Number of rows for which a caption was generated and compared.
    pub captions: u64,
    /// Fraction of the captions that equal the expected ones, from 0 to 1.
    pub exact: Option<f64>,
    /// Mean F1 score of the words ([`token_f1`]), from 0 to 1.
    pub token_f1: Option<f64>,
    /// Duration in seconds.
    pub secs: f64,
    /// Some rows with the texts that were generated for them.
    #[serde(skip)]
    pub samples: Vec<EvalSample>,
}

/// A row with the text that was generated for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EvalSample {
    /// Index of the row, from 0.
    pub row: usize,
    /// Location of the row, such as `captions.jsonl:17`.
    pub location: String,
    /// The row's first question.
    pub question: String,
    /// The row's answer to it.
    pub expected: String,
    /// The most likely answer of the model.
    pub generated: String,
    /// The row's first image as the model sees it, as a PNG file.
    #[serde(skip)]
    pub png: Option<Vec<u8>>,
}

impl EvalReport {
    /// The warning that the model makes hardly any use of the images, if `image_gain` is below
    /// [`MIN_IMAGE_GAIN`].
    pub fn image_gain_warning(&self) -> Option<String> {
        let gain = self.image_gain.filter(|&gain| gain < MIN_IMAGE_GAIN)?;
        Some(format!(
            "image_gain: with the images of other rows the loss is {gain:.4} nats per token higher \
             than with their own, which is less than {MIN_IMAGE_GAIN}: the model makes hardly any \
             use of the images. The projector, the vision encoder or the data may be broken: check \
             that the images belong to their rows (`vlm inspect ROWS --row N`), that the answers \
             depend on the images, and that the weights of the vision encoder are not random"
        ))
    }
}

/// The loss of one row, or why the row is rejected.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RowLoss {
    /// Index of the row, from 0.
    pub row: usize,
    /// Location of the row, such as `captions.jsonl:17`.
    pub location: String,
    /// Mean cross-entropy, in nats per supervised token; `None` for a rejected row.
    pub loss: Option<f64>,
    /// Number of supervised tokens.
    pub supervised_tokens: u64,
    /// Names of the row's images.
    pub images: Vec<String>,
    /// Why the row is rejected; absent for other rows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rejected: Option<String>,
}

/// A function that is called with the loss of each row, in the order of the dataset.
pub type OnRowLoss<'a, E> = dyn FnMut(RowLoss) -> Result<(), E> + 'a;

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
        self.evaluate_rows::<InferError>(model, dtype, continues, None)
    }

    /// As [`Self::evaluate`]; `on_row` is called with the loss of each row.
    ///
    /// # Errors
    /// As [`Self::evaluate`], and the errors of `on_row`.
    pub fn evaluate_rows<E: From<InferError>>(
        &self,
        model: &Vlm,
        dtype: Dtype,
        continues: &dyn Fn() -> bool,
        on_row: Option<&mut OnRowLoss<E>>,
    ) -> Result<Option<EvalReport>, E> {
        let started = Instant::now();
        let losses = tch::no_grad(|| self.losses(model, dtype, continues, on_row))?;
        let Some(mut report) = losses else { return Ok(None) };
        if self.captions(model, dtype, continues, &mut report)?.is_break() {
            return Ok(None);
        }
        report.secs = started.elapsed().as_secs_f64();
        Ok(Some(report))
    }

    fn losses<E: From<InferError>>(
        &self,
        model: &Vlm,
        dtype: Dtype,
        continues: &dyn Fn() -> bool,
        mut on_row: Option<&mut OnRowLoss<E>>,
    ) -> Result<Option<EvalReport>, E> {
        let transfer = Transfer::new(model.device(), &self.processor);
        let mut report = EvalReport::default();
        let (mut sum, mut gain) = (0.0, ImageGain::default());
        for batch in self.loader.epoch(0, 0) {
            let batch = batch.map_err(InferError::from)?;
            if !continues() {
                return Ok(None);
            }
            report.rejected_rows += batch.rejected.len() as u64;
            let by_row = match batch.num_supervised {
                0 => None,
                _ => {
                    let mut pass = BatchLosses::new(model, dtype, transfer.send(&batch)?)?;
                    let (loss, by_row) = pass.loss(on_row.is_some())?;
                    if !continues() {
                        return Ok(None);
                    }
                    pass.add_image_gain(&batch, loss, &mut gain)?;
                    report.rows += batch.batch_size as u64;
                    report.supervised_tokens += batch.num_supervised as u64;
                    sum += loss;
                    by_row
                }
            };
            if let Some(on_row) = &mut on_row {
                self.rows_of(&batch, by_row)?.into_iter().try_for_each(on_row)?;
            }
        }
        let num_tokens = report.supervised_tokens;
        report.loss = (num_tokens > 0).then(|| sum / num_tokens as f64);
        report.perplexity = report.loss.map(f64::exp);
        (report.image_gain, report.image_gain_rows) = (gain.mean(), gain.num_rows());
        Ok(Some(report))
    }

    /// The losses of the rows of a batch, with its rejected rows, in the order of the dataset.
    fn rows_of(
        &self,
        batch: &Batch,
        losses: Option<RowLosses>,
    ) -> Result<Vec<RowLoss>, InferError> {
        let (sums, counts) = match losses {
            Some(RowLosses { sums, num_supervised }) => (
                Vec::<f64>::try_from(sums).map_err(ModelError::from)?,
                Vec::<i64>::try_from(num_supervised).map_err(ModelError::from)?,
            ),
            None => (Vec::new(), Vec::new()),
        };
        let mut rows = Vec::with_capacity(batch.rows.len() + batch.rejected.len());
        for ((&row, sum), count) in batch.rows.iter().zip(sums).zip(counts) {
            let location = self.source.locate(row);
            let images = match self.source.row(row) {
                Ok(row) => row.images.into_iter().map(|image| image.name).collect(),
                // The row could be read a moment ago.
                Err(error) => {
                    return Err(InferError::Row { reject: error.at(location.clone())?, location });
                }
            };
            rows.push(RowLoss {
                row,
                location,
                loss: (count > 0).then(|| sum / count as f64),
                supervised_tokens: count as u64,
                images,
                rejected: None,
            });
        }
        rows.extend(batch.rejected.iter().map(|rejected| RowLoss {
            row: rejected.row,
            location: rejected.location.clone(),
            loss: None,
            supervised_tokens: 0,
            images: Vec::new(),
            rejected: Some(format!("{}: {}", rejected.reason, rejected.detail)),
        }));
        rows.sort_by_key(|row| row.row);
        Ok(rows)
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
        let num_captions = self.source.len().min(self.options.max_captions);
        let (mut exact, mut f1) = (0, 0.0);
        let captions = 0..num_captions;
        let mut flow = self.generate(&generator, captions, continues, &mut |row, completion| {
            self.add_sample(row, completion, report);
            // There may be no text to compare with.
            if !completion.expected.is_empty() {
                report.captions += 1;
                exact += u64::from(is_exact(&completion.text, &completion.expected));
                f1 += token_f1(&completion.text, &completion.expected);
            }
        })?;
        // Further rows for the samples.
        let mut next = num_captions;
        while flow.is_continue() && next < self.source.len() {
            let num_missing = self.options.num_samples.saturating_sub(report.samples.len());
            if num_missing == 0 {
                break;
            }
            let rows = next..(next + num_missing).min(self.source.len());
            next = rows.end;
            flow = self.generate(&generator, rows, continues, &mut |row, completion| {
                self.add_sample(row, completion, report);
            })?;
        }
        if report.captions > 0 {
            report.exact = Some(exact as f64 / report.captions as f64);
            report.token_f1 = Some(f1 / report.captions as f64);
        }
        Ok(flow)
    }

    /// Generates texts for these rows. `on_completion` is called for each row that is not rejected.
    fn generate(
        &self,
        generator: &Generator,
        rows: Range<usize>,
        continues: &dyn Fn() -> bool,
        on_completion: &mut dyn FnMut(usize, &Completion),
    ) -> Result<ControlFlow<()>, InferError> {
        let rows: Vec<usize> = rows.collect();
        let mut flow = ControlFlow::Continue(());
        generator.generate_rows::<InferError>(
            &*self.source,
            &rows,
            &mut |first, completions| {
                if !continues() {
                    flow = ControlFlow::Break(());
                }
                for (&row, completion) in rows[first..].iter().zip(completions) {
                    if let Ok(completion) = completion {
                        on_completion(row, completion);
                    }
                }
                Ok(flow)
            },
        )?;
        Ok(flow)
    }

    /// The first image of a row that was just evaluated; `None` without one.
    fn image_of(&self, row: usize) -> Option<Vec<u8>> {
        self.loader.load_row(row).ok()?.ok()?.images.first()?.to_png().ok()
    }

    /// Adds a sample, unless there are enough.
    fn add_sample(&self, row: usize, completion: &Completion, report: &mut EvalReport) {
        if report.samples.len() < self.options.num_samples {
            report.samples.push(EvalSample {
                row,
                location: self.source.locate(row),
                question: completion.question.clone(),
                expected: completion.expected.clone(),
                generated: completion.text.clone(),
                png: self.image_of(row),
            });
        }
    }
}
