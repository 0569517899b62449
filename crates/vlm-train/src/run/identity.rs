//! The identity of a run: all settings and file contents that determine the numbers it computes. A
//! run continues from a checkpoint only if both have the same identity. Paths are not part of it:
//! rows, tokenizer and weights are compared by content.

use std::collections::BTreeSet;

use serde_json::{Value, json};
use vlm_display::shorten;
use vlm_model::Vlm;

use super::parts::Parts;
use crate::TrainError;
use crate::config::{TrainConfig, defaults_of_new_settings};
use crate::leaves::leaves;
use crate::parallel::{RankIdentity, World};
use crate::tensor_hash::hash_of_tensors;

/// Entry with the hash of a frozen vision encoder. Checkpoints do not hold it, so a continued run
/// must have the same one.
const FROZEN_ENCODER: &str = "vision_weights";
/// Entry with the hash of the language model that the run started from. Checkpoints hold all of its
/// weights, so a continued run needs only the same shape.
const STARTING_LM: &str = "starting_lm_weights";
/// Entry with the number of epochs. A continued run may have more.
const EPOCHS: &str = "optim.epochs";
/// Entries in checkpoints of earlier versions that do not determine any numbers.
const IGNORED: [&str; 2] = ["data_path", "optim.max_skipped_in_a_row"];
/// Largest number of characters of a value that a message shows.
const MAX_SHOWN: usize = 120;

/// The settings and contents that determine the numbers of a run. The number of processes is not
/// part of them, only the number of rows in a batch of all processes.
pub(super) fn identity(config: &TrainConfig, world: &World, parts: &Parts) -> Value {
    let batch_size = config.optim.batch_size.saturating_mul(world.world_size());
    let mut identity = config.numerical_settings();
    identity["optim"]["batch_size"] = batch_size.into();
    identity["row_weights"] = json!(config.data.data_path.weights());
    add(&mut identity, parts.contents());
    identity
}

/// The settings and contents that must be the same on all ranks. Paths may differ.
pub(super) fn common_to_ranks(config: &TrainConfig, parts: &Parts) -> RankIdentity {
    let mut settings = config.common_to_ranks();
    add(&mut settings, parts.contents());
    settings["evaluates"] = config.eval.data_path.is_some().into();
    settings["device"] = if parts.device.is_cuda() { "cuda" } else { "cpu" }.into();
    RankIdentity::new(format!("{}, files {}", parts.rows, parts.row_files), settings)
}

/// Adds the fields of the object `more` to the object `tree`.
fn add(tree: &mut Value, more: Value) {
    if let (Value::Object(tree), Value::Object(more)) = (tree, more) {
        tree.extend(more);
    }
}

/// Adds the hashes of the starting weights to the identity of the run, and compares them with those
/// of the run to continue, whose identity is `before`.
///
/// # Errors
/// The frozen vision encoder is another one.
pub(super) fn add_weights(
    identity: &mut Value,
    model: &Vlm,
    before: Option<&Value>,
) -> Result<(), TrainError> {
    let recorded = |name: &str| before.and_then(|before| before[name].as_str());
    let encoder = model.vision_params();
    if encoder.trainable().is_empty() && encoder.num_elements() > 0 {
        let now = hash_of_tensors(&encoder.named())?;
        if let Some(before) = recorded(FROZEN_ENCODER)
            && before != now
        {
            return Err(TrainError::Usage(format!(
                "`vision`: the weights of the vision encoder have the hash {now}, but had {before} \
                 in the run to continue; use the same encoder, or start a new run in another \
                 `out_dir`"
            )));
        }
        identity[FROZEN_ENCODER] = now.into();
    }
    let now = hash_of_tensors(&model.params().named())?;
    match recorded(STARTING_LM) {
        Some(before) if before != now => {
            tracing::warn!(
                "`lm` is not used: its weights differ from those that the run to continue started \
                 from, but the checkpoint holds all weights of the language model"
            );
            identity[STARTING_LM] = before.into();
        }
        _ => identity[STARTING_LM] = now.into(),
    }
    Ok(())
}

