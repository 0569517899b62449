//! The random weights with which the layers of a language model start.

use vlm_shapes::LmConfig;

use crate::params::Init;

/// The initial weights of a layer, and of a layer whose output is added to the residual stream:
/// normal, with a smaller standard deviation for the second (Radford et al. 2019, section 2.3).
pub(crate) fn inits(config: &LmConfig) -> (Init, Init) {
    const STD: f64 = 0.02;
    (Init::Normal(STD), Init::Normal(STD / (2.0 * config.n_layers as f64).sqrt()))
}
