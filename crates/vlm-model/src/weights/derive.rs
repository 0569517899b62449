//! Tensors that are computed from those of a file when they are read: parts of stacked tensors, and
//! tensors whose elements another program stores in another order.

use std::collections::HashMap;

use super::error::WeightsError;
use super::opened::Weights;
use super::tensor_info::TensorInfo;
use super::transform::Transform;

impl Weights {
    /// Replaces every tensor by those that `derive` makes of it: their names, and the transforms that
    /// are applied one after another. With an empty list it is left out. No values are read.
    ///
    /// # Errors
    /// Two tensors would get the same name, or a tensor does not have the shape that a transform
    /// needs.
    pub fn derived(
        mut self,
        derive: impl Fn(&TensorInfo) -> Vec<(String, Vec<Transform>)>,
    ) -> Result<Self, WeightsError> {
        let mut infos = Vec::new();
        let (mut places, mut transforms, mut by_name) = (Vec::new(), Vec::new(), HashMap::new());
        let mut new_names: HashMap<&str, String> = HashMap::new();
        for (index, info) in self.infos.iter().enumerate() {
            for (name, added) in derive(info) {
                let shape = added
                    .iter()
                    .try_fold(info.shape.clone(), |shape, transform| transform.shape(&shape));
                let Some(shape) = shape else {
                    return Err(self.refused(format!(
                        "its tensor {:?} has the shape {:?}, from which {name:?} cannot be made",
                        info.name, info.shape
                    )));
                };
                let mut chain = self.transforms[index].clone();
                let mut shared_with = None;
                if added.is_empty() {
                    let first = info.shared_with.as_deref();
                    shared_with = first.and_then(|first| new_names.get(first).cloned());
                    new_names.insert(&info.name, name.clone());
                }
                chain.extend(added);
                if by_name.insert(name.clone(), infos.len()).is_some() {
                    return Err(self.refused(format!(
                        "its tensor {:?} is read as {name:?}, which another tensor is, too",
                        info.name
                    )));
                }
                let kind = chain.iter().fold(info.kind, |kind, transform| transform.kind(kind));
                infos.push(TensorInfo { name, shape, kind, shared_with });
                places.push(self.places[index]);
                transforms.push(chain);
            }
        }
        drop(new_names);
        (self.infos, self.places) = (infos, places);
        (self.transforms, self.by_name) = (transforms, by_name);
        Ok(self)
    }
}
