//! Reads the base and the scaling of the rotary embedding from a `config.json`: from `rope_theta`
//! and `rope_scaling` (transformers 4), or from `rope_parameters` (transformers 5).

use serde_json::{Map, Value, json};

use crate::ShapeError;
use crate::keys::{Neutral, shortened, unsupported};

/// Which elements of a head the rotary embedding rotates as one pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RotaryLayout {
    /// Adjacent elements: LLaMA's reference code, MiniMind of April 2025.
    Interleaved,
    /// Element `i` of the first half and element `i` of the second half: Hugging Face's
    /// `rotate_half`, MiniMind2, `minimind-3`.
    HalfSplit,
}

/// How the frequencies of the rotary angles are scaled, so that the model can be used with longer
/// sequences than it was first trained with. The formulas are those of transformers'
/// `modeling_rope_utils.py`.
#[derive(Debug, Clone, PartialEq, Default)]
pub enum RopeScaling {
    /// The frequencies are not scaled.
    #[default]
    None,
    /// Every frequency is divided by the factor.
    Linear {
        /// The divisor.
        factor: f64,
    },
    /// LLaMA 3.1: low frequencies are divided by the factor, high ones are kept.
    Llama3 {
        /// The divisor of low frequencies.
        factor: f64,
        /// A wavelength above `original_max_position_embeddings / low_freq_factor` is a low
        /// frequency.
        low_freq_factor: f64,
        /// A wavelength below `original_max_position_embeddings / high_freq_factor` is a high
        /// frequency.
        high_freq_factor: f64,
        /// Sequence length of the first training, in tokens.
        original_max_position_embeddings: f64,
    },
    /// YaRN (Peng et al. 2023).
    Yarn(Yarn),
}

/// The settings of YaRN.
#[derive(Debug, Clone, PartialEq)]
pub struct Yarn {
    /// The divisor of low frequencies.
    pub factor: f64,
    /// Factor by which sine and cosine are multiplied.
    pub attention_factor: f64,
    /// Frequencies with more rotations than this in the original length are kept.
    pub beta_fast: f64,
    /// Frequencies with fewer rotations than this in the original length are divided.
    pub beta_slow: f64,
    /// Sequence length of the first training, in tokens.
    pub original_max_position_embeddings: f64,
    /// Whether the bounds between kept and divided frequencies are rounded to whole dimensions.
    pub truncate: bool,
}

/// The rotary embedding's settings in a configuration.
#[derive(Debug, PartialEq)]
pub(crate) struct Rope {
    /// The base, if the file gives one.
    pub theta: Option<f64>,
    pub scaling: RopeScaling,
}

/// The only layer type that is supported.
const FULL_ATTENTION: &str = "full_attention";
/// The layer types for which `rope_parameters` may have settings of their own.
const LAYER_TYPES: [&str; 3] = [FULL_ATTENTION, "sliding_attention", "chunked_attention"];

impl Rope {
    /// The keys that [`Self::read`] reads.
    pub(crate) const KEYS: [&'static str; 4] =
        ["rope_theta", "rope_scaling", "rope_parameters", "original_max_position_embeddings"];

    /// Reads the settings of either version of transformers. `max_position_embeddings` is the
    /// default of a scaling's original length.
    ///
    /// # Errors
    /// A scaling is not supported, or two keys contradict each other; the message names them.
    pub(crate) fn read(
        config: &Map<String, Value>,
        max_position_embeddings: i64,
    ) -> Result<Self, ShapeError> {
        let original = number(config, "original_max_position_embeddings")?;
        let mut theta = number(config, "rope_theta")?.map(|theta| ("rope_theta", theta));
        let mut scaling: Option<(&str, RopeScaling)> = None;
        for place in ["rope_parameters", "rope_scaling"] {
            let Some(settings) = settings_at(config, place)? else { continue };
            let in_place =
                |error: ShapeError| ShapeError::Config(format!("cannot read {place}: {error}"));
            if let Some(found) = number(settings, "rope_theta").map_err(in_place)? {
                match theta {
                    Some((other, known)) if known != found => {
                        return Err(ShapeError::Config(format!(
                            "{other} gives rope_theta {known} and {place} gives {found}; remove \
                             the wrong one from config.json"
                        )));
                    }
                    _ => theta = Some((place, found)),
                }
            }
            let found = read_scaling(settings, original, max_position_embeddings as f64)
                .map_err(in_place)?;
            match &scaling {
                Some((other, known)) if *known != found => {
                    return Err(ShapeError::Config(format!(
                        "{other} and {place} describe different RoPE scalings; remove the wrong \
                         one from config.json"
                    )));
                }
                _ => scaling = Some((place, found)),
            }
        }
        Ok(Self {
            theta: theta.map(|(_, theta)| theta),
            scaling: scaling.map(|(_, scaling)| scaling).unwrap_or_default(),
        })
    }
}

/// The settings under the key `place`. Where they are given per layer type, those of full
/// attention.
fn settings_at<'a>(
    config: &'a Map<String, Value>,
    place: &str,
) -> Result<Option<&'a Map<String, Value>>, ShapeError> {
    let settings = match config.get(place) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Object(settings)) => settings,
        Some(other) => {
            return Err(ShapeError::Config(format!(
                "{place} is {}; expected an object",
                shortened(other)
            )));
        }
    };
    let is_divided = settings.keys().any(|key| LAYER_TYPES.contains(&key.as_str()));
    if !is_divided {
        return Ok(Some(settings));
    }
    match settings.get(FULL_ATTENTION) {
        Some(Value::Object(settings)) => Ok(Some(settings)),
        _ => Err(ShapeError::Config(format!(
            "{place} is {}; expected settings of {FULL_ATTENTION}, the only supported layer type",
            shortened(&json!(settings))
        ))),
    }
}

