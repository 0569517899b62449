//! What of a configuration must be the same, as the marks of its settings say.

use serde_json::{Value, json};

use crate::layers::insert;
use crate::setting::{Scope, Setting};
use crate::train::{TrainConfig, settings};

impl TrainConfig {
    /// The settings that decide which numbers a run computes: a continued run must have them in
    /// common with the run that it continues. What files hold is not among them.
    pub fn deciding(&self) -> Value {
        self.marked(|scope| scope == Scope::Numbers)
    }

    /// The settings that must be the same on all ranks of a run.
    pub fn common_to_ranks(&self) -> Value {
        self.marked(|scope| scope != Scope::Process)
    }

    fn marked(&self, is_wanted: impl Fn(Scope) -> bool) -> Value {
        let tree = serde_json::to_value(self).unwrap_or_default();
        let mut found = json!({"stage": self.stage});
        for setting in settings().iter().filter(|setting| is_wanted(setting.traits.scope)) {
            // A setting that another one stands for has no place in the tree.
            if let Some(value) = tree.pointer(&format!("/{}", setting.path.replace('.', "/"))) {
                insert(&mut found, setting.identity_path(), value.clone());
            }
        }
        found
    }
}

/// Settings that did not exist in earlier versions, whose runs are as those with the default now:
/// their names in [`TrainConfig::deciding`] and their defaults.
pub fn defaults_of_new_settings() -> impl Iterator<Item = (&'static str, &'static Value)> {
    let new = |setting: &&Setting| setting.traits.is_new;
    settings().iter().filter(new).map(|setting| (setting.identity_path(), &setting.default))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_decides_the_numbers_is_named_as_in_checkpoints_of_earlier_versions() {
        let found = TrainConfig::default().deciding();
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
    fn ranks_have_more_in_common_than_a_continued_run() {
        let found = TrainConfig::default().common_to_ranks();
        assert_eq!(found["optim"]["max_skipped_in_a_row"], 10);
        assert_eq!(found["save_interval"], 100);
        assert_eq!(found["eval"]["interval"], Value::Null);
        assert_eq!(found["out_dir"], Value::Null, "processes may have folders of their own");
    }
}
