//! The description of a setting: its name, documentation, type, range and default, and whether it
//! must be the same on other ranks and in a continued run.

use serde_json::Value;

use crate::kind::Kind;

/// A setting, as the macro `settings!` declares it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Setting {
    /// Path in a resolved configuration, such as `optim.learning_rate`.
    pub path: String,
    /// Name in a configuration file, with dashes. The flag has the same name.
    pub name: String,
    /// Name of the opposite, such as `no-shuffle`, if there is one.
    pub opposite: Option<String>,
    /// What the setting does, in whole sentences, without the default. Names other settings in
    /// backticks, see [`crate::with_flags`].
    pub doc: String,
    /// Heading under which the setting is listed.
    pub heading: &'static str,
    /// Type of the values.
    pub kind: Kind,
    /// Default; null if there is none or if it comes from other settings or files.
    pub default: Value,
    /// Further properties of the setting.
    pub traits: Traits,
}

/// Properties of a setting besides its type and default.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Traits {
    /// Placeholder for the value in a help text, such as its unit.
    pub value_name: &'static str,
    /// Name of the setting, if it differs from the name of the field.
    pub name: Option<&'static str>,
    /// Other accepted names.
    pub aliases: &'static [&'static str],
    /// Description of the default, for defaults that are not one value; names settings as `doc`.
    pub default_text: Option<&'static str>,
    /// Smallest value.
    pub at_least: Option<f64>,
    /// Exclusive lower bound of the value.
    pub above: Option<f64>,
    /// Largest value.
    pub at_most: Option<f64>,
    /// Where the setting must have the same value.
    pub scope: Scope,
    /// Whether earlier versions did not have the setting, and behaved as with its default.
    pub is_new: bool,
    /// Whether the opposite of the setting is its name with the prefix `no-`.
    pub is_negatable: bool,
    /// For a path that must exist: what it is the path of.
    pub path: Option<PathTraits>,
}

/// Properties of a setting that is a path.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PathTraits {
    /// Description of the file or folder for a message, such as "a folder of images".
    pub expected: &'static str,
    /// Whether it holds rows or images; otherwise it holds a model.
    pub is_data: bool,
}

/// Where a setting must have the same value.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// It may differ between the ranks of a run, and in a continued run.
    #[default]
    Process,
    /// It must be the same on all ranks of a run, but may differ in a continued run.
    Ranks,
    /// It must be the same on all ranks and in a continued run, because it determines the numbers.
    Numbers,
}

/// A setting whose value has the placeholder `value_name` in help texts.
pub(crate) const fn shown(value_name: &'static str) -> Traits {
    Traits {
        value_name,
        name: None,
        aliases: &[],
        default_text: None,
        at_least: None,
        above: None,
        at_most: None,
        scope: Scope::Process,
        is_new: false,
        is_negatable: false,
        path: None,
    }
}

/// A setting that is true or false.
pub(crate) const fn switch() -> Traits {
    shown("BOOL")
}

impl Traits {
    pub(crate) const fn named(mut self, name: &'static str) -> Self {
        self.name = Some(name);
        self
    }

    pub(crate) const fn or_named(mut self, aliases: &'static [&'static str]) -> Self {
        self.aliases = aliases;
        self
    }

    pub(crate) const fn default_is(mut self, text: &'static str) -> Self {
        self.default_text = Some(text);
        self
    }

    pub(crate) const fn at_least(mut self, smallest: f64) -> Self {
        self.at_least = Some(smallest);
        self
    }

    pub(crate) const fn above(mut self, bound: f64) -> Self {
        self.above = Some(bound);
        self
    }

    pub(crate) const fn at_most(mut self, largest: f64) -> Self {
        self.at_most = Some(largest);
        self
    }

    pub(crate) const fn decides_numbers(mut self) -> Self {
        self.scope = Scope::Numbers;
        self
    }

    pub(crate) const fn same_on_all_ranks(mut self) -> Self {
        self.scope = Scope::Ranks;
        self
    }

    pub(crate) const fn newly_added(mut self) -> Self {
        self.is_new = true;
        self
    }

    pub(crate) const fn negatable(mut self) -> Self {
        self.is_negatable = true;
        self
    }

    pub(crate) const fn of_data(mut self, expected: &'static str) -> Self {
        self.path = Some(PathTraits { expected, is_data: true });
        self
    }

    pub(crate) const fn of_model(mut self, expected: &'static str) -> Self {
        self.path = Some(PathTraits { expected, is_data: false });
        self
    }
}

