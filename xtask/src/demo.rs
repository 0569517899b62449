//! Makes the embedded demo's data set: on first use, or with `cargo xtask prepare-data`.

use std::path::Path;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use vlm_demo::{demo_files, write_demo_dataset};

use crate::workspace::Workspace;

/// Makes the demo data set in the checkout unless it exists already.
pub fn ensure(workspace: &Workspace) -> Result<()> {
    let output = workspace.demo_data();
    if demo_files(&output).is_none() {
        write(&output)?;
    }
    Ok(())
}

/// Draws the demo data set into `output`.
pub fn write(output: &Path) -> Result<()> {
    eprintln!("drawing the demo data set into {}", output.display());
    let bar = ProgressBar::new(0)
        .with_style(ProgressStyle::with_template("{wide_bar} {pos}/{len} images, {eta} left")?);
    let written = write_demo_dataset(output, &mut |done, total| {
        bar.set_length(total as u64);
        bar.set_position(done as u64);
    });
    bar.finish_and_clear();
    written?;
    eprintln!("wrote the demo data set in {:.0} s", bar.elapsed().as_secs_f64());
    Ok(())
}
