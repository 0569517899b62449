//! What is known of one setting: its name, documentation, type, range and default, and what it means
//! for other processes and for a continued run.

use serde_json::Value;

use crate::kind::Kind;

/// One setting, as `settings!` declares it.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Setting {
    /// Place in the tree of a resolved configuration, as `optim.learning_rate`.
    pub path: String,
    /// Name in a configuration file, with dashes. A flag has the same name.
    pub name: String,
    /// Name that says the opposite, as `no-shuffle`, where there is one.
    pub opposite: Option<String>,
    /// What it does, in whole sentences, without the default.
    pub doc: String,
    /// Heading under which it is listed.
    pub heading: &'static str,
    /// Type of its values.
    pub kind: Kind,
    /// Value where nothing says otherwise; null where it comes from other settings or files.
    pub default: Value,
    /// What cannot be said by the type.
    pub traits: Traits,
}

/// What a declaration says of a setting beside its type.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Traits {
    /// What stands for a value in a help text: its unit, where it has one.
    pub value_name: &'static str,
    /// Name where it is not that of the field.
    pub name: Option<&'static str>,
    /// Other names that are understood.
    pub aliases: &'static [&'static str],
    /// What the default is, where the value does not say it.
    pub default_text: Option<&'static str>,
    /// Smallest value.
    pub at_least: Option<f64>,
    /// A number that the value must exceed.
    pub above: Option<f64>,
    /// Largest value.
    pub at_most: Option<f64>,
    /// What it means beyond this process.
    pub scope: Scope,
    /// Whether runs of earlier versions had the default of this setting, which did not exist.
    pub is_new: bool,
    /// Whether `no-` before the name says the opposite.
    pub is_negatable: bool,
    /// What the path of the value must lead to.
    pub path: Option<PathTraits>,
}

/// What a path leads to.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct PathTraits {
    /// What is there, for a message: "a folder of images".
    pub expected: &'static str,
    /// Whether it holds rows or images, and not a model.
    pub is_data: bool,
}

/// For whom a setting must be the same.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Scope {
    /// For nobody: it may differ among the processes of a run, and when a run is continued.
    #[default]
    Process,
    /// For all processes of a run; a continued run may have another value.
    Ranks,
    /// For all processes, and for a run and its continuation: it decides the numbers.
    Numbers,
}

/// A setting whose values are shown as `value_name`.
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
    /// Made by `settings!`: `field` of the part at `part` of the tree.
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
        // A path that must be given has no default, and is empty until then.
        let is_empty =
            default.as_str() == Some("") || default.as_array().is_some_and(Vec::is_empty);
        let default = if is_empty { Value::Null } else { default };
        let opposite = traits.is_negatable.then(|| format!("no-{name}"));
        Self { path, name, opposite, doc, heading, kind, default, traits }
    }

    /// Whether `name` means this setting: its name or another one that is understood, with dashes or
    /// underscores.
    pub fn is_called(&self, name: &str) -> bool {
        let name = name.replace('_', "-");
        self.name == name || self.traits.aliases.contains(&name.as_str())
    }

    /// The name in the identity of a run: the path without the part, but for the parts whose fields
    /// say little alone.
    pub fn identity_path(&self) -> &str {
        let path = self.path.as_str();
        ["model.shape.", "model.", "data.", "run."]
            .iter()
            .find_map(|part| path.strip_prefix(part))
            .unwrap_or(path)
    }

    /// Reads a value from text, as a command line has it.
    ///
    /// # Errors
    /// What was expected: the type or the range.
    pub fn parse(&self, text: &str) -> Result<Value, String> {
        self.check(self.kind.parse(text)?)
    }

    /// Checks a value of a file.
    ///
    /// # Errors
    /// What was expected: the type or the range.
    pub fn check(&self, value: Value) -> Result<Value, String> {
        let value = self.kind.check(value)?;
        match self.check_range(&value) {
            Some(why) => Err(why),
            None => Ok(value),
        }
    }

    /// What is wrong with a value that is out of range, as "0; it must be at least 1".
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

    /// The range in words, as "at least 1 and at most 8".
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

    /// The default in words, where there is one.
    pub fn default_text(&self) -> Option<String> {
        let of_value = || match &self.default {
            Value::Null => None,
            Value::Bool(value) => Some(if *value { "yes" } else { "no" }.to_owned()),
            value => Some(shown_value(value)),
        };
        self.traits.default_text.map(str::to_owned).or_else(of_value)
    }
}

/// A value as a user would write it on a command line.
pub fn shown_value(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(values) => values.iter().map(shown_value).collect::<Vec<_>>().join(","),
        // As short as a reader would write it: 0.0004 is 4e-4.
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
