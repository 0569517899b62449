//! Where the value of each setting comes from: defaults, then the stage, a recipe, a file, flags. The
//! later ones win, and each value remembers which it was.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::error::ConfigError;
use crate::file::Entries;
use crate::setting::Setting;
use crate::train::{Stage, TrainConfig, settings};
use crate::{file, recipes};

/// Where a value comes from; the later ones win.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Origin {
    /// The default of all stages.
    Default,
    /// The defaults of the stage.
    Stage,
    /// What other settings or files lead to; the text says which.
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

/// The values of all settings so far.
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

    /// The settings of a configuration file over the defaults of the stage that it is for, which is
    /// pretraining where it does not say.
    ///
    /// # Errors
    /// What [`crate::read_file`] says.
    pub fn of_file(path: &std::path::Path) -> Result<Self, ConfigError> {
        let mut layers = Self::new(file::stage_of(path).unwrap_or_default());
        layers.add_file(path)?;
        Ok(layers)
    }

    /// The stage.
    pub fn stage(&self) -> Stage {
        self.stage
    }

    /// Adds values, which win over those of earlier origins and over earlier ones of the same.
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

    /// Adds a recipe: one of those that are built in, or a file.
    ///
    /// # Errors
    /// An unknown name, or what [`crate::read_file`] says.
    pub fn add_recipe(&mut self, name: &str) -> Result<(), ConfigError> {
        let entries = recipes::read(name, self.stage)?;
        self.add(&Origin::Recipe(name.to_owned()), entries);
        Ok(())
    }

    /// Adds a configuration file.
    ///
    /// # Errors
    /// What [`crate::read_file`] says.
    pub fn add_file(&mut self, path: &std::path::Path) -> Result<(), ConfigError> {
        let entries = file::read_file(path, self.stage)?;
        self.add(&Origin::File(path.display().to_string()), entries);
        Ok(())
    }

    /// Adds a value that other settings or files lead to, where nobody gave another. `path` is the
    /// setting's place in the tree.
    pub fn derive(&mut self, path: &str, value: impl Into<Value>, from: &str) {
        if let Some(setting) = settings().iter().find(|setting| setting.path == path) {
            self.add(&Origin::Derived(from.to_owned()), vec![(setting, value.into())]);
        }
    }

    /// The value of a setting by its place in the tree.
    pub fn get(&self, path: &str) -> Option<&Value> {
        self.values.get(path).map(|(value, _)| value).filter(|value| !value.is_null())
    }

    /// A setting that is a path.
    pub fn path(&self, path: &str) -> Option<PathBuf> {
        self.get(path).and_then(Value::as_str).map(PathBuf::from)
    }

    /// Where the value of a setting comes from.
    pub fn origin(&self, path: &str) -> Option<&Origin> {
        self.values.get(path).map(|(_, origin)| origin)
    }

    /// Whether a recipe, file or flag says something of a setting.
    pub fn is_given(&self, path: &str) -> bool {
        matches!(self.origin(path), Some(Origin::Recipe(_) | Origin::File(_) | Origin::Flag))
    }

    /// Every setting with its value and origin, in the order in which they are listed.
    pub fn all(&self) -> impl Iterator<Item = (&'static Setting, Option<(&Value, &Origin)>)> {
        settings().iter().map(|setting| {
            let found = self.values.get(setting.path.as_str());
            (setting, found.map(|(value, origin)| (value, origin)))
        })
    }

    /// Settles what settings say together: `pack` and `padding`, and the order of the file, in which
    /// no lengths are put together.
    ///
    /// # Errors
    /// `pack` and `padding` of one origin that contradict each other.
    pub fn settle(&mut self) -> Result<(), ConfigError> {
        if self.get("data.shuffle") == Some(&Value::Bool(false)) {
            self.derive("data.bucket_window", 0, "0 because the rows are not shuffled");
        }
        let Some((pack, origin)) = self.values.remove("data.pack") else { return Ok(()) };
        let (padding, of_padding) = self.values["data.padding"].clone();
        let is_packed = padding == "none";
        if pack == is_packed {
            return Ok(());
        }
        if of_padding == origin {
            return Err(ConfigError::Usage(if is_packed {
                "`padding` none is what `pack` does, and `pack` false wants the opposite".into()
            } else {
                format!(
                    "`pack` puts rows end to end, so nothing of them is filled up, and `padding` {} \
                     wants that: give one of the two",
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

    /// The configuration of these values. Call [`Self::settle`] first.
    ///
    /// # Errors
    /// See [`TrainConfig::validate`].
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

/// Puts `value` at `path` of a tree, making the parts on the way.
pub(crate) fn insert(tree: &mut Value, path: &str, value: Value) {
    let mut place = tree;
    for name in path.split('.') {
        if !place.is_object() {
            *place = Value::Object(Map::new());
        }
        place = &mut place[name];
    }
    *place = value;
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
    fn flags_win_over_the_file_the_file_over_the_recipe_and_all_over_defaults() {
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
    fn the_defaults_are_those_of_the_structs_and_the_stage() {
        let config = Layers::new(Stage::Pretrain).resolve().unwrap();
        assert_eq!(config, TrainConfig::default());
        let config = Layers::new(Stage::Sft).resolve().unwrap();
        assert_eq!((config.optim.epochs, config.optim.batch_size), (6, 8));
        assert_eq!((config.optim.learning_rate, config.data.max_seq_len), (1e-6, 1536));
        assert!(config.model.freeze.train_lm);
    }

    #[test]
    fn pack_and_padding_contradict_each_other_in_one_place_and_the_later_wins_elsewhere() {
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
    fn without_a_shuffle_lengths_are_put_together_only_where_that_is_asked_for() {
        let mut ordered = layers(&[(Origin::Flag, "no-shuffle = true")]);
        ordered.settle().unwrap();
        assert_eq!(ordered.resolve().unwrap().data.bucket_window, 0);
        let mut asked = layers(&[(Origin::Flag, "no-shuffle = true\nbucket-window = 64")]);
        asked.settle().unwrap();
        let error = asked.resolve().unwrap_err().to_string();
        assert!(error.contains("`bucket_window` 64"), "{error}");
    }

    #[test]
    fn a_file_is_read_for_the_stage_that_it_names() {
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
    fn a_resolved_configuration_read_again_is_the_same() {
        let text = "epochs = 3\nbetas = [0.9, 0.95]\nlm = 'w.pth'\neval-data = 'e'\ndim = 64\n\
                    data-path = ['a:0.5', 'b:0.5']\nprojector = 'mlp'\ntrain-lm = true";
        let config = layers(&[(file("a"), text)]).resolve().unwrap();
        let written = json!({"run": config}).to_string();
        let mut again = Layers::new(Stage::Pretrain);
        again.add(&file("config.json"), file::parse(&written, "c", Stage::Pretrain).unwrap());
        assert_eq!(again.resolve().unwrap(), config);
    }
}
