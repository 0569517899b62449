//! Names of settings in messages and descriptions. Libraries write them in backticks with underscores, such as
//! `max_seq_len`; programs with a command line show the flag instead.

use std::ffi::OsString;

use crate::file::find;

/// Flags of commands that do not train.
const OTHER_FLAGS: [&str; 9] = [
    "features_dtype", "max_new_tokens", "model", "output", "recipe", "rows_per_shard",
    "tokens_per_image", "export_hf", "without_vision",
];

/// Whether `name`, written with underscores, is a setting of a training or a flag of another
/// command.
pub fn is_named_setting(name: &str) -> bool {
    OTHER_FLAGS.contains(&name) || find(name).is_some()
}

/// Replaces each setting that `message` names in backticks by its flag: `max_seq_len` becomes
/// `--max-seq-len`, and `resume = auto` becomes `--resume auto`. Other words in backticks are not
/// changed.
pub fn with_flags(message: &str) -> String {
    let mut parts = message.split('`');
    let mut shown = parts.next().unwrap_or_default().to_owned();
    let mut is_within = true;
    while let Some(part) = parts.next() {
        let (name, value) = part.split_once(" = ").unwrap_or((part, ""));
        if is_within && is_named_setting(name) {
            let gap = if value.is_empty() { "" } else { " " };
            shown += &format!("--{}{gap}{value}", name.replace('_', "-"));
            // The closing backtick is omitted, as is the opening one.
            shown += parts.next().unwrap_or_default();
        } else {
            shown += "`";
            shown += part;
            is_within = !is_within;
        }
    }
    shown
}

/// Replaces underscores in the name of a flag by dashes, because the reference has flags such as
/// `--data_path`: `--n_layers=8` becomes `--n-layers=8`. Other arguments are not changed.
pub fn with_dashes(arg: OsString) -> OsString {
    let Some(flag) = arg.to_str().filter(|text| text.starts_with("--")) else { return arg };
    match flag.split_once('=') {
        Some((name, value)) => format!("{}={value}", name.replace('_', "-")).into(),
        None => flag.replace('_', "-").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings;

    #[test]
    fn descriptions_of_settings_name_no_flags() {
        for setting in settings() {
            let texts = [setting.doc.as_str(), setting.traits.default_text.unwrap_or_default()];
            assert!(!texts.concat().contains("--"), "{}: {texts:?}", setting.name);
        }
    }

    #[test]
    fn settings_in_backticks_are_shown_as_flags() {
        for (message, shown) in [
            ("`min_lr_ratio` is 3; see `lr_schedule`", "--min-lr-ratio is 3; see --lr-schedule"),
            (
                "run `vlm init`, or leave `no_shuffle` out",
                "run `vlm init`, or leave --no-shuffle out",
            ),
            ("choose another `output`", "choose another --output"),
            ("set `resume = auto`, or", "set --resume auto, or"),
            ("unknown setting `batch_sizes`; no", "unknown setting `batch_sizes`; no"),
            ("one ` alone", "one ` alone"),
        ] {
            assert_eq!(with_flags(message), shown);
        }
    }
}
