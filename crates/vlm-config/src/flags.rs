//! Settings in messages. A library names a setting in backticks, as `max_seq_len`; a program with a
//! command line shows its users the flag.

use crate::file::find;

/// Flags of other commands than those that train.
const OTHER_FLAGS: [&str; 7] = [
    "features_dtype", "max_new_tokens", "model", "output", "recipe", "rows_per_shard",
    "tokens_per_image",
];

/// Whether a message may name `name`, written with underscores, as a setting: it is a setting of
/// training, or the flag of another command.
pub fn is_named_setting(name: &str) -> bool {
    OTHER_FLAGS.contains(&name) || find(name).is_some()
}

/// `message` with a flag in the place of each setting that it names in backticks: `--max-seq-len`
/// for `max_seq_len`, and `--resume auto` for `resume = auto`. Other words in backticks stay as they
/// are.
pub fn with_flags(message: &str) -> String {
    let mut parts = message.split('`');
    let mut shown = parts.next().unwrap_or_default().to_owned();
    let mut is_within = true;
    while let Some(part) = parts.next() {
        let (name, value) = part.split_once(" = ").unwrap_or((part, ""));
        if is_within && is_named_setting(name) {
            let gap = if value.is_empty() { "" } else { " " };
            shown += &format!("--{}{gap}{value}", name.replace('_', "-"));
            // The closing backtick is left out with the opening one.
            shown += parts.next().unwrap_or_default();
        } else {
            shown += "`";
            shown += part;
            is_within = !is_within;
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_in_backticks_are_shown_as_flags() {
        for (told, shown) in [
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
            assert_eq!(with_flags(told), shown);
        }
    }
}
