//! A batch from rows in any form: prints the first one of a data set, and what is learned from it.
//!
//! `cargo run -p vlm-data --example first_batch -- ROWS.jsonl IMAGES TOKENIZER PREPROCESSOR_CONFIG.json [TOKENS_PER_IMAGE]`

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, bail};
use vlm_data::{
    Batch, ChatTokenizer, IGNORE_INDEX, ImageProcessor, Loader, LoaderConfig, open_source,
};
use vlm_display::count;

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    print!("{}", first_batch(&args)?);
    Ok(())
}

/// The first batch in words.
pub fn first_batch(args: &[String]) -> anyhow::Result<String> {
    let [rows, images, tokenizer, preprocessor, rest @ ..] = args else {
        bail!("usage: first_batch ROWS IMAGES TOKENIZER PREPROCESSOR_CONFIG [TOKENS_PER_IMAGE]");
    };
    let mut config = LoaderConfig::default();
    config.batch_size = 4;
    if let Some(tokens) = rest.first() {
        config.tokens_per_image = tokens.parse().context("TOKENS_PER_IMAGE")?;
    }
    let source = open_source(Path::new(rows), Some(Path::new(images)))?;
    let tokenizer = Arc::new(ChatTokenizer::from_dir(Path::new(tokenizer))?);
    let processor = Arc::new(ImageProcessor::from_file(Path::new(preprocessor))?);
    let loader = Loader::new(source, Arc::clone(&tokenizer), Some(processor), config)?;
    let batches = count(loader.batches_per_epoch(), "batch");
    let mut text = format!("{}, {batches}\n", count(loader.num_rows(), "row"));
    match loader.epoch(0, 0).next() {
        Some(batch) => text += &describe(&batch?, &loader, &tokenizer),
        None => text += "no batch\n",
    }
    Ok(text)
}

fn describe(batch: &Batch, loader: &Loader, tokenizer: &ChatTokenizer) -> String {
    let rows = count(batch.batch_size, "row");
    let mut text = format!("batch of {rows}, {} each\n", count(batch.seq_len, "token"));
    for (k, &row) in batch.rows.iter().enumerate() {
        let labels = &batch.labels[k * batch.seq_len..(k + 1) * batch.seq_len];
        let learned: Vec<i64> =
            labels.iter().copied().filter(|&label| label != IGNORE_INDEX).collect();
        let images: Vec<_> =
            batch.images.iter().filter(|image| image.row == k).map(|image| image.start).collect();
        text += &format!(
            "{}: {}, images at {images:?}, learns {}: {:?}\n",
            loader.locate(row),
            count(batch.lengths[k], "token"),
            count(learned.len(), "token"),
            tokenizer.decode(&learned)
        );
    }
    for rejected in &batch.rejected {
        text += &format!("{}: {}: {}\n", rejected.location, rejected.reason, rejected.detail);
    }
    text
}