impl Setting {
    /// The setting for `field` of the part of the configuration with the path `part`. Called by the
    /// macro `settings!`.
    pub(crate) fn declare(
        part: &str,
        field: &str,
        doc: &[&str],
        heading: &'static str,
        kind: Kind,
        default: Value,
        traits: Traits,
    ) -> Self {
        let name = traits.name.unwrap_or(field).replace('_', "-");
        let path = if part.is_empty() { field.to_owned() } else { format!("{part}.{field}") };
        let doc = doc.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" ");
        // An empty path stands for a required setting without a default.
        let is_empty =
            default.as_str() == Some("") || default.as_array().is_some_and(Vec::is_empty);
        let default = if is_empty { Value::Null } else { default };
        let opposite = traits.is_negatable.then(|| format!("no-{name}"));
        Self { path, name, opposite, doc, heading, kind, default, traits }
    }

    /// Whether `name` is the name or an alias of this setting, with dashes or underscores.
    pub fn is_called(&self, name: &str) -> bool {
        let name = name.replace('_', "-");
        self.name == name || self.traits.aliases.contains(&name.as_str())
    }

    /// The name in the identity of a run: the path without its part `model.shape`, `model`, `data`
    /// or `run`.
    pub fn identity_path(&self) -> &str {
        let path = self.path.as_str();
        ["model.shape.", "model.", "data.", "run."]
            .iter()
            .find_map(|part| path.strip_prefix(part))
            .unwrap_or(path)
    }

    /// Reads a value from `text`, as it is written on a command line.
    ///
    /// # Errors
    /// A value of the wrong type or out of range; the text says what was expected.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        self.check(self.kind.parse(text)?)
    }

    /// Checks a value of a file.
    ///
    /// # Errors
    /// A value of the wrong type or out of range; the text says what was expected.
    pub fn check(&self, value: Value) -> Result<Value, String> {
        let value = self.kind.check(value)?;
        match self.check_range(&value) {
            Some(error) => Err(error),
            None => Ok(value),
        }
    }

    /// The error for a value out of range, such as "0; it must be at least 1"; `None` for any other
    /// value.
    pub(crate) fn check_range(&self, value: &Value) -> Option<String> {
        let Traits { at_least, above, at_most, .. } = self.traits;
        let is_within = |number: f64| {
            at_least.is_none_or(|least| number >= least)
                && above.is_none_or(|bound| number > bound)
                && at_most.is_none_or(|most| number <= most)
        };
        let is_right = match value {
            Value::Array(values) => values.iter().filter_map(Value::as_f64).all(is_within),
            value => value.as_f64().is_none_or(is_within),
        };
        let range = self.range().filter(|_| !is_right)?;
        Some(format!("{}; it must be {range}", shown_value(value)))
    }

    /// A description of the range, such as "at least 1 and at most 8"; `None` without bounds.
    pub fn range(&self) -> Option<String> {
        let Traits { at_least, above, at_most, .. } = self.traits;
        let bounds = [
            above.map(|bound| format!("more than {bound}")),
            at_least.map(|least| format!("at least {least}")),
            at_most.map(|most| format!("at most {most}")),
        ];
        let bounds: Vec<String> = bounds.into_iter().flatten().collect();
        (!bounds.is_empty()).then(|| bounds.join(" and "))
    }

    /// A description of the default; `None` without a default.
    pub fn default_text(&self) -> Option<String> {
        let of_value = || match &self.default {
            Value::Null => None,
            Value::Bool(value) => Some(if *value { "yes" } else { "no" }.to_owned()),
            value => Some(shown_value(value)),
        };
        self.traits.default_text.map(str::to_owned).or_else(of_value)
    }
}

/// A value as it is written on a command line.
pub fn shown_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown_value).collect::<Vec<_>>().join(","),
        // Small numbers in scientific notation: 0.0004 is 4e-4.
        Value::Number(number) => match number.as_f64() {
            Some(float)
                if !number.is_u64() && !number.is_i64() && float != 0.0 && float.abs() < 1e-2 =>
            {
                format!("{float:e}")
            }
            _ => number.to_string(),
        },
        value => value.to_string(),
    }
}
