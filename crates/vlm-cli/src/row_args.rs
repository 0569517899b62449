//! Flags for reading rows, which the commands that do not train share. They are the same as those
//! of the training.

use clap::Args;
use vlm_config::{ConfigError, DataConfig};
use vlm_data::RowOptions;

use crate::error::CliError;

/// Flags for reading rows.
#[derive(Debug, Clone, Default, Args)]
#[command(next_help_heading = "Rows")]
pub struct RowArgs {
    /// Keys or columns that hold the images of a row [default: the known names of docs/data.md].
    #[arg(long, value_name = "NAME", num_args = 1..)]
    image_key: Vec<String>,
    /// Text of the user's turn, after the image, for rows that have only a caption [default: only
    /// the image].
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    caption_question: String,
    /// Lowest rating of a turn in rows with ratings, such as relevance=3 [default: every turn].
    #[arg(long, value_name = "NAME=NUMBER", num_args = 1..)]
    min_rating: Vec<String>,
    /// Do not follow symbolic links that lead out of the folder of the images.
    #[arg(long)]
    no_follow_links: bool,
}

impl RowArgs {
    /// Checks that none of the flags was given, for a command that reads no rows. `reason` is why
    /// it reads none.
    ///
    /// # Errors
    /// One of the flags was given.
    pub fn refuse(&self, reason: &str) -> Result<(), CliError> {
        let names = [
            ("image-key", !self.image_key.is_empty()),
            ("caption-question", !self.caption_question.is_empty()),
            ("min-rating", !self.min_rating.is_empty()),
            ("no-follow-links", self.no_follow_links),
        ];
        match names.into_iter().find(|(_, is_given)| *is_given) {
            Some((name, _)) => Err(CliError::Usage(format!("--{name} has no effect: {reason}"))),
            None => Ok(()),
        }
    }

    /// The options for reading rows.
    ///
    /// # Errors
    /// A value of `--min-rating` that is not a name and a number.
    pub fn options(&self) -> Result<RowOptions, ConfigError> {
        let mut config = DataConfig::default();
        config.image_key.clone_from(&self.image_key);
        config.caption_question.clone_from(&self.caption_question);
        config.min_rating.clone_from(&self.min_rating);
        config.follow_links = !self.no_follow_links;
        config.row_options()
    }
}
