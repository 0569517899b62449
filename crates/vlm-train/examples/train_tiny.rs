//! Trains a tiny language model and projector, with random weights, behind a trained vision encoder
//! on generated rows: images of one colour, each with a sentence that names the colour.
//!
//! `cargo run -p vlm-train --example train_tiny -- START`, where START is a folder with a tokenizer
//! and a vision encoder in `vision`, such as `data/demo-start`.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::channel;

use anyhow::{Context, Result};
use image::{Rgb, RgbImage};
use vlm_train::{Event, Run, TrainConfig};

fn main() -> Result<()> {
    let start = std::env::args().nth(1).context("usage: train_tiny START")?;
    let folder = tempfile::tempdir()?;
    let losses = train_tiny(folder.path(), Path::new(&start))?;
    let (first, last) = (losses.first().context("no step")?, losses.last().context("no step")?);
    println!("{} steps: first loss {first:.3}, last loss {last:.3}", losses.len());
    Ok(())
}

/// Trains in `folder` and returns the loss of every step, in nats per supervised token.
pub fn train_tiny(folder: &Path, start: &Path) -> Result<Vec<f64>> {
    let mut rows = "image,question,answer\n".to_owned();
    for (colour, rgb) in [("red", [220, 20, 20]), ("green", [20, 200, 20]), ("blue", [20, 20, 220])]
    {
        RgbImage::from_pixel(64, 64, Rgb(rgb)).save(folder.join(colour).with_extension("png"))?;
        writeln!(rows, "{colour}.png,Which colour is this?,It is {colour}.")?;
    }
    fs::write(folder.join("rows.csv"), rows)?;

    let mut config = TrainConfig::default();
    config.data.data_path = folder.join("rows.csv").as_path().into();
    config.data.num_workers = 1;
    config.model.tokenizer = start.to_owned();
    config.model.vision = start.join("vision");
    config.model.shape.dim = Some(64);
    config.model.shape.n_layers = Some(2);
    config.model.freeze.train_lm = true;
    config.optim.epochs = 30;
    config.optim.batch_size = 3;
    config.optim.learning_rate = 3e-3;
    config.run.out_dir = folder.join("out");

    let mut run = Run::prepare(config)?;
    let (sender, losses) = channel();
    run.add_sink(move |event: &Event| {
        if let Event::Step(step) = event {
            // The receiver lives until the end of the training.
            let _ = sender.send(step.loss);
        }
        Ok(())
    });
    run.train(&AtomicBool::new(false))?;
    Ok(losses.iter().flatten().collect())
}
