//! Checks of settings against each other, before any file or device is touched. The type and range
//! of each alone is checked where it is read ([`crate::Setting::check`]).

use vlm_data::RowOptions;

use crate::error::ConfigError;
use crate::train::{DataConfig, EvalConfig, LrSchedule, OptimConfig, TrainConfig, settings};

impl TrainConfig {
    /// Checks every setting's range, and the settings against each other.
    ///
    /// # Errors
    /// Names the settings, their values and what they must be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check_ranges()?;
        self.optim.validate()?;
        self.data.row_options()?;
        let refuse = |message: &str| Err(ConfigError::Usage(message.into()));
        if self.data.bucket_window > 0 && !self.data.shuffle {
            return Err(ConfigError::Usage(format!(
                "`bucket_window` {} takes the rows in another order, and `no_shuffle` asks for that \
                 of the file; leave one of them out",
                self.data.bucket_window
            )));
        }
        if self.model.features.is_some() && self.model.freeze.train_vision {
            return refuse(
                "`features` holds what the vision encoder made, and `train_vision` changes what it \
                 makes; leave one of them out",
            );
        }
        if self.model.features.is_some() && self.eval.data_path.is_some() {
            return refuse(
                "`eval_data` is evaluated on its images, for which the vision encoder is needed, and \
                 with `features` it is not loaded; leave one of them out, and use `vlm eval` on what \
                 the run leaves",
            );
        }
        if self.eval != EvalConfig::default() && self.eval.data_path.is_none() {
            return refuse(
                "`eval_interval`, `eval_images_path`, `eval_captions` and `eval_max_new_tokens` are \
                 for `eval_data`, which is missing",
            );
        }
        if self.optim.ema_decay.is_some() && self.model.freeze.train_vision {
            return refuse(
                "`ema_decay` averages the weights of the language model and the projector, and \
                 `train_vision` changes the vision encoder with them; leave one of them out",
            );
        }
        if self.optim.lr_vision.is_some() && !self.model.freeze.train_vision {
            return refuse(
                "`lr_vision` is the rate of the vision encoder, which is not trained; add \
                 `train_vision`, or leave it out",
            );
        }
        Ok(())
    }

    /// Checks the range of every setting, for configurations that were not read from text.
    fn check_ranges(&self) -> Result<(), ConfigError> {
        let tree = serde_json::to_value(self).map_err(|e| ConfigError::Usage(e.to_string()))?;
        for setting in settings() {
            let value = tree.pointer(&format!("/{}", setting.path.replace('.', "/")));
            let Some(value) = value.filter(|value| !value.is_null()) else { continue };
            if let Some(why) = setting.check_range(value) {
                return Err(ConfigError::Usage(format!(
                    "`{}` is {why}",
                    setting.name.replace('-', "_")
                )));
            }
        }
        Ok(())
    }
}

impl DataConfig {
    /// How rows are read.
    ///
    /// # Errors
    /// A smallest rating that is not a name and a number.
    pub fn row_options(&self) -> Result<RowOptions, ConfigError> {
        let rating = |text: &String| {
            let found = text.split_once('=').and_then(|(name, number)| {
                let number = number.trim().parse::<f64>().ok().filter(|n| n.is_finite())?;
                Some((name.trim().to_owned(), number)).filter(|(name, _)| !name.is_empty())
            });
            found.ok_or_else(|| {
                ConfigError::Usage(format!(
                    "`min_rating` {text}: expected a name and a number, as relevance=3"
                ))
            })
        };
        let mut options = RowOptions::default();
        options.caption_question = self.caption_question.clone();
        options.image_keys = self.image_key.clone();
        options.min_ratings = self.min_rating.iter().map(rating).collect::<Result<_, _>>()?;
        options.follow_links = self.follow_links;
        Ok(options)
    }
}

impl OptimConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let has_end = !matches!(self.lr_schedule, LrSchedule::Reference | LrSchedule::Constant);
        let refuse = |message: &str| Err(ConfigError::Usage(message.into()));
        if self.min_lr_ratio.is_some() && !has_end {
            return refuse(
                "`min_lr_ratio` is where the schedules cosine, linear and wsd end; choose one of \
                 them with `lr_schedule`, or leave it out",
            );
        }
        if self.decay_fraction.is_some() && self.lr_schedule != LrSchedule::Wsd {
            return refuse(
                "`decay_fraction` is for the schedule wsd; choose it with `lr_schedule`, or leave it \
                 out",
            );
        }
        if self.warmup_iters > 0 && self.warmup_fraction.is_some() {
            return refuse(
                "`warmup_iters` and `warmup_fraction` both say how long the rate rises; leave one of \
                 them out",
            );
        }
        Ok(())
    }
}