/// Checks that a run with the identity `now` may continue a run with the identity `before`: all
/// entries must be equal except the number of epochs, which may be larger. `place` is the path of
/// the checkpoint, for messages.
///
/// # Errors
/// Entries that differ; the message gives both values of each, and what to do.
pub(super) fn compare(place: &str, before: &Value, now: &Value) -> Result<(), TrainError> {
    // If only one of the two uses cached features, `features` is compared as one value.
    let is_whole = before["features"].is_null() || now["features"].is_null();
    let whole: &[&str] = if is_whole { &["features"] } else { &[] };
    let mut old = flat(before, whole);
    let new = flat(now, whole);
    // A setting that an earlier version did not have is compared as its default.
    for (name, default) in defaults_of_new_settings() {
        let is_in = |tree: &[(String, String)]| tree.iter().any(|(other, _)| other == name);
        if is_in(&new) && !is_in(&old) {
            old.push((name.to_owned(), default.to_string()));
        }
    }
    let mut changed = Vec::new();
    for (name, value) in &old {
        let is_checked_elsewhere = [FROZEN_ENCODER, STARTING_LM].contains(&name.as_str());
        if IGNORED.contains(&name.as_str()) || is_checked_elsewhere {
            continue;
        }
        let found = new.iter().find(|(other, _)| other == name).map(|(_, value)| value);
        if found == Some(value) || (name == EPOCHS && epochs(now) > epochs(before)) {
            continue;
        }
        let found = found.map_or("absent".to_owned(), |value| shorten(value, MAX_SHOWN));
        changed.push(format!(
            "{name} was {} and is now {found} ({})",
            shorten(value, MAX_SHOWN),
            source(name)
        ));
    }
    if !changed.is_empty() {
        return Err(TrainError::Usage(format!(
            "{place}: the run to continue had other settings: {}. Use its settings, or start a new \
             run in another `out_dir`",
            changed.join("; ")
        )));
    }
    let is_new = |name: &&String| !old.iter().any(|(other, _)| other == *name);
    let unknown: BTreeSet<&str> = new
        .iter()
        .map(|(name, _)| name)
        .filter(is_new)
        .map(|name| name.split('.').next().unwrap_or(name))
        .collect();
    if !unknown.is_empty() {
        tracing::warn!(
            "{place} was written by an earlier version of this program, which did not record {}; \
             these are not compared",
            unknown.into_iter().collect::<Vec<_>>().join(", ")
        );
    }
    Ok(())
}

/// The number of epochs in a run's identity.
pub(super) fn epochs(identity: &Value) -> Option<u64> {
    identity["optim"]["epochs"].as_u64()
}

/// Every leaf of the tree with its path. Each entry named in `whole` is kept as one value.
fn flat(identity: &Value, whole: &[&str]) -> Vec<(String, String)> {
    let mut rest = identity.clone();
    let mut found = Vec::new();
    if let Some(fields) = rest.as_object_mut() {
        for &name in whole {
            found.extend(fields.remove(name).map(|value| (name.to_owned(), value.to_string())));
        }
    }
    found.extend(leaves(&rest).into_iter().map(|(name, value)| (name, value.to_string())));
    found
}

/// The setting, or another cause, that determines the entry `name`, for a message.
fn source(name: &str) -> String {
    let (part, rest) = name.split_once('.').unwrap_or((name, name));
    match (part, rest) {
        ("rows" | "row_files", _) => "the rows of `data_path` are not the same".into(),
        ("row_weights", _) => "the weights in `data_path`".into(),
        ("image_processor" | "vision", _) => "`vision`, or `image_size`".into(),
        ("features", _) => "`features`".into(),
        ("lm", "dropout") => "`dropout`".into(),
        ("lm", _) => "`lm` and the config.json in its folder".into(),
        ("projector", _) => "`projector`, or `lm`".into(),
        ("stage", _) => "the command, pretrain or sft".into(),
        ("optim", "batch_size") => "`batch_size` times the number of processes".into(),
        (_, rest) => format!("`{rest}`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn base() -> Value {
        json!({
            "rows": "8 rows, aa", "dtype": "float32", "features": null, "lm": {"dropout": 0.0},
            "optim": {"epochs": 4, "batch_size": 8, "learning_rate": 4e-4},
        })
    }

    fn refusal(change: impl FnOnce(&mut Value)) -> String {
        let mut now = base();
        change(&mut now);
        compare("step-8", &base(), &now).map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn a_changed_setting_is_refused_with_both_values_and_its_name() {
        let message = refusal(|now| now["optim"]["batch_size"] = 6.into());
        assert!(message.contains("optim.batch_size was 8 and is now 6 (`batch_size`"), "{message}");
        let message = refusal(|now| now["rows"] = "10 rows, bb".into());
        assert!(
            message.contains("rows was \"8 rows, aa\" and is now \"10 rows, bb\""),
            "{message}"
        );
        let message = refusal(|now| now["lm"]["dropout"] = 0.1.into());
        assert!(message.contains("(`dropout`)"), "{message}");
        let message = refusal(|now| now["features"] = json!({"encoder": "x".repeat(5000)}));
        assert!(
            message.contains("features was null") && message.contains("characters)"),
            "{message}"
        );
        assert!(message.len() < 500, "{message}");
    }

    #[test]
    fn more_epochs_are_allowed_and_fewer_are_not() {
        assert_eq!(refusal(|now| now["optim"]["epochs"] = 8.into()), "");
        let message = refusal(|now| now["optim"]["epochs"] = 2.into());
        assert!(message.contains("optim.epochs was 4 and is now 2 (`epochs`)"), "{message}");
    }

    #[test]
    fn entries_that_an_earlier_version_did_not_record_are_not_compared() {
        let mut before = base();
        before.as_object_mut().unwrap().remove("dtype");
        before["data_path"] = "elsewhere.jsonl".into();
        before["optim"]["max_skipped_in_a_row"] = 10.into();
        compare("step-8", &before, &base()).unwrap();
        before["optim"]["learning_rate"] = 1.0.into();
        assert!(compare("step-8", &before, &base()).is_err());
    }
}
