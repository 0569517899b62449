//! The classes and functions that a pickle of weights may name, and what they make. Any other is
//! refused by its name: a pickle can name `os.system` just as well.

use std::rc::Rc;

use tch::Kind;

use super::error::{Refusal, refuse};
use super::pickle::{Heap, Value};

/// Dtypes that a training script may keep beside its weights.
const DTYPES: [&str; 12] = [
    "bfloat16", "bool", "float", "float16", "float32", "float64", "half", "int16", "int32",
    "int64", "int8", "uint8",
];

/// As libtorch's own limit.
const MAX_DIMENSIONS: usize = 64;

/// What a pickle may name.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    /// A set, of which only the items matter.
    Set,
    /// A dtype or device: a value that says nothing about tensors, kept as a place only.
    Opaque,
    Storage(Kind),
}

/// A storage in the file: `numel` elements of `kind` in the record `data/{key}`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct StorageRef {
    pub key: Rc<str>,
    pub kind: Kind,
    pub numel: i64,
}

/// A view of a storage, checked to stay inside it; offset and strides count elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorRef {
    /// Number of its storage in the heap.
    pub storage: usize,
    pub offset: i64,
    pub shape: Vec<i64>,
    pub stride: Vec<i64>,
}

impl Global {
    /// # Errors
    /// Everything that weights do not need.
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
                    "the pickle wants {module}.{name}, which weights do not need: refused, nothing of it \
                     was run. In Python, save the plain dict: torch.save(model.state_dict(), path)"
                );
            }
        })
    }

    /// For messages.
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

    /// What calling it makes.
    /// # Errors
    /// Arguments of other types, or that describe no tensor.
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
    /// `("storage", torch.FloatStorage, "0", "cpu", 12)`: the only kind of persistent id there is.
    /// # Errors
    /// Any other.
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
                "the persistent id is {} ({}); expected (\"storage\", a storage class, key, device, length)",
                id.describe(),
                found.join(", ")
            );
        };
        if &**tag != "storage" {
            return refuse!("the persistent id is a {tag:?}; expected a \"storage\"");
        }
        // The key becomes part of a record's name.
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
    // Each use of a shared tuple copies it, so a long one could be made to fill the memory.
    if values.len() > MAX_DIMENSIONS {
        return refuse!(
            "a tensor's {what} has {} numbers; at most {MAX_DIMENSIONS} are read",
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

/// Offset, shape and strides may not leave the storage, nor repeat it: a few bytes could then claim
/// to be a tensor of any size.
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
            "a tensor with shape {shape:?}, stride {stride:?} and offset {offset} does not fit into storage \
             {key} of {available} elements"
        ),
    }
}
