//! Renames the tensors of opened weights.

use std::collections::HashMap;

use super::error::WeightsError;
use super::opened::Weights;

impl Weights {
    /// Renames every tensor by `rename`, without reading its values.
    ///
    /// # Errors
    /// Two tensors would get the same name.
    pub fn renamed(mut self, rename: impl Fn(&str) -> String) -> Result<Self, WeightsError> {
        let mut by_name = HashMap::new();
        for (index, info) in self.infos.iter().enumerate() {
            let name = rename(&info.name);
            if let Some(other) = by_name.insert(name.clone(), index) {
                return Err(self.refused(format!(
                    "its tensors {:?} and {:?} are both {name:?} without their prefixes; save the \
                     one to be loaded to a file of its own",
                    self.infos[other].name, info.name
                )));
            }
        }
        for info in &mut self.infos {
            info.name = rename(&info.name);
            info.shared_with = info.shared_with.as_deref().map(&rename);
        }
        self.by_name = by_name;
        Ok(self)
    }
}
