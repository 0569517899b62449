//! `.pth` and `pytorch_model.bin`: what `torch.save(model.state_dict(), path)` writes.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use tch::Tensor;

use super::archive::Archive;
use super::error::{Refusal, refuse};
use super::pickle::{Heap, Value, unpickle};
use super::rebuild::{StorageRef, TensorRef};
use super::{TensorInfo, WeightsError};

/// Keys under which training scripts keep the weights among other things.
const USUAL_KEYS: [&str; 3] = ["model", "state_dict", "model_state_dict"];

/// An open `.pth`. Tensors are read when asked for, one storage at a time.
#[derive(Debug)]
pub(super) struct PthFile {
    archive: Archive,
    tensors: Vec<(TensorRef, StorageRef)>,
    /// How many tensors use a storage.
    num_users: HashMap<String, usize>,
    /// The last storage that several tensors use.
    last_shared: RefCell<Option<(String, Tensor)>>,
}

impl PthFile {
    /// The file; its tensors in order; the key they were under, if not at the top.
    /// # Errors
    /// Everything that [`Archive`] and the pickle machine refuse; a pickle without tensors.
    pub fn open(path: &Path) -> Result<(Self, Vec<TensorInfo>, Option<String>), WeightsError> {
        let archive = Archive::open(path)?;
        let pickle = archive.pickle()?;
        let (top, heap) = unpickle(&pickle).map_err(|refusal| refusal.in_file(path))?;
        let (named, under) = find_tensors(&top, &heap).map_err(|refusal| refusal.in_file(path))?;
        let mut first_with: HashMap<TensorIdentity<'_>, &str> = HashMap::new();
        let mut num_users: HashMap<String, usize> = HashMap::new();
        let (mut infos, mut tensors) = (Vec::new(), Vec::new());
        for (name, number) in &named {
            let tensor = &heap.tensors[*number];
            let storage = &heap.storages[tensor.storage];
            let needed = storage.numel as u64 * storage.kind.elt_size_in_bytes() as u64;
            let found = archive.size(&format!("data/{}", storage.key))?;
            if found < needed {
                return archive.refused(format!(
                    "tensor {name:?}: storage {} has {found} bytes, its {} elements take {needed}: \
                     the file is damaged, or made to mislead; fetch it again, from where you trust",
                    storage.key, storage.numel
                ));
            }
            *num_users.entry(storage.key.to_string()).or_default() += 1;
            let identity =
                (&*storage.key, tensor.offset, tensor.shape.as_slice(), tensor.stride.as_slice());
            let first = *first_with.entry(identity).or_insert(name);
            infos.push(TensorInfo {
                name: name.clone(),
                shape: tensor.shape.clone(),
                kind: storage.kind,
                shared_with: (first != name).then(|| first.to_owned()),
            });
            tensors.push((tensor.clone(), storage.clone()));
        }
        let file = Self { archive, tensors, num_users, last_shared: RefCell::default() };
        Ok((file, infos, under))
    }

    /// The tensor of that number on the CPU, contiguous, in memory of its own.
    /// # Errors
    /// A record that cannot be read.
    pub fn read(&self, index: usize, name: &str) -> Result<Tensor, WeightsError> {
        let (tensor, storage) = &self.tensors[index];
        let is_shared = self.num_users.get(&*storage.key).is_some_and(|&users| users > 1);
        let values = self.storage(storage, name, is_shared)?;
        let view = values
            .f_as_strided(&tensor.shape, &tensor.stride, tensor.offset)
            .map_err(WeightsError::tch(name))?;
        if is_shared || !view.is_contiguous() || view.numel() as i64 != storage.numel {
            return Ok(view.contiguous().copy());
        }
        Ok(view)
    }

    /// All elements of a storage, one-dimensional.
    fn storage(
        &self,
        storage: &StorageRef,
        name: &str,
        keep: bool,
    ) -> Result<Tensor, WeightsError> {
        let StorageRef { key, kind, numel } = storage;
        if let Some((last, tensor)) = &*self.last_shared.borrow()
            && **last == **key
            && tensor.kind() == *kind
        {
            return Ok(tensor.shallow_clone());
        }
        let num_bytes = *numel as u64 * kind.elt_size_in_bytes() as u64;
        let bytes = self.archive.record(&format!("data/{key}"), num_bytes)?;
        let tensor = vlm_torch::tensor_from_bytes(&bytes, &[*numel], *kind)
            .map_err(|source| WeightsError::Tensor { name: name.to_owned(), source })?;
        if keep {
            *self.last_shared.borrow_mut() = Some((key.to_string(), tensor.shallow_clone()));
        }
        Ok(tensor)
    }
}

/// Storage key, offset, shape and stride: what makes two names one tensor.
type TensorIdentity<'a> = (&'a str, i64, &'a [i64], &'a [i64]);

/// Names with the numbers of their tensors in the heap.
type NamedTensors = Vec<(String, usize)>;

/// The tensors of the dict at the top, or else of the one dict in it that has any.
fn find_tensors(top: &Value, heap: &Heap) -> Result<(NamedTensors, Option<String>), Refusal> {
    let Value::Dict(top) = top else {
        return refuse!("it holds {}; expected a dict of named tensors", top.describe());
    };
    let at_top = tensors_of(*top, heap);
    if !at_top.is_empty() {
        return Ok((at_top, None));
    }
    let nested: Vec<_> = heap.dicts[*top]
        .iter()
        .filter_map(|(key, value)| match (key, value) {
            (Value::Str(key), Value::Dict(dict)) => Some((&**key, tensors_of(*dict, heap))),
            _ => None,
        })
        .filter(|(_, tensors)| !tensors.is_empty())
        .collect();
    let usual = nested.iter().filter(|(key, _)| USUAL_KEYS.contains(key)).count();
    let mut chosen = nested
        .iter()
        .filter(|(key, _)| nested.len() == 1 || usual == 1 && USUAL_KEYS.contains(key));
    match chosen.next() {
        Some((key, tensors)) => Ok((tensors.clone(), Some((*key).to_owned()))),
        None if nested.is_empty() => {
            refuse!("there are no named tensors in it, neither at the top nor one level down")
        }
        None => {
            let keys: Vec<_> = nested.iter().map(|(key, _)| *key).collect();
            refuse!(
                "several dicts in it hold tensors ({}): save the one you mean by itself",
                keys.join(", ")
            )
        }
    }
}

/// The tensors directly in a dict; of a name given twice the last, in the place of the first.
fn tensors_of(dict: usize, heap: &Heap) -> NamedTensors {
    let mut tensors: NamedTensors = Vec::new();
    let mut place: HashMap<&str, usize> = HashMap::new();
    for (key, value) in &heap.dicts[dict] {
        if let (Value::Str(name), Value::Tensor(tensor)) = (key, value) {
            match place.get(&**name) {
                Some(&at) => tensors[at].1 = *tensor,
                None => {
                    place.insert(name, tensors.len());
                    tensors.push((name.to_string(), *tensor));
                }
            }
        }
    }
    tensors
}
