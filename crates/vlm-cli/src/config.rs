//! `vlm config`: prints the settings of a training with their origins, the recipes, or the JSON
//! schema.

use anyhow::Result;
use clap::Subcommand;
use vlm_config::{Kind, RECIPES, json_schema, shown_value};
use vlm_display::{Align, Table};

use crate::configuration;
use crate::error::CliError;
use crate::settings_args::{PretrainArgs, SettingsArgs, SftArgs};

/// The subcommands of `vlm config`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Print every setting of a training with its value and origin. The output is a configuration
    /// file. The flags are those of pretrain or sft.
    #[command(subcommand)]
    Show(Box<ShowCommand>),
    /// List the recipes, or print one of them.
    Recipes {
        /// Name of the recipe to print.
        name: Option<String>,
    },
    /// Print the JSON schema of configuration files, which editors can use.
    Schema,
}

/// The training whose settings are shown.
#[derive(Debug, Subcommand)]
pub enum ShowCommand {
    /// Settings of `vlm pretrain`.
    Pretrain(PretrainArgs),
    /// Settings of `vlm sft`.
    Sft(SftArgs),
}

/// Runs the command.
pub fn run(command: ConfigCommand) -> Result<()> {
    match command {
        ConfigCommand::Show(command) => match *command {
            ShowCommand::Pretrain(args) => show(&args.0),
            ShowCommand::Sft(args) => show(&args.0),
        },
        ConfigCommand::Recipes { name } => recipes(name.as_deref()),
        ConfigCommand::Schema => {
            println!("{}", serde_json::to_string_pretty(&json_schema())?);
            Ok(())
        }
    }
}

fn show(args: &SettingsArgs) -> Result<()> {
    let mut layers = args.layers()?;
    configuration::derive(&mut layers)?;
    layers.resolve()?;
    println!("stage = \"{}\"", layers.stage().name());
    let mut heading = "";
    for (setting, found) in layers.all() {
        if setting.heading != heading {
            heading = setting.heading;
            println!("\n# {heading}");
        }
        match found.filter(|(value, _)| !value.is_null()) {
            Some((value, origin)) => {
                let value = match (value, setting.kind) {
                    (value, Kind::Number) => shown_value(value),
                    (value, _) => toml::Value::try_from(value)?.to_string(),
                };
                println!("{} = {value}  # {origin}", setting.name);
            }
            None => {
                let text = setting.default_text().unwrap_or_else(|| "none".into());
                println!("# {}: {text}  # default", setting.name);
            }
        }
    }
    Ok(())
}

fn recipes(name: Option<&str>) -> Result<()> {
    let Some(name) = name else {
        let mut table = Table::new(&[Align::Left]);
        for recipe in RECIPES {
            table.push(&[&recipe.name, &recipe.description()]);
        }
        print!("{table}");
        return Ok(());
    };
    let recipe = RECIPES.iter().find(|recipe| recipe.name == name).ok_or_else(|| {
        let names: Vec<&str> = RECIPES.iter().map(|recipe| recipe.name).collect();
        CliError::Usage(format!("there is no recipe {name}; the recipes are {}", names.join(", ")))
    })?;
    print!("{}", recipe.text);
    Ok(())
}
