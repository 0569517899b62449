//! The flags of `vlm pretrain`, `vlm sft` and `vlm config show`. They are generated from the list
//! of settings in `vlm-config`, one flag for each setting.

use std::path::PathBuf;

use clap::builder::ValueParser;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use serde_json::Value;
use vlm_config::{
    ConfigError, Entries, Kind, Layers, Origin, Setting, Stage, settings, with_flags,
};

/// The parsed flags of a training: a recipe, a configuration file, and settings.
#[derive(Debug, Clone)]
pub struct SettingsArgs {
    stage: Stage,
    /// Name or path of a recipe.
    pub recipe: Option<String>,
    /// Path of a configuration file.
    pub config: Option<PathBuf>,
    flags: Entries,
}

/// The flags of `vlm pretrain`.
#[derive(Debug, Clone)]
pub struct PretrainArgs(pub SettingsArgs);

/// The flags of `vlm sft`.
#[derive(Debug, Clone)]
pub struct SftArgs(pub SettingsArgs);

impl SettingsArgs {
    /// The values of all settings, from the defaults of the stage, the recipe, the file and the
    /// flags.
    ///
    /// # Errors
    /// A recipe or file that cannot be read, or that has an unknown setting or a wrong value.
    pub fn layers(&self) -> Result<Layers, ConfigError> {
        let mut layers = Layers::new(self.stage);
        if let Some(recipe) = &self.recipe {
            layers.add_recipe(recipe)?;
        }
        if let Some(path) = &self.config {
            layers.add_file(path).map_err(|error| match error {
                ConfigError::Usage(message) => ConfigError::Usage(format!("--config {message}")),
                ConfigError::Io { place, source } => {
                    ConfigError::Io { place: format!("--config {place}"), source }
                }
                other => other,
            })?;
        }
        layers.add(&Origin::Flag, self.flags.clone());
        Ok(layers)
    }

    /// Adds the flags of a stage to a command.
    pub fn augment(stage: Stage, mut command: Command) -> Command {
        command = command
            .next_help_heading("Configuration")
            .arg(Arg::new("recipe").long("recipe").value_name("NAME|FILE").help(
                "Recipe with the settings of a published training, or a TOML file with \
                         settings; `vlm config recipes` lists the recipes [default: minimind-v]",
            ))
            .arg(
                Arg::new("config")
                    .long("config")
                    .value_name("FILE")
                    .value_parser(clap::value_parser!(PathBuf))
                    .help(
                        "TOML or JSON file with settings, or the config.json of a run to repeat; \
                         flags override it",
                    ),
            );
        let defaults = Layers::new(stage);
        for setting in settings() {
            let default = match defaults.get(&setting.path) {
                Some(value) if setting.traits.default_text.is_none() => match value {
                    Value::Bool(value) => Some(if *value { "yes" } else { "no" }.to_owned()),
                    value => Some(vlm_config::shown_value(value)),
                },
                _ => setting.default_text(),
            };
            command = command.next_help_heading(setting.heading);
            command = command.arg(flag(setting, default));
            if let Some(name) = &setting.opposite {
                command = command.arg(opposite(setting, name));
            }
        }
        command
    }

    /// Reads the flags of a stage.
    pub fn from_matches(stage: Stage, matches: &ArgMatches) -> Self {
        let mut flags = Entries::new();
        for setting in settings() {
            let given = |name: &str| matches.get_many::<Value>(name).map(Iterator::cloned);
            match given(&setting.name).map(Iterator::collect::<Vec<Value>>) {
                Some(values) if setting.kind.is_list() => {
                    let paths = values.iter().filter_map(Value::as_array).flatten().cloned();
                    flags.push((setting, paths.collect()));
                }
                Some(values) => {
                    flags.extend(values.into_iter().last().map(|value| (setting, value)))
                }
                None => {}
            }
            if let Some(mut values) = setting.opposite.as_deref().and_then(given) {
                let is_off = values.next_back().and_then(|value| value.as_bool()).unwrap_or(true);
                flags.push((setting, Value::Bool(!is_off)));
            }
        }
        Self {
            stage,
            recipe: matches.get_one::<String>("recipe").cloned(),
            config: matches.get_one::<PathBuf>("config").cloned(),
            flags,
        }
    }
}

/// The flag of a setting.
fn flag(setting: &'static Setting, default: Option<String>) -> Arg {
    let default = default.map_or(String::new(), |text| format!(" [default: {text}]"));
    let parser = move |text: &str| setting.parse(text);
    let arg = Arg::new(setting.name.as_str())
        .long(setting.name.as_str())
        .aliases(setting.traits.aliases)
        .value_name(setting.traits.value_name)
        .value_parser(ValueParser::new(parser))
        .allow_negative_numbers(matches!(setting.kind, Kind::Number | Kind::Count(_)))
        .help(with_flags(&format!("{}{default}", setting.doc.trim_end_matches('.'))));
    match setting.kind {
        Kind::Paths | Kind::Words => arg.num_args(1..).action(ArgAction::Append),
        Kind::Bool => {
            let arg = as_switch(arg);
            match &setting.opposite {
                Some(opposite) => arg.overrides_with(opposite.as_str()),
                None => arg,
            }
        }
        _ => arg,
    }
}