fn read_scaling(
    settings: &Map<String, Value>,
    original: Option<f64>,
    max_position_embeddings: f64,
) -> Result<RopeScaling, ShapeError> {
    let text = |key: &str| settings.get(key).filter(|value| !value.is_null());
    let kind = match (text("rope_type"), text("type")) {
        (Some(kind), Some(other)) if kind != other => {
            return Err(ShapeError::Config(format!(
                "rope_type is {kind} and type is {other}; remove the wrong one"
            )));
        }
        (Some(kind), _) | (None, Some(kind)) => kind,
        (None, None) => &json!("default"),
    };
    let known: &[&str] = match kind.as_str() {
        Some("default") => &["factor"],
        Some("linear") => &["factor"],
        Some("llama3") => {
            &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        }
        Some("yarn") => &[
            "factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "original_max_position_embeddings",
            "truncate",
        ],
        _ => {
            return Err(ShapeError::Config(format!(
                "RoPE scaling {kind} is not supported; supported: \"default\", \"linear\", \
                 \"llama3\", \"yarn\""
            )));
        }
    };
    for (key, value) in settings {
        let is_read = ["rope_type", "type", "rope_theta"].contains(&key.as_str())
            || known.contains(&key.as_str());
        let is_neutral = key == "partial_rotary_factor" && value.as_f64() == Some(1.0);
        if !is_read && !is_neutral && !value.is_null() {
            return Err(unsupported(key, value, &[]));
        }
    }
    let original = match (number(settings, "original_max_position_embeddings")?, original) {
        (Some(within), Some(beside)) if within != beside => {
            return Err(ShapeError::Config(format!(
                "original_max_position_embeddings is {within} here and {beside} at the top of \
                 config.json; remove the wrong one"
            )));
        }
        (within, beside) => within.or(beside).unwrap_or(max_position_embeddings),
    };
    let required = |key: &str| {
        number(settings, key)?.filter(|&value| value > 0.0).ok_or_else(|| {
            ShapeError::Config(format!("RoPE scaling {kind} needs {key}, a number above 0"))
        })
    };
    Ok(match kind.as_str() {
        Some("linear") => RopeScaling::Linear { factor: required("factor")? },
        Some("llama3") => RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_max_position_embeddings: original,
        },
        Some("yarn") => {
            let factor = match settings.get("factor") {
                None | Some(Value::Null) => max_position_embeddings / original,
                Some(_) => required("factor")?,
            };
            RopeScaling::Yarn(Yarn {
                factor,
                attention_factor: attention_factor(settings, factor)?,
                // Zero means the default, as in transformers.
                beta_fast: number(settings, "beta_fast")?.filter(|&b| b != 0.0).unwrap_or(32.0),
                beta_slow: number(settings, "beta_slow")?.filter(|&b| b != 0.0).unwrap_or(1.0),
                original_max_position_embeddings: original,
                truncate: match settings.get("truncate") {
                    None | Some(Value::Null) => true,
                    Some(Value::Bool(truncate)) => *truncate,
                    Some(other) => {
                        return Err(unsupported(
                            "truncate",
                            other,
                            &[Neutral::True, Neutral::False],
                        ));
                    }
                },
            })
        }
        _ => RopeScaling::None,
    })
}

