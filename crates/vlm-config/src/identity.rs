//! The settings that must be the same on all ranks, or in a continued run (see [`Scope`]).

use serde_json::{Value, json};

use crate::layers::insert;
use crate::setting::{Scope, Setting};
use crate::train::{TrainConfig, settings};

impl TrainConfig {
    /// The settings that determine the numbers of a run: they must be the same in a continued run.
    /// The contents of files are not part of them.
    pub fn numerical_settings(&self) -> Value {
        let mut found = self.with_scope(|scope| scope == Scope::Numbers);
        if self.optim.skip_loss_spikes {
            insert(&mut found, "optim.loss_spike_factor", json!(self.optim.loss_spike_factor));
        }
        found
    }

    /// The settings that must be the same on all ranks of a run.
    pub fn common_to_ranks(&self) -> Value {
        self.with_scope(|scope| scope != Scope::Process)
    }

    fn with_scope(&self, is_wanted: impl Fn(Scope) -> bool) -> Value {
        let tree = serde_json::to_value(self).unwrap_or_default();
        let mut found = json!({"stage": self.stage});
        for setting in settings().iter().filter(|setting| is_wanted(setting.traits.scope)) {
            // A shorthand for another setting, such as `pack`, is not in the tree.
            if let Some(value) = tree.pointer(&format!("/{}", setting.path.replace('.', "/"))) {
                insert(&mut found, setting.identity_path(), value.clone());
            }
        }
        found
    }
}

/// The settings that earlier versions did not have, by their names in
/// [`TrainConfig::numerical_settings`], with their defaults. A run of an earlier version is the
/// same as a run with these defaults.
pub fn defaults_of_new_settings() -> impl Iterator<Item = (&'static str, &'static Value)> {
    let new = |setting: &&Setting| setting.traits.is_new;
    settings().iter().filter(new).map(|setting| (setting.identity_path(), &setting.default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numerical_settings_have_the_names_of_earlier_checkpoints() {
        let found = TrainConfig::default().numerical_settings();
        let is_new = |name: &str| defaults_of_new_settings().any(|(new, _)| new == name);
        let names = found.as_object().unwrap().keys().cloned();
        let mut old: Vec<String> = names.filter(|name| !is_new(name)).collect();
        old.sort();
        assert_eq!(
            old,
            [
                "bucket_window", "drop_last", "freeze", "max_seq_len", "optim", "padding", "seed",
                "shuffle", "stage"
            ]
        );
        assert_eq!(found["optim"]["learning_rate"], 4e-4);
        assert_eq!(found["optim"]["max_skipped_in_a_row"], Value::Null);
        assert_eq!(
            found["freeze"],
            json!({
                "unfreeze_last_layers": 1, "unfreeze_first_layers": 0, "train_lm": false,
                "train_vision": false,
            })
        );
    }

    #[test]
    fn settings_common_to_ranks_include_those_that_a_continued_run_may_change() {
        let found = TrainConfig::default().common_to_ranks();
        assert_eq!(found["optim"]["max_skipped_in_a_row"], 10);
        assert_eq!(found["save_interval"], 100);
        assert_eq!(found["eval"]["interval"], Value::Null);
        assert_eq!(found["out_dir"], Value::Null, "processes may have different folders");
    }
}
