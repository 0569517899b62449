//! Damaged files: flipped bits, and files that are truncated, emptied or removed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

use super::lab::{IDENTICAL, Lab, Watch, copy_folder, xtask};
use super::outcome::Outcome;
use super::random::Random;
use super::trial::{Ended, checkpoints as names_of_checkpoints, newest_checkpoint};
use crate::program::output_of;

/// A kind of damage to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    FlippedBit,
    Truncated,
    Emptied,
    Removed,
}

const ALL: [Damage; 5] =
    [Damage::FlippedBit, Damage::FlippedBit, Damage::Truncated, Damage::Emptied, Damage::Removed];

impl Damage {
    fn apply(self, path: &Path, random: &mut Random) -> Result<()> {
        let mut bytes = fs::read(path).with_context(|| path.display().to_string())?;
        let at = random.below(bytes.len());
        match self {
            Self::Removed => return fs::remove_file(path).context("removing a file"),
            Self::Emptied => bytes.clear(),
            Self::Truncated => bytes.truncate(at),
            Self::FlippedBit => {
                if let Some(byte) = bytes.get_mut(at) {
                    *byte ^= 1 << random.below(8);
                }
            }
        }
        fs::write(path, bytes).context("damaging a file")
    }
}

/// Damages each file of the newest checkpoint, and then a file of every checkpoint.
pub fn checkpoints(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let mut watch = Watch::new("damage to a file of the newest checkpoint", IDENTICAL);
    for name in ["model.safetensors", "optimizer.safetensors", "state.json"] {
        for damage in ALL {
            let out = lab.half_run()?;
            let newest = newest_checkpoint(&out).context("a checkpoint")?;
            damage.apply(&newest.join(name), lab.random)?;
            let (is_same, what) = lab.resume(&out, &[])?;
            let is_renamed = names_of_checkpoints(&out).iter().any(|n| n.contains(".damaged"));
            let what =
                if is_same && is_renamed { what } else { format!("{name} {damage:?}: {what}") };
            watch.see(is_same && is_renamed, what);
        }
    }
    let mut outcomes = watch.outcome();
    let mut watch =
        Watch::new("damage to every checkpoint", "exit 2 with their names, nothing changed");
    let out = lab.half_run()?;
    for name in names_of_checkpoints(&out) {
        let file = out.join("checkpoints").join(name).join("model.safetensors");
        Damage::FlippedBit.apply(&file, lab.random)?;
    }
    let before = names_of_checkpoints(&out);
    let ended = lab.trial.train(&out, &["--resume", "auto"])?;
    let is_right = ended.code() == Some(2) && ended.names(&["step-00000006"]);
    let is_kept = is_right && before == names_of_checkpoints(&out);
    watch.see(is_kept, if is_right { "exit 2".into() } else { ended.describe() });
    outcomes.extend(watch.outcome());
    Ok(outcomes)
}

/// Damages each file of prepared rows while a run is stopped.
pub fn shards(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let shards = lab.trial.path("shards");
    let mut command = xtask()?;
    let rows = lab.trial.path("rows.jsonl");
    command.arg("prepare-data").arg("--input").arg(rows).arg("--images-path");
    command.arg(lab.trial.path("images")).arg("--output").arg(&shards);
    command.args(["--tokens-per-image", "196", "--rows-per-shard", "6"]);
    output_of(&mut command, "preparing rows")?;
    let flags = |folder: &Path| vec!["--data-path".to_owned(), folder.display().to_string()];
    damage_input(lab, "prepared rows", &shards, &flags)
}

/// Damages each file of a feature cache while a run is stopped.
pub fn features(lab: &mut Lab) -> Result<Vec<Outcome>> {
    let features = lab.trial.path("features");
    let mut command = lab.trial.vlm();
    command.args(["cache-features", "--device", "cpu", "--data-path"]);
    command.arg(lab.trial.path("rows.jsonl")).arg("--images-path").arg(lab.trial.path("images"));
    command.arg("--vision").arg(&lab.trial.vision).arg("--output").arg(&features);
    output_of(&mut command, "caching features")?;
    let flags = |folder: &Path| vec!["--features".to_owned(), folder.display().to_string()];
    damage_input(lab, "cached features", &features, &flags)
}

/// Damages each file of `input`, which a run reads with `flags`, while the run is stopped: the
/// continued run must be refused or fail with a reason, or be the same as an undisturbed one.
fn damage_input(
    lab: &mut Lab,
    what: &'static str,
    input: &Path,
    flags: &dyn Fn(&Path) -> Vec<String>,
) -> Result<Vec<Outcome>> {
    let fault = match what {
        "prepared rows" => "damage to a file of prepared rows, before a run is continued",
        _ => "damage to a file of cached features, before a run is continued",
    };
    let mut watch = Watch::new(fault, "an error with the reason, or identical");
    let given = flags(input);
    let given: Vec<&str> = given.iter().map(String::as_str).collect();
    let (whole, half) = (lab.new_out(), lab.new_out());
    expect_success(&lab.trial.train(&whole, &given)?)?;
    let reference = super::trial::Results::of(&whole)?;
    expect_success(&lab.trial.train(&half, &[&given[..], &["--max-steps", "6"]].concat())?)?;
    let mut files: Vec<PathBuf> =
        fs::read_dir(input)?.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files.iter().filter(|file| file.is_file()) {
        for damage in ALL {
            let (out, copy) = (lab.new_out(), lab.new_out());
            copy_folder(&half, &out)?;
            copy_folder(input, &copy)?;
            let name = file.file_name().unwrap_or_default();
            damage.apply(&copy.join(name), lab.random)?;
            let given = flags(&copy);
            let given = given.iter().map(String::as_str);
            let flags: Vec<&str> = given.chain(["--resume", "auto"]).collect();
            let ended = lab.trial.train(&out, &flags)?;
            let is_error = ended.code().is_some_and(|code| code != 0) && ended.names(&["error: "]);
            let seen = match is_error {
                true => format!("exit {}", ended.code().unwrap_or_default()),
                false if ended.code() != Some(0) => ended.describe(),
                false => super::trial::Results::of(&out)?
                    .difference(&reference)
                    .unwrap_or_else(|| "identical".into()),
            };
            let is_kept = is_error || seen == "identical";
            let place = format!("{} {damage:?}", name.display());
            watch.see(is_kept, if is_kept { seen } else { format!("{place}: {seen}") });
        }
    }
    Ok(watch.outcome())
}

fn expect_success(ended: &Ended) -> Result<()> {
    anyhow::ensure!(ended.code() == Some(0), "an undisturbed run fails: {}", ended.log);
    Ok(())
}