/// The flag for the opposite of a setting.
fn opposite(setting: &'static Setting, name: &'static str) -> Arg {
    let parser = move |text: &str| setting.parse(text);
    let arg = Arg::new(name)
        .long(name)
        .value_name("BOOL")
        .value_parser(ValueParser::new(parser))
        .overrides_with(setting.name.as_str())
        .help(format!("The opposite of --{}", setting.name));
    as_switch(arg)
}

/// Makes the value of a flag optional: without a value it is true.
fn as_switch(arg: Arg) -> Arg {
    arg.num_args(0..=1).default_missing_value("true")
}

macro_rules! flags_of_stage {
    ($name:ident, $stage:expr) => {
        impl Args for $name {
            fn augment_args(command: Command) -> Command {
                SettingsArgs::augment($stage, command)
            }

            fn augment_args_for_update(command: Command) -> Command {
                Self::augment_args(command)
            }
        }

        impl FromArgMatches for $name {
            fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
                Ok(Self(SettingsArgs::from_matches($stage, matches)))
            }

            fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
                *self = Self::from_arg_matches(matches)?;
                Ok(())
            }
        }
    };
}

flags_of_stage!(PretrainArgs, Stage::Pretrain);
flags_of_stage!(SftArgs, Stage::Sft);

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::Parser;
    use serde_json::json;
    use vlm_config::{TrainConfig, with_dashes};

    use super::*;
    use crate::args::{Cli, Command};

    fn layers(args: &[&str]) -> Layers {
        let all = ["vlm", "pretrain"].iter().chain(args).map(OsString::from);
        match Cli::try_parse_from(all.map(with_dashes)).unwrap().command {
            Command::Pretrain(args) => args.0.layers().unwrap(),
            other => panic!("{other:?}"),
        }
    }

    fn config(args: &[&str]) -> TrainConfig {
        let mut layers = layers(args);
        layers.settle().unwrap();
        layers.resolve().unwrap()
    }

    #[test]
    fn flags_with_underscores_as_in_the_reference_are_accepted() {
        let config = config(&["--data_path", "a_b.jsonl", "--batch_size=4", "--use_moe", "False"]);
        assert_eq!(json!(config.data.data_path), "a_b.jsonl");
        assert_eq!((config.optim.batch_size, config.model.shape.use_moe), (4, Some(false)));
    }

    #[test]
    fn the_last_value_of_a_repeated_flag_is_used() {
        let config =
            config(&["--batch-size", "4", "--batch_size=8", "--drop-last", "--drop-last", "false"]);
        assert_eq!((config.optim.batch_size, config.data.drop_last), (8, false));
    }

    #[test]
    fn data_path_takes_several_values_and_may_be_repeated() {
        let args = ["--data-path", "a.jsonl", "b.jsonl", "--epochs", "1", "--data-path=c"];
        assert_eq!(json!(config(&args).data.data_path), json!(["a.jsonl", "b.jsonl", "c"]));
    }

    #[test]
    fn hugging_face_names_of_the_shape_are_accepted() {
        let shape = config(&["--hidden_size", "768", "--num-hidden-layers=16"]).model.shape;
        assert_eq!((shape.dim, shape.n_layers), (Some(768), Some(16)));
    }

    #[test]
    fn the_later_of_two_opposite_flags_is_used() {
        assert!(!config(&["--shuffle", "--no-shuffle"]).data.shuffle);
        assert!(config(&["--no-shuffle", "--shuffle"]).data.shuffle);
        assert!(config(&["--no-shuffle", "false"]).data.shuffle);
    }

    #[test]
    fn flags_override_the_file_and_the_file_overrides_the_recipe() {
        let file = std::env::temp_dir().join(format!("vlm-settings-{}.toml", std::process::id()));
        std::fs::write(&file, "batch-size = 8\nepochs = 2\n").unwrap();
        let path = file.to_str().unwrap().to_owned();
        let layers = layers(&["--recipe", "minimind-3v", "--config", &path, "--epochs", "3"]);
        std::fs::remove_file(&file).unwrap();
        let config = layers.resolve().unwrap();
        assert_eq!((config.optim.epochs, config.optim.batch_size), (3, 8));
        assert_eq!(config.data.max_seq_len, 450);
        assert_eq!(layers.origin("optim.batch_size"), Some(&Origin::File(path)));
        assert_eq!(layers.origin("optim.epochs"), Some(&Origin::Flag));
    }

    #[test]
    fn an_error_about_a_value_names_its_flag_and_what_is_expected() {
        for (flag, value, part) in [
            ("--epochs", "0", "at least 1"),
            ("--batch-size", "x", "a whole number"),
            ("--batch-size", "-1", "not negative"),
            ("--seed", "18446744073709551616", "at most 18446744073709551615"),
            ("--unfreeze-last-layers", "9223372036854775808", "at most 9223372036854775807"),
            ("--num-workers", "1025", "at most 1024"),
            ("--padding", "square", "longest, max, none"),
            ("--betas", "0.9", "two numbers"),
            ("--learning-rate", "-1", "more than 0"),
        ] {
            let error = Cli::try_parse_from(["vlm", "pretrain", flag, value]).unwrap_err();
            let message = error.to_string();
            assert!(message.contains(flag) && message.contains(part), "{message}");
        }
    }
}
