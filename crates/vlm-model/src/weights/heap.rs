//! What a pickle of weights is made of: values, and the containers, storages and tensors that they
//! refer to.

use std::rc::Rc;

use tch::Kind;

/// A value on the stack. Containers, storages and tensors are indices into the [`Heap`].
#[derive(Debug, Clone)]
pub(super) enum Value {
    None,
    Bool,
    Int(i64),
    /// A value that weights do not need, such as a float; it is not kept, and neither is a bool.
    Opaque,
    Str(Rc<str>),
    Global(Global),
    Tuple(usize),
    List(usize),
    Dict(usize),
    Storage(usize),
    Tensor(usize),
}

impl Value {
    /// The type of the value, for messages.
    pub fn describe(&self) -> &'static str {
        match self {
            Self::None => "None",
            Self::Bool => "a bool",
            Self::Int(_) => "an integer",
            Self::Opaque => "a number",
            Self::Str(_) => "a string",
            Self::Global(_) => "a class or function",
            Self::Tuple(_) => "a tuple",
            Self::List(_) => "a list",
            Self::Dict(_) => "a dict",
            Self::Storage(_) => "a storage",
            Self::Tensor(_) => "a tensor",
        }
    }
}

/// The containers, storages and tensors that a pickle builds.
#[derive(Debug, Default)]
pub(super) struct Heap {
    pub sequences: Vec<Vec<Value>>,
    pub dicts: Vec<Vec<(Value, Value)>>,
    pub storages: Vec<StorageRef>,
    pub tensors: Vec<TensorRef>,
}

impl Heap {
    pub fn tuple(&mut self, items: Vec<Value>) -> Value {
        self.sequences.push(items);
        Value::Tuple(self.sequences.len() - 1)
    }

    pub fn dict(&mut self) -> Value {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }
}

/// A class or function that a pickle may use.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Size,
    /// A set, which is read as its list of items.
    Set,
    /// A dtype or device. It is not needed for the tensors, so its value is not kept.
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

/// A view of a storage, which does not exceed it. Offset and strides are in elements.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct TensorRef {
    /// Index of its storage in the heap.
    pub storage: usize,
    pub offset: i64,
    pub shape: Vec<i64>,
    pub stride: Vec<i64>,
}
