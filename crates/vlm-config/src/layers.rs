//! Combines the values of settings from defaults, the stage, a recipe, a file and flags. Later
//! origins override earlier ones, and the origin of each value is recorded.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::error::ConfigError;
use crate::file::Entries;
use crate::setting::Setting;
use crate::train::{Stage, TrainConfig, settings};
use crate::{file, recipes};

/// The origin of a value. A later variant overrides an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Origin {
    /// The default of all stages.
    Default,
    /// The defaults of the stage.
    Stage,
    /// Derived from other settings or files, which the text names.
    Derived(String),
    /// The embedded demo.
    Demo,
    /// A recipe, by its name or path.
    Recipe(String),
    /// A configuration file, by its path.
    File(String),
    /// A flag.
    Flag,
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Stage => f.write_str("default of this stage"),
            Self::Derived(from) => f.write_str(from),
            Self::Demo => f.write_str("the embedded demo"),
            Self::Recipe(name) => write!(f, "recipe {name}"),
            Self::File(path) => write!(f, "{path}"),
            Self::Flag => f.write_str("flag"),
        }
    }
}

/// The values of all settings, with their origins.
#[derive(Debug, Clone)]
pub struct Layers {
    stage: Stage,
    values: BTreeMap<&'static str, (Value, Origin)>,
}

impl Layers {
    /// The defaults of a stage.
    pub fn new(stage: Stage) -> Self {
        let mut layers = Self { stage, values: BTreeMap::new() };
        let defaults = settings().iter().filter(|setting| !setting.default.is_null());
        layers.add(
            &Origin::Default,
            defaults.map(|setting| (setting, setting.default.clone())).collect(),
        );
        let of_stage = file::parse(stage.recipe(), "the stage", stage);
        layers.add(&Origin::Stage, of_stage.unwrap_or_default());
        layers
    }

    /// The settings of a configuration file, with the defaults of the stage that it names, or of
    /// pretraining if it names none.
    ///
    /// # Errors
    /// As [`crate::read_file`].
    pub fn of_file(path: &std::path::Path) -> Result<Self, ConfigError> {
        let mut layers = Self::new(file::stage_of(path).unwrap_or_default());
        layers.add_file(path)?;
        Ok(layers)
    }

    /// The stage.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Adds values. They override values of earlier origins, and earlier values of the same origin.
    pub fn add(&mut self, origin: &Origin, entries: Entries) {
        for (setting, value) in entries {
            let is_later = |(_, before): &(Value, Origin)| {
                std::mem::discriminant(before) == std::mem::discriminant(origin) || before <= origin
            };
            if self.values.get(setting.path.as_str()).is_none_or(is_later) {
                self.values.insert(&setting.path, (value, origin.clone()));
            }
        }
    }

    /// Adds a recipe: a built-in one or a file.
    ///
    /// # Errors
    /// An unknown name; otherwise as [`crate::read_file`].
    pub fn add_recipe(&mut self, name: &str) -> Result<(), ConfigError> {
        let entries = recipes::read(name, self.stage)?;
        self.add(&Origin::Recipe(name.to_owned()), entries);
        Ok(())
    }

    /// Adds a configuration file.
    ///
    /// # Errors
    /// As [`crate::read_file`].
    pub fn add_file(&mut self, path: &std::path::Path) -> Result<(), ConfigError> {
        let entries = file::read_file(path, self.stage)?;
        self.add(&Origin::File(path.display().to_string()), entries);
        Ok(())
    }

    /// Adds a value that is derived from other settings or files, described by `from`. A value that
    /// the user gave has precedence. `path` is the path of the setting, such as `optim.eps`.
    pub fn derive(&mut self, path: &str, value: impl Into<Value>, from: &str) {
        if let Some(setting) = settings().iter().find(|setting| setting.path == path) {
            self.add(&Origin::Derived(from.to_owned()), vec![(setting, value.into())]);
        }
    }

    /// The value of the setting with the path `path`; `None` if it has none.
    pub fn get(&self, path: &str) -> Option<&Value> {
        self.values.get(path).map(|(value, _)| value).filter(|value| !value.is_null())
    }

    /// The value of the setting with the path `path`, as a file system path.
    pub fn path(&self, path: &str) -> Option<PathBuf> {
        self.get(path).and_then(Value::as_str).map(PathBuf::from)
    }

    /// The origin of the value of a setting.
    pub fn origin(&self, path: &str) -> Option<&Origin> {
        self.values.get(path).map(|(_, origin)| origin)
    }

