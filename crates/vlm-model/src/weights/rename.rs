//! The same tensors under other names.

use std::collections::HashMap;

use super::{Weights, WeightsError};

impl Weights {
    /// Gives every tensor the name that `rename` makes of its own; the values stay on the disk.
    /// # Errors
    /// Two tensors that would get the same name.
    pub fn renamed(mut self, rename: impl Fn(&str) -> String) -> Result<Self, WeightsError> {
        let mut by_name = HashMap::new();
        for (index, info) in self.infos.iter().enumerate() {
            let name = rename(&info.name);
            if let Some(other) = by_name.insert(name.clone(), index) {
                return Err(self.refused(format!(
                    "its tensors {:?} and {:?} are both {name:?} without their prefixes: save the \
                     one you mean by itself",
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
