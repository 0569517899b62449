//! The targets, by what they read.

mod data;
mod models;
mod tokenizers;
#[cfg(feature = "libtorch")]
mod weights;

use crate::Target;

pub(crate) fn all() -> Vec<Target> {
    let mut all = data::targets();
    all.extend(tokenizers::targets());
    all.extend(models::targets());
    #[cfg(feature = "libtorch")]
    all.extend(weights::targets());
    all
}
