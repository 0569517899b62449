//! The frozen weights of products in the type in which autocast computes.

use tch::Kind;

use crate::ModelError;
use crate::params::ParamStore;

/// The converted weights of a model
/// ([`Vlm::convert_frozen_weights`](crate::Vlm::convert_frozen_weights)), whose original ones are
/// restored when this is dropped.
#[derive(Debug)]
pub struct ConvertedWeights(Vec<ParamStore>);

impl ConvertedWeights {
    /// Converts to `kind` the frozen parameters of each store for which its function says that
    /// they are factors of products.
    ///
    /// # Errors
    /// There is no memory left.
    pub(crate) fn convert(
        stores: [(&ParamStore, &dyn Fn(&str) -> bool); 2],
        kind: Kind,
    ) -> Result<Self, ModelError> {
        let mut converted = Self(Vec::new());
        for (store, is_factor) in stores {
            converted.0.push(store.shallow_clone());
            store.convert_frozen(kind, is_factor)?;
        }
        Ok(converted)
    }
}

impl Drop for ConvertedWeights {
    fn drop(&mut self) {
        self.0.iter().for_each(ParamStore::restore);
    }
}
