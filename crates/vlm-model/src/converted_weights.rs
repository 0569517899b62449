//! The frozen weights of products in the type in which autocast computes.

use tch::Kind;

use crate::ModelError;
use crate::params::ParamStore;

/// The converted weights of a model
/// ([`Vlm::convert_frozen_weights`](crate::Vlm::convert_frozen_weights)), whose original ones are
/// restored when this is dropped.
#[derive(Debug, Default)]
pub struct ConvertedWeights(Vec<ParamStore>);

impl ConvertedWeights {
    /// Converts to `kind` the frozen parameters of `store` for which `is_factor(name)` says that
    /// they are factors of products.
    ///
    /// # Errors
    /// There is no memory left.
    pub(crate) fn convert(
        &mut self,
        store: &ParamStore,
        kind: Kind,
        is_factor: impl Fn(&str) -> bool,
    ) -> Result<(), ModelError> {
        self.0.push(store.shallow_clone());
        Ok(store.convert_frozen(kind, is_factor)?)
    }
}

impl Drop for ConvertedWeights {
    fn drop(&mut self) {
        self.0.iter().for_each(ParamStore::restore);
    }
}
