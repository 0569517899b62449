//! `cargo xtask bench train`: the speed and memory of pretraining, and those of the reference on the
//! same rows from the same weights. Equal losses show that both do the same work.

mod args;
mod chart;
mod form;
mod inputs;
mod losses;
mod measured_run;
mod ours;
mod report;
mod theirs;

use anyhow::Result;
use tempfile::TempDir;
use vlm_display::{Table, count};

use crate::launch::build_vlm;
use crate::setup;
use crate::workspace::{Workspace, usage_error};
pub use args::TrainArgs;
use form::Form;
use inputs::Inputs;
use losses::LossCheck;
use ours::Ours;
use report::{Report, Side};
use theirs::Reference;

/// Runs the comparison, writes the files that `args` name, and returns their table.
pub fn run(workspace: &Workspace, args: &TrainArgs) -> Result<Table> {
    args.check()?;
    let reference = args.reference.as_deref().map(Reference::detect).transpose()?;
    let form = match (args.form, reference.as_ref().map(|reference| reference.form)) {
        (Some(asked), Some(found)) if asked != found => {
            return Err(usage_error(format!(
                "--form {asked:?}: the checkout of --reference has the form {found:?}; leave --form out"
            )));
        }
        (asked, found) => asked.or(found).unwrap_or(Form::April),
    };
    let given = args.tokenizer.clone();
    let tokenizer = given
        .or_else(|| reference.as_ref().map(Reference::tokenizer))
        .unwrap_or_else(|| workspace.data_dir().join("demo-start"));
    setup::ensure(workspace)?;
    let vlm = build_vlm(workspace)?;
    let scratch = TempDir::new()?;
    let rows = (args.warmup_steps + args.steps) * args.batch_size;
    let images = args.images.as_deref();
    let inputs = Inputs::make(&vlm, form, images, &tokenizer, rows.max(64), scratch.path())?;
    let ours = Ours { vlm: &vlm, inputs: &inputs, dtype: &args.dtype };

    let check = match &reference {
        Some(reference) if args.check_losses > 0 => {
            eprintln!("comparing the losses of {}", count(args.check_losses, "step"));
            Some(LossCheck::run(&ours, reference, args)?)
        }
        _ => None,
    };
    eprintln!("storing the features of the images");
    let features = ours.cache_features()?;
    let mut report = Report::new(form, args, &inputs, check)?;
    for round in 1..=args.rounds {
        eprintln!("round {round} of {}", args.rounds);
        report.add(Side::Ours, ours.measure(args, None)?);
        if let Some(reference) = &reference {
            report.add(Side::Reference, reference.measure(&inputs, args)?);
        }
        report.add(Side::OursCached, ours.measure(args, Some(&features))?);
    }
    report.write(args.json.as_deref(), args.svg.as_deref())?;
    Ok(report.table())
}
