//! Recipes: settings of published training runs, as TOML files. Those in `recipes/` are built in.

use std::path::Path;

use crate::error::ConfigError;
use crate::file::{self, Entries};
use crate::train::Stage;

/// A built-in recipe.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Recipe {
    /// The name of the recipe.
    pub name: &'static str,
    /// The text of its TOML file.
    pub text: &'static str,
}

/// The built-in recipes; the first one is the default.
pub const RECIPES: &[Recipe] = &[
    Recipe { name: "minimind-v", text: include_str!("../recipes/minimind-v.toml") },
    Recipe { name: "minimind-3v", text: include_str!("../recipes/minimind-3v.toml") },
    Recipe { name: "nanovlm", text: include_str!("../recipes/nanovlm.toml") },
    Recipe { name: "llava-pretrain", text: include_str!("../recipes/llava-pretrain.toml") },
];

impl Recipe {
    /// A description of the recipe, in one or two sentences.
    pub fn description(&self) -> String {
        let table: toml::Table = toml::from_str(self.text).unwrap_or_default();
        table.get("description").and_then(toml::Value::as_str).unwrap_or_default().to_owned()
    }
}

/// The settings of a recipe: a built-in one with this name, or the file at this path.
pub(crate) fn read(name: &str, stage: Stage) -> Result<Entries, ConfigError> {
    if let Some(recipe) = RECIPES.iter().find(|recipe| recipe.name == name) {
        return file::parse(recipe.text, &format!("recipe {name}"), stage);
    }
    let path = Path::new(name);
    if !path.exists() {
        let names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
        return Err(ConfigError::Usage(format!(
            "`recipe` {name}: there is no recipe and no file with this name; the recipes are {}",
            names.join(", ")
        )));
    }
    file::read_file(path, stage)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layers::Layers;
    use crate::train::TrainConfig;
    use crate::values::LrSchedule;

    fn of(name: &str, stage: Stage) -> TrainConfig {
        let mut layers = Layers::new(stage);
        layers.add_recipe(name).unwrap();
        layers.settle().unwrap();
        layers.resolve().unwrap()
    }

    #[test]
    fn the_default_recipe_equals_the_defaults() {
        for stage in [Stage::Pretrain, Stage::Sft] {
            let defaults = Layers::new(stage).resolve().unwrap();
            assert_eq!(of(RECIPES[0].name, stage), defaults, "{stage:?}");
        }
    }

    #[test]
    fn minimind_3v_has_settings_for_both_stages() {
        let pretrain = of("minimind-3v", Stage::Pretrain);
        assert_eq!((pretrain.data.max_seq_len, pretrain.optim.batch_size), (450, 16));
        assert_eq!(pretrain.model.freeze.unfreeze_last_layers, 0);
        let sft = of("minimind-3v", Stage::Sft);
        assert_eq!((sft.data.max_seq_len, sft.optim.learning_rate), (768, 5e-6));
        let freeze = &sft.model.freeze;
        assert_eq!((freeze.unfreeze_first_layers, freeze.unfreeze_last_layers), (1, 1));
        assert!(!freeze.train_lm);
        assert_eq!(sft.optim.lr_schedule, LrSchedule::MiniMind3v);
        for config in [&pretrain, &sft] {
            let draws = config.data.chat_draws().unwrap();
            assert_eq!((draws.empty_think_ratio, draws.add_system_ratio), (0.2, 0.2));
            assert_eq!(draws.system_prompts.len(), 10);
        }
    }

    #[test]
    fn every_recipe_is_valid_for_both_stages_and_has_a_description() {
        for recipe in RECIPES {
            for stage in [Stage::Pretrain, Stage::Sft] {
                of(recipe.name, stage);
            }
            assert!(recipe.description().ends_with('.'), "{}", recipe.name);
        }
    }

    #[test]
    fn an_unknown_recipe_is_an_error_that_lists_the_recipes() {
        let error = Layers::new(Stage::Pretrain).add_recipe("minimind-4").unwrap_err().to_string();
        assert!(error.contains("minimind-4") && error.contains("nanovlm"), "{error}");
    }
}
