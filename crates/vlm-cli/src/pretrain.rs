//! `vlm pretrain` and `vlm sft`: runs the training.

use anyhow::Result;
use vlm_config::Stage;
use vlm_train::{Run, TrainConfig};

use crate::configuration::configuration;
use crate::outcome::{NextInputs, print_outcome};
use crate::progress::TrainingProgress;
use crate::settings_args::SettingsArgs;
use crate::{demo, interrupt};

/// Runs the command.
pub fn run(args: &SettingsArgs) -> Result<()> {
    let layers = args.layers()?;
    let requests = interrupt::requests()?;
    if layers.get("data.data_path").is_none() && layers.stage() == Stage::Pretrain {
        return demo::pretrain(layers, &requests);
    }
    let config = configuration(layers)?;
    let inputs = next_inputs(&config);
    let progress = TrainingProgress::new(config.optim.epochs);
    let mut run = Run::prepare(config)?;
    run.add_sink(progress);
    let summary = run.train(&requests)?;
    run.write_summary(&summary)?;
    run.write_report(None);
    run.out_dir().check_not_replaced()?;
    print_outcome(&run, &summary, &inputs);
    Ok(())
}

/// The evaluation rows of a run, or else the first of its training rows.
fn next_inputs(config: &TrainConfig) -> NextInputs {
    let images = config.data.images_path.clone();
    let (rows, images_path) = match &config.eval.data_path {
        Some(rows) => (rows.clone(), config.eval.images_path.clone().or(images)),
        None => (config.data.data_path.paths().first().cloned().unwrap_or_default(), images),
    };
    NextInputs { rows, images_path, image: None }
}
