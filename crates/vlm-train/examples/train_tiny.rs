//! Trains a tiny language model and projector, with random weights, behind a trained vision encoder
//! on generated rows: images of one colour, each with a sentence that names the colour.
//!
//! `cargo run -p vlm-train --example train_tiny -- START`, where START is a folder with a tokenizer
//! and a vision encoder in `vision`, such as `data/demo-start`.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use vlm_train::{Event, Requests, Run, TrainConfig};

fn main() -> Result<()> {
    let start = std::env::args().nth(1).context("usage: train_tiny START")?;
    let folder = tempfile::tempdir()?;
    train_tiny(folder.path(), Path::new(&start), |loss| println!("loss {loss:.3}"))
}

/// Trains in `folder`, and calls `on_step` with the loss of every step, in nats per supervised token.
pub fn train_tiny(
    folder: &Path,
    start: &Path,
    mut on_step: impl FnMut(f64) + 'static,
) -> Result<()> {
    let mut rows = "image,question,answer\n".to_owned();
    for (name, rgb) in [("red", [220, 20, 20]), ("green", [20, 200, 20]), ("blue", [20, 20, 220])] {
        image::RgbImage::from_pixel(64, 64, image::Rgb(rgb))
            .save(folder.join(name).with_extension("png"))?;
        rows += &format!("{name}.png,Which colour is this?,It is {name}.\n");
    }
    fs::write(folder.join("rows.csv"), rows)?;

    let mut config = TrainConfig::default();
    config.data.data_path = folder.join("rows.csv").as_path().into();
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
    run.add_sink(move |event: &Event| {
        if let Event::Step(step) = event {
            step.loss.into_iter().for_each(&mut on_step);
        }
        Ok(())
    });
    Ok(run.train(&Requests::default()).map(drop)?)
}