    /// Whether a recipe, a file or a flag sets the setting.
    pub fn is_given(&self, path: &str) -> bool {
        matches!(self.origin(path), Some(Origin::Recipe(_) | Origin::File(_) | Origin::Flag))
    }

    /// Every setting with its value and origin, in the order of [`settings`].
    pub fn all(&self) -> impl Iterator<Item = (&'static Setting, Option<(&Value, &Origin)>)> {
        settings().iter().map(|setting| {
            let found = self.values.get(setting.path.as_str());
            (setting, found.map(|(value, origin)| (value, origin)))
        })
    }

    /// Applies settings that affect others: `pack` sets `padding`, without `shuffle` the default of
    /// `bucket_window` is 0, and where blocks to be trained are given, `train_lm` of
    /// the stage or an earlier origin is replaced by no.
    ///
    /// # Errors
    /// `pack` and `padding` of the same origin that contradict each other.
    pub fn settle(&mut self) -> Result<(), ConfigError> {
        if self.get("data.shuffle") == Some(&Value::Bool(false)) {
            self.derive("data.bucket_window", 0, "0 because the rows are not shuffled");
        }
        // A stage or recipe may train the whole language model, which includes these blocks.
        const TRAIN_LM: &str = "model.freeze.train_lm";
        for name in ["unfreeze_first_layers", "unfreeze_last_layers"] {
            let path = format!("model.freeze.{name}");
            if self.is_given(&path) && self.origin(TRAIN_LM) < self.origin(&path) {
                let origin = Origin::Derived(format!("no because `{name}` is given"));
                self.values.insert(TRAIN_LM, (json!(false), origin));
            }
        }
        let Some((pack, origin)) = self.values.remove("data.pack") else { return Ok(()) };
        let (padding, of_padding) = self.values["data.padding"].clone();
        let is_packed = padding == "none";
        if pack == is_packed {
            return Ok(());
        }
        if of_padding == origin {
            return Err(ConfigError::Usage(if is_packed {
                "`padding` none packs the rows, but `pack` is false; leave one of them out".into()
            } else {
                format!(
                    "`pack` is the same as `padding` none, but `padding` {} is given; leave one of \
                     them out",
                    padding.as_str().unwrap_or_default()
                )
            }));
        }
        if of_padding < origin {
            let padding = if pack == true { "none" } else { "longest" };
            self.values.insert("data.padding", (json!(padding), origin));
        }
        Ok(())
    }

    /// The configuration with these values. Call [`Self::settle`] first.
    ///
    /// # Errors
    /// As [`TrainConfig::validate`].
    pub fn resolve(&self) -> Result<TrainConfig, ConfigError> {
        let mut tree = json!({"stage": self.stage});
        for (path, (value, _)) in &self.values {
            insert(&mut tree, path, value.clone());
        }
        let config: TrainConfig =
            serde_json::from_value(tree).map_err(|e| ConfigError::Usage(e.to_string()))?;
        config.validate()?;
        Ok(config)
    }
}

/// Sets the value at `path` of a tree, and creates missing objects on the path.
pub(crate) fn insert(tree: &mut Value, path: &str, value: Value) {
    let mut node = tree;
    for name in path.split('.') {
        if !node.is_object() {
            *node = Value::Object(Map::new());
        }
        node = &mut node[name];
    }
    *node = value;
}

#[cfg(test)]
mod tests {
    use super::*;
    use vlm_data::Padding;

    fn layers(added: &[(Origin, &str)]) -> Layers {
        let mut layers = Layers::new(Stage::Pretrain);
        for (origin, text) in added {
            layers.add(origin, file::parse(text, "test", Stage::Pretrain).unwrap());
        }
        layers
    }

    fn file(path: &str) -> Origin {
        Origin::File(path.into())
    }

    #[test]
    fn flags_override_the_file_the_file_the_recipe_and_all_of_them_the_defaults() {
        let layers = layers(&[
            (Origin::Flag, "epochs = 3"),
            (file("run.toml"), "epochs = 2\nbatch-size = 8"),
            (Origin::Recipe("mine".into()), "batch-size = 4\nlog-interval = 5"),
        ]);
        let config = layers.resolve().unwrap();
        assert_eq!((config.optim.epochs, config.optim.batch_size), (3, 8));
        assert_eq!((config.run.log_interval, config.optim.accumulation_steps), (5, 1));
        assert_eq!(layers.origin("optim.epochs"), Some(&Origin::Flag));
        assert_eq!(layers.origin("optim.batch_size"), Some(&file("run.toml")));
        assert_eq!(layers.origin("optim.eps"), Some(&Origin::Default));
    }

