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
const USUAL_KEYS: [&str; 4] = ["model", "state_dict", "model_state_dict", "module"];

/// Keys of averaged weights, which count where there are no others.
const AVERAGED_KEYS: [&str; 5] =
    ["ema", "ema_state_dict", "model_ema", "state_dict_ema", "ema_model"];

/// So many dicts within one another are looked into.
const MAX_NESTING: usize = 3;

/// Entries of dicts that are looked at: a file may name the same dict any number of times.
const MAX_ENTRIES: usize = 5_000_000;

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

/// The tensors of the dict at the top, or else of the one dict in it that holds a model.
fn find_tensors(top: &Value, heap: &Heap) -> Result<(NamedTensors, Option<String>), Refusal> {
    let Value::Dict(top) = top else {
        return refuse!("it holds {}; expected a dict of named tensors", top.describe());
    };
    match find_in(*top, heap, MAX_NESTING, &mut MAX_ENTRIES.clone())? {
        Some((tensors, keys)) if keys.is_empty() => Ok((tensors, None)),
        Some((tensors, keys)) => Ok((tensors, Some(keys.join(".")))),
        None => refuse!(
            "there are no named tensors in it, neither at the top nor in the dicts below; found \
             the keys {}",
            keys_of(*top, heap)
        ),
    }
}

/// The tensors of a dict or of one below it, with the keys that lead there.
fn find_in(
    dict: usize,
    heap: &Heap,
    depth: usize,
    entries_left: &mut usize,
) -> Result<Option<(NamedTensors, Vec<String>)>, Refusal> {
    let Some(left) = entries_left.checked_sub(heap.dicts[dict].len() + 1) else {
        return refuse!(
            "its dicts have more than {MAX_ENTRIES} entries: that is no list of weights"
        );
    };
    *entries_left = left;
    let own = tensors_of(dict, heap);
    let mut nested: Vec<(&str, NamedTensors, Vec<String>)> = Vec::new();
    for (key, value) in heap.dicts[dict].iter().filter(|_| depth > 0) {
        if let (Value::Str(key), Value::Dict(below)) = (key, value)
            && let Some((tensors, keys)) = find_in(*below, heap, depth - 1, entries_left)?
        {
            nested.push((key, tensors, keys));
        }
    }
    // Among the weights of a model a training script may keep a tensor of its own, such as a loss.
    let is_beside = |(key, tensors, _): &&(&str, NamedTensors, Vec<String>)| {
        USUAL_KEYS.contains(key) && tensors.len() > own.len()
    };
    if !own.is_empty() && !nested.iter().any(|nested| is_beside(&nested)) {
        return Ok(Some((own, Vec::new())));
    }
    let among = |keys: &[&str]| -> Vec<usize> {
        (0..nested.len()).filter(|&index| keys.contains(&nested[index].0)).collect()
    };
    let chosen = match (nested.len(), among(&USUAL_KEYS), among(&AVERAGED_KEYS)) {
        (0, ..) => return Ok(None),
        (1, ..) => 0,
        (_, usual, _) if usual.len() == 1 => usual[0],
        (_, usual, averaged) if usual.is_empty() && averaged.len() == 1 => averaged[0],
        _ => {
            let keys: Vec<_> = nested.iter().map(|(key, ..)| *key).collect();
            return refuse!(
                "several dicts in it hold tensors ({}): save the one you mean by itself",
                keys.join(", ")
            );
        }
    };
    let (key, tensors, below) = nested.swap_remove(chosen);
    let keys = std::iter::once(key.to_owned()).chain(below).collect();
    Ok(Some((tensors, keys)))
}

/// The first keys of a dict, for a message.
fn keys_of(dict: usize, heap: &Heap) -> String {
    const LISTED: usize = 8;
    let keys = heap.dicts[dict].iter().take(LISTED).map(|(key, _)| match key {
        Value::Str(key) => format!("{key:?}"),
        other => other.describe().to_owned(),
    });
    keys.collect::<Vec<_>>().join(", ")
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
