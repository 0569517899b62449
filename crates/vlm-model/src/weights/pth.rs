//! Reads `.pth` and `pytorch_model.bin`, as `torch.save(model.state_dict(), path)` writes them.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::Path;

use tch::Tensor;

use super::archive::Archive;
use super::error::{Refusal, WeightsError, refuse};
use super::heap::{Heap, StorageRef, TensorRef, Value};
use super::pickle::unpickle;
use super::tensor_info::TensorInfo;

/// Keys under which training scripts save the weights.
const DEFAULT_KEYS: [&str; 4] = ["model", "state_dict", "model_state_dict", "module"];

/// Keys of averaged weights, which are used if there are no others.
const AVERAGED_KEYS: [&str; 5] =
    ["ema", "ema_state_dict", "model_ema", "state_dict_ema", "ema_model"];

/// Largest depth of nested dicts that are searched.
const MAX_NESTING: usize = 3;

/// Largest number of dict entries that are searched. A file may refer to the same dict many times.
const MAX_ENTRIES: usize = 5_000_000;

/// An open `.pth`. Tensors are read when they are requested, one storage at a time.
#[derive(Debug)]
pub(super) struct PthFile {
    archive: Archive,
    tensors: Vec<(TensorRef, StorageRef)>,
    /// Number of tensors that use each storage.
    num_users: HashMap<String, usize>,
    /// The storage that was read last among those that several tensors use.
    last_shared: RefCell<Option<(String, Tensor)>>,
}

impl PthFile {
    /// Opens a file. Returns it, its tensors in order, and the key of the dict that has them, if it
    /// is not the top one.
    ///
    /// # Errors
    /// [`Archive`] or [`unpickle`] refuses the file, or there are no tensors.
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
                    "tensor {name:?}: storage {} has {found} bytes, its {} elements take {needed}; \
                     the file is damaged or malicious: download it again from a trusted source",
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

    /// Reads the tensor with the index `index`: on the CPU, contiguous, sharing memory with no
    /// other.
    ///
    /// # Errors
    /// The record cannot be read.
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

/// Storage key, offset, shape and stride. Two tensors with the same identity are tied.
type TensorIdentity<'a> = (&'a str, i64, &'a [i64], &'a [i64]);

/// Names with the indices of their tensors in the heap.
type NamedTensors = Vec<(String, usize)>;

/// The tensors of the top dict, or of the nested dict that has the weights, with its key.
fn find_tensors(top: &Value, heap: &Heap) -> Result<(NamedTensors, Option<String>), Refusal> {
    let Value::Dict(top) = top else {
        return refuse!("it holds {}; expected a dict of named tensors", top.describe());
    };
    match find_in(*top, heap, MAX_NESTING, &mut MAX_ENTRIES.clone())? {
        Some((tensors, keys)) if keys.is_empty() => Ok((tensors, None)),
        Some((tensors, keys)) => Ok((tensors, Some(keys.join(".")))),
        None => refuse!(
            "it has no named tensors, neither at the top nor in nested dicts; found the keys {}",
            keys_of(*top, heap)
        ),
    }
}

/// The tensors of a dict or of one nested in it, with the keys that lead there.
fn find_in(
    dict: usize,
    heap: &Heap,
    depth: usize,
    entries_left: &mut usize,
) -> Result<Option<(NamedTensors, Vec<String>)>, Refusal> {
    let Some(left) = entries_left.checked_sub(heap.dicts[dict].len() + 1) else {
        return refuse!("its dicts have more than {MAX_ENTRIES} entries, too many for weights");
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
    // Beside the dict of weights, a training script may save single tensors, such as a loss.
    let is_beside = |(key, tensors, _): &&(&str, NamedTensors, Vec<String>)| {
        DEFAULT_KEYS.contains(key) && tensors.len() > own.len()
    };
    if !own.is_empty() && !nested.iter().any(|nested| is_beside(&nested)) {
        return Ok(Some((own, Vec::new())));
    }
    let among = |keys: &[&str]| -> Vec<usize> {
        (0..nested.len()).filter(|&index| keys.contains(&nested[index].0)).collect()
    };
    let chosen = match (nested.len(), among(&DEFAULT_KEYS), among(&AVERAGED_KEYS)) {
        (0, ..) => return Ok(None),
        (1, ..) => 0,
        (_, default, _) if default.len() == 1 => default[0],
        (_, default, averaged) if default.is_empty() && averaged.len() == 1 => averaged[0],
        _ => {
            let keys: Vec<_> = nested.iter().map(|(key, ..)| *key).collect();
            return refuse!(
                "several of its dicts have tensors ({}); save the one to be loaded to a file of \
                 its own",
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

/// The tensors in a dict itself. Of a name that occurs twice, the last tensor takes the place of
/// the first.
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