    #[test]
    fn the_defaults_are_those_of_the_config_structs_and_the_stage() {
        let config = Layers::new(Stage::Pretrain).resolve().unwrap();
        assert_eq!(config, TrainConfig::default());
        let config = Layers::new(Stage::Sft).resolve().unwrap();
        assert_eq!((config.optim.epochs, config.optim.batch_size), (6, 8));
        assert_eq!((config.optim.learning_rate, config.data.max_seq_len), (1e-6, 1536));
        assert!(config.model.freeze.train_lm);
    }

    #[test]
    fn contradicting_pack_and_padding_are_an_error_in_one_origin_and_otherwise_the_later_wins() {
        let padding = |added: &[(Origin, &str)]| {
            let mut layers = layers(added);
            layers.settle().map(|()| layers.resolve().unwrap().data.padding)
        };
        assert_eq!(padding(&[(Origin::Flag, "pack = true")]).unwrap(), Padding::None);
        let both = [(Origin::Flag, "pack = true\npadding = 'max'")];
        assert!(padding(&both).unwrap_err().to_string().contains("`padding` max"));
        assert!(padding(&[(Origin::Flag, "pack = false\npadding = 'none'")]).is_err());
        let in_file = [(file("a"), "padding = 'max'"), (Origin::Flag, "pack = true")];
        assert_eq!(padding(&in_file).unwrap(), Padding::None);
        let in_file = [(file("a"), "pack = true"), (Origin::Flag, "padding = 'max'")];
        assert_eq!(padding(&in_file).unwrap(), Padding::Max);
    }

    #[test]
    fn blocks_that_are_given_to_be_trained_replace_the_whole_language_model() {
        let trains_lm = |stage: Stage, text: &str| {
            let mut layers = Layers::new(stage);
            layers.add(&Origin::Flag, file::parse(text, "test", stage).unwrap());
            layers.settle().unwrap();
            layers.resolve().unwrap().model.freeze.train_lm
        };
        assert!(trains_lm(Stage::Sft, "epochs = 2"));
        assert!(!trains_lm(Stage::Sft, "unfreeze-last-layers = 2"));
        assert!(!trains_lm(Stage::Sft, "unfreeze-first-layers = 0"));
        assert!(trains_lm(Stage::Sft, "unfreeze-last-layers = 2\ntrain-lm = true"));
        let mut layers = layers(&[
            (Origin::Recipe("mine".into()), "train-lm = true"),
            (Origin::Flag, "unfreeze-last-layers = 2"),
        ]);
        layers.settle().unwrap();
        assert!(!layers.resolve().unwrap().model.freeze.train_lm);
    }

    #[test]
    fn without_shuffle_bucket_window_is_zero_and_another_value_is_an_error() {
        let mut ordered = layers(&[(Origin::Flag, "no-shuffle = true")]);
        ordered.settle().unwrap();
        assert_eq!(ordered.resolve().unwrap().data.bucket_window, 0);
        let mut asked = layers(&[(Origin::Flag, "no-shuffle = true\nbucket-window = 64")]);
        asked.settle().unwrap();
        let error = asked.resolve().unwrap_err().to_string();
        assert!(error.contains("`bucket_window` 64"), "{error}");
    }

    #[test]
    fn a_file_is_read_with_the_defaults_of_the_stage_that_it_names() {
        let path = tempfile::NamedTempFile::new().unwrap().into_temp_path();
        for (text, epochs) in [("stage = 'sft'", 6), ("batch-size = 1", 4)] {
            std::fs::write(&path, text).unwrap();
            let config = Layers::of_file(&path).unwrap().resolve().unwrap();
            assert_eq!(config.optim.epochs, epochs, "{text}");
        }
        let run = json!({"run": Layers::new(Stage::Sft).resolve().unwrap()});
        std::fs::write(&path, run.to_string()).unwrap();
        assert_eq!(Layers::of_file(&path).unwrap().stage(), Stage::Sft);
    }

    #[test]
    fn a_resolved_configuration_survives_writing_and_reading() {
        let text = "epochs = 3\nbetas = [0.9, 0.95]\nlm = 'w.pth'\neval-data = 'e'\ndim = 64\n\
                    data-path = ['a:0.5', 'b:0.5']\nprojector = 'mlp'\ntrain-lm = true";
        let config = layers(&[(file("a"), text)]).resolve().unwrap();
        let written = json!({"run": config}).to_string();
        let mut again = Layers::new(Stage::Pretrain);
        again.add(&file("config.json"), file::parse(&written, "c", Stage::Pretrain).unwrap());
        assert_eq!(again.resolve().unwrap(), config);
    }
}