/// YaRN's factor of sine and cosine: the one in `settings`, else by the paper's formula.
fn attention_factor(settings: &Map<String, Value>, factor: f64) -> Result<f64, ShapeError> {
    let by_scale = |scale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * scale * factor.ln() + 1.0 };
    if let Some(given) = number(settings, "attention_factor")? {
        return Ok(given);
    }
    let scales = (number(settings, "mscale")?, number(settings, "mscale_all_dim")?);
    Ok(match scales {
        (Some(scale), Some(all)) if scale != 0.0 && all != 0.0 => by_scale(scale) / by_scale(all),
        _ => by_scale(1.0),
    })
}

fn number(settings: &Map<String, Value>, key: &str) -> Result<Option<f64>, ShapeError> {
    match settings.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => value.as_f64().map(Some).ok_or_else(|| {
            ShapeError::Config(format!("{key} is {}; expected a number", shortened(value)))
        }),
    }
}

impl RopeScaling {
    /// The value of `rope_scaling`, which both versions of transformers read; null for no scaling.
    pub(crate) fn to_json(&self) -> Value {
        match self {
            Self::None => Value::Null,
            Self::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
            Self::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": low_freq_factor,
                "high_freq_factor": high_freq_factor,
                "original_max_position_embeddings": *original_max_position_embeddings as i64,
            }),
            Self::Yarn(yarn) => json!({
                "rope_type": "yarn",
                "factor": yarn.factor,
                "attention_factor": yarn.attention_factor,
                "beta_fast": yarn.beta_fast,
                "beta_slow": yarn.beta_slow,
                "original_max_position_embeddings": yarn.original_max_position_embeddings as i64,
                "truncate": yarn.truncate,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(config: Value) -> Result<Rope, String> {
        Rope::read(config.as_object().unwrap(), 4096).map_err(|error| error.to_string())
    }

    #[test]
    fn base_and_scaling_are_read_from_either_key() {
        let linear = RopeScaling::Linear { factor: 2.0 };
        for config in [
            json!({"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}),
            json!({"rope_parameters":
                   {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}),
            json!({"rope_parameters": {"full_attention":
                   {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}}),
        ] {
            let expected = Rope { theta: Some(5e5), scaling: linear.clone() };
            assert_eq!(read(config.clone()), Ok(expected), "{config}");
        }
        let plain = json!({"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}});
        assert_eq!(read(plain), Ok(Rope { theta: Some(1e6), scaling: RopeScaling::None }));
        assert_eq!(read(json!({})), Ok(Rope { theta: None, scaling: RopeScaling::None }));
    }

    #[test]
    fn settings_that_are_left_out_have_the_defaults_of_transformers() {
        let yarn = json!({"rope_parameters": {"rope_type": "yarn", "factor": 4.0}});
        let RopeScaling::Yarn(yarn) = read(yarn).unwrap().scaling else { panic!("not yarn") };
        assert_eq!((yarn.beta_fast, yarn.beta_slow, yarn.truncate), (32.0, 1.0, true));
        assert_eq!(yarn.original_max_position_embeddings, 4096.0);
        // 0.1 ln 4 + 1.
        assert!((yarn.attention_factor - 1.138_629_436_111_989).abs() < 1e-12);
    }

    #[test]
    fn unsupported_and_contradictory_settings_are_refused() {
        let scaling = |settings: Value| json!({"rope_scaling": settings});
        for (config, expected) in [
            (scaling(json!({"rope_type": "dynamic", "factor": 2.0})), "\"dynamic\""),
            (scaling(json!({"type": "longrope"})), "\"longrope\""),
            (json!({"rope_parameters": {"rope_type": "proportional"}}), "\"proportional\""),
            (scaling(json!({"type": "linear"})), "needs factor"),
            (scaling(json!({"type": "linear", "rope_type": "yarn", "factor": 2})), "type is"),
            (scaling(json!({"rope_type": "default", "mrope_section": [1]})), "mrope_section"),
            (json!({"rope_parameters": {"partial_rotary_factor": 0.5}}), "partial_rotary_factor"),
            (json!({"rope_theta": 1e4, "rope_parameters": {"rope_theta": 1e6}}), "1000000"),
            (json!({"rope_parameters": {"sliding_attention": {}}}), "full_attention"),
            (json!({"rope_theta": "many"}), "expected a number"),
        ] {
            let error = read(config.clone()).unwrap_err();
            assert!(error.contains(expected), "{config}: {error}");
        }
    }
}
