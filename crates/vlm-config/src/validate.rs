//! Checks settings against each other, before any file or device is used. The type and range of
//! each setting is checked when it is read ([`crate::Setting::check`]).

use vlm_data::{ChatDraws, RowOptions};

use crate::error::ConfigError;
use crate::train::{DataConfig, EvalConfig, OptimConfig, TrainConfig, settings};
use crate::values::LrSchedule;

impl TrainConfig {
    /// Checks the range of every setting, and the settings against each other.
    ///
    /// # Errors
    /// Settings that are out of range or contradict each other. The message names them and says
    /// what to change.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.check_ranges()?;
        self.optim.validate()?;
        self.data.row_options()?;
        self.data.chat_draws()?;
        let refuse = |message: &str| Err(ConfigError::Usage(message.into()));
        if self.data.bucket_window > 0 && !self.data.shuffle {
            return Err(ConfigError::Usage(format!(
                "`bucket_window` {} changes the order of the rows, but `no_shuffle` keeps it; \
                 leave one of them out",
                self.data.bucket_window
            )));
        }
        if self.model.features.is_some() && self.model.freeze.train_vision {
            return refuse(
                "`features` holds the outputs of the vision encoder, but `train_vision` changes \
                 them; leave one of them out",
            );
        }
        if self.model.features.is_some() && self.eval.data_path.is_some() {
            return refuse(
                "`eval_data` needs the vision encoder, which is not loaded with `features`; leave \
                 one of them out, or evaluate after the training with `vlm eval`",
            );
        }
        if self.eval != EvalConfig::default() && self.eval.data_path.is_none() {
            return refuse(
                "`eval_interval`, `eval_images_path`, `eval_captions`, `eval_samples` and \
                 `eval_max_new_tokens` have no effect without `eval_data`",
            );
        }
        if self.optim.ema_decay.is_some() && self.model.freeze.train_vision {
            return refuse(
                "`ema_decay` averages the weights of the language model and the projector, but not \
                 those of the vision encoder, which `train_vision` trains; leave one of them out",
            );
        }
        if self.optim.lr_vision.is_some() && !self.model.freeze.train_vision {
            return refuse(
                "`lr_vision` is the learning rate of the vision encoder, which is not trained; set \
                 `train_vision`, or leave `lr_vision` out",
            );
        }
        let freeze = &self.model.freeze;
        let trains_lm =
            freeze.train_lm || freeze.unfreeze_first_layers > 0 || freeze.unfreeze_last_layers > 0;
        if self.optim.lr_lm.is_some() && !trains_lm {
            return refuse(
                "`lr_lm` is the learning rate of the language model, which is not trained; set \
                 `train_lm` or `unfreeze_last_layers`, or leave `lr_lm` out",
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
            if let Some(error) = setting.check_range(value) {
                return Err(ConfigError::Usage(format!(
                    "`{}` is {error}",
                    setting.name.replace('-', "_")
                )));
            }
        }
        Ok(())
    }
}

impl DataConfig {
    /// The options for reading rows.
    ///
    /// # Errors
    /// An entry of `min_rating` that is not a name and a number.
    pub fn row_options(&self) -> Result<RowOptions, ConfigError> {
        let rating = |text: &String| {
            let found = text.split_once('=').and_then(|(name, number)| {
                let number = number.trim().parse::<f64>().ok().filter(|n| n.is_finite())?;
                Some((name.trim().to_owned(), number)).filter(|(name, _)| !name.is_empty())
            });
            found.ok_or_else(|| {
                ConfigError::Usage(format!(
                    "`min_rating` {text}: expected a name and a number, such as relevance=3"
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

    /// The random changes of the conversations.
    ///
    /// # Errors
    /// System prompts without a fraction of rows that get them, or a fraction without prompts; a
    /// blank prompt.
    pub fn chat_draws(&self) -> Result<ChatDraws, ConfigError> {
        let refuse = |message: &str| Err(ConfigError::Usage(message.into()));
        if self.add_system_ratio.is_some_and(|ratio| ratio > 0.0) && self.system_prompt.is_empty() {
            return refuse(
                "`add_system_ratio` adds system prompts to rows, but there are none; give them \
                 with `system_prompt`",
            );
        }
        if self.add_system_ratio.is_none() && !self.system_prompt.is_empty() {
            return refuse(
                "`system_prompt` has no effect without `add_system_ratio`, the fraction of rows \
                 that get one",
            );
        }
        if self.system_prompt.iter().any(|prompt| prompt.trim().is_empty()) {
            return refuse("`system_prompt` has a blank text; leave it out");
        }
        Ok(ChatDraws {
            empty_think_ratio: self.empty_think_ratio,
            add_system_ratio: self.add_system_ratio.unwrap_or(0.0),
            system_prompts: self.system_prompt.clone(),
        })
    }
}

impl OptimConfig {
    fn validate(&self) -> Result<(), ConfigError> {
        let has_end = !matches!(self.lr_schedule, LrSchedule::Reference | LrSchedule::Constant);
        let refuse = |message: &str| Err(ConfigError::Usage(message.into()));
        if self.min_lr_ratio.is_some() && !has_end {
            return refuse(
                "`min_lr_ratio` is only for the schedules cosine, minimind-3v, linear and wsd; set \
                 `lr_schedule` to one of them, or leave `min_lr_ratio` out",
            );
        }
        if self.decay_fraction.is_some() && self.lr_schedule != LrSchedule::Wsd {
            return refuse(
                "`decay_fraction` is only for the schedule wsd; set `lr_schedule = wsd`, or leave \
                 `decay_fraction` out",
            );
        }
        if self.skip_loss_spikes && self.loss_spike_factor.is_none() {
            return refuse(
                "`skip_loss_spikes` skips the updates of losses that are too large, but no loss is: \
                 set `loss_spike_factor`, or leave `skip_loss_spikes` out",
            );
        }
        if self.warmup_iters > 0 && self.warmup_fraction.is_some() {
            return refuse(
                "`warmup_iters` and `warmup_fraction` both set the length of the warm-up; leave \
                 one of them out",
            );
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(change: impl FnOnce(&mut DataConfig)) -> String {
        let mut config = TrainConfig::default();
        change(&mut config.data);
        config.validate().err().map(|error| error.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_rate_for_a_language_model_that_is_not_trained_is_refused() {
        let mut config = TrainConfig::default();
        config.optim.lr_lm = Some(1e-5);
        config.validate().unwrap();
        config.model.freeze.unfreeze_last_layers = 0;
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains("`lr_lm`"), "{error}");
    }

    #[test]
    fn system_prompts_and_the_fraction_of_rows_that_get_one_need_each_other() {
        let prompts = || vec!["Be brief.".to_owned()];
        assert!(error(|data| data.add_system_ratio = Some(0.2)).contains("there are none"));
        assert!(error(|data| data.system_prompt = prompts()).contains("has no effect"));
        let blank = error(|data| {
            data.add_system_ratio = Some(0.2);
            data.system_prompt = vec![" ".into()];
        });
        assert!(blank.contains("a blank text"), "{blank}");
        // A recipe's prompts stay when a flag turns them off.
        for ratio in [0.0, 0.2] {
            let found = error(|data| {
                data.add_system_ratio = Some(ratio);
                data.system_prompt = prompts();
            });
            assert_eq!(found, "");
        }
    }
}
