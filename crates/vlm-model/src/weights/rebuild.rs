//! The classes and functions that a pickle of weights may use. Any other is refused by its name,
//! because a pickle can name any function of Python, such as `os.system`.

use std::rc::Rc;

use tch::Kind;

use super::error::{Refusal, refuse};
use super::heap::{Global, Heap, StorageRef, TensorRef, Value};

/// Dtypes that a training script may save beside its weights.
const DTYPES: [&str; 12] = [
    "bfloat16", "bool", "float", "float16", "float32", "float64", "half", "int16", "int32",
    "int64", "int8", "uint8",
];

/// Largest number of dimensions, the same as libtorch's.
const MAX_DIMENSIONS: usize = 64;

impl Global {
    /// The class or function with this name.
    ///
    /// # Errors
    /// Weights do not need it.
    pub fn named(module: &str, name: &str) -> Result<Self, Refusal> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "Size") => Self::Size,
            ("__builtin__" | "builtins", "set" | "frozenset") => Self::Set,
            ("torch", "device") => Self::Opaque,
            ("torch", dtype) if DTYPES.contains(&dtype) => Self::Opaque,
            ("torch", "FloatStorage") => Self::Storage(Kind::Float),
            ("torch", "DoubleStorage") => Self::Storage(Kind::Double),
            ("torch", "HalfStorage") => Self::Storage(Kind::Half),
            ("torch", "BFloat16Storage") => Self::Storage(Kind::BFloat16),
            ("torch", "LongStorage") => Self::Storage(Kind::Int64),
            ("torch", "IntStorage") => Self::Storage(Kind::Int),
            ("torch", "ShortStorage") => Self::Storage(Kind::Int16),
            ("torch", "CharStorage") => Self::Storage(Kind::Int8),
            ("torch", "ByteStorage") => Self::Storage(Kind::Uint8),
            ("torch", "BoolStorage") => Self::Storage(Kind::Bool),
            _ => {
                return refuse!(
                    "the pickle uses {module}.{name}, which weights do not need; nothing of it was \
                     run. In Python, save the plain dict: torch.save(model.state_dict(), path)"
                );
            }
        })
    }

    /// The name for messages.
    pub fn name(self) -> &'static str {
        match self {
            Self::OrderedDict => "OrderedDict",
            Self::RebuildTensor => "_rebuild_tensor_v2",
            Self::RebuildParameter => "_rebuild_parameter",
            Self::Size => "torch.Size",
            Self::Set => "set",
            Self::Opaque => "a dtype or device",
            Self::Storage(_) => "a storage class",
        }
    }

    /// The value that a call with `arguments` returns.
    ///
    /// # Errors
    /// The arguments have other types, or describe no valid tensor.
    pub fn call(self, arguments: &[Value], heap: &mut Heap) -> Result<Value, Refusal> {
        match (self, arguments) {
            (Self::OrderedDict, []) => Ok(heap.dict()),
            (Self::Size | Self::Set, [Value::Tuple(_) | Value::List(_)]) => {
                Ok(arguments[0].clone())
            }
            (Self::Opaque, _) => Ok(Value::Opaque),
            (Self::RebuildParameter, [Value::Tensor(tensor), ..]) => Ok(Value::Tensor(*tensor)),
            (
                Self::RebuildTensor,
                [
                    Value::Storage(storage),
                    Value::Int(offset),
                    Value::Tuple(shape),
                    Value::Tuple(stride),
                    ..,
                ],
            ) => {
                let tensor = TensorRef {
                    storage: *storage,
                    offset: *offset,
                    shape: integers("shape", &heap.sequences[*shape])?,
                    stride: integers("stride", &heap.sequences[*stride])?,
                };
                check_inside(&tensor, &heap.storages[*storage])?;
                heap.tensors.push(tensor);
                Ok(Value::Tensor(heap.tensors.len() - 1))
            }
            _ => {
                let found: Vec<_> = arguments.iter().map(Value::describe).collect();
                refuse!("the pickle calls {} with ({})", self.name(), found.join(", "))
            }
        }
    }
}

impl StorageRef {
    /// The storage with a persistent id such as `("storage", torch.FloatStorage, "0", "cpu", 12)`.
    ///
    /// # Errors
    /// The persistent id has another form.
    pub fn from_persistent_id(id: &Value, heap: &mut Heap) -> Result<Value, Refusal> {
        let items = match id {
            Value::Tuple(items) => heap.sequences[*items].as_slice(),
            _ => &[],
        };
        let [
            Value::Str(tag),
            Value::Global(Global::Storage(kind)),
            Value::Str(key),
            Value::Str(_),
            Value::Int(numel),
        ] = items
        else {
            let found: Vec<_> = items.iter().map(Value::describe).collect();
            return refuse!(
                "the persistent id is {} ({}); expected (\"storage\", a storage class, key, \
                 device, length)",
                id.describe(),
                found.join(", ")
            );
        };
        if &**tag != "storage" {
            return refuse!("the persistent id is a {tag:?}; expected a \"storage\"");
        }
        // The key is a part of a record's name.
        if key.is_empty() || !key.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
            return refuse!("the storage key {key:?} is not a plain name");
        }
        if *numel < 0 {
            return refuse!("storage {key} has {numel} elements");
        }
        let storage = Self { key: Rc::clone(key), kind: *kind, numel: *numel };
        heap.storages.push(storage);
        Ok(Value::Storage(heap.storages.len() - 1))
    }
}

fn integers(what: &str, values: &[Value]) -> Result<Vec<i64>, Refusal> {
    // Each use of a shared tuple copies it, so that a long one could fill the memory.
    if values.len() > MAX_DIMENSIONS {
        return refuse!(
            "a tensor's {what} has {} numbers; at most {MAX_DIMENSIONS} are supported",
            values.len()
        );
    }
    values
        .iter()
        .map(|value| match value {
            Value::Int(number) if *number >= 0 => Ok(*number),
            Value::Int(number) => refuse!("a tensor's {what} has the number {number}"),
            other => refuse!("a tensor's {what} holds {}", other.describe()),
        })
        .collect()
}

/// Checks that a tensor does not exceed its storage, and does not have more elements than it:
/// otherwise a file of a few bytes could describe a tensor of any size.
fn check_inside(tensor: &TensorRef, storage: &StorageRef) -> Result<(), Refusal> {
    let TensorRef { offset, shape, stride, .. } = tensor;
    let StorageRef { key, numel: available, .. } = storage;
    if shape.len() != stride.len() || *offset < 0 {
        return refuse!(
            "a tensor on storage {key} has shape {shape:?}, stride {stride:?}, offset {offset}"
        );
    }
    let count = shape.iter().try_fold(1i64, |count, &length| count.checked_mul(length));
    let end = match count {
        Some(0) => Some(*offset),
        _ => shape
            .iter()
            .zip(stride)
            .try_fold(1i64, |end, (&length, &step)| {
                end.checked_add((length - 1).checked_mul(step)?)
            })
            .and_then(|end| end.checked_add(*offset)),
    };
    match (count, end) {
        (Some(count), Some(end)) if end <= *available && count <= *available => Ok(()),
        _ => refuse!(
            "a tensor with shape {shape:?}, stride {stride:?} and offset {offset} does not fit \
             into storage {key} of {available} elements"
        ),
    }
}
