//! Reads and writes `.safetensors` (<https://github.com/huggingface/safetensors>). The
//! `safetensors` crate checks the header. The values are read here, one tensor at a time, which the
//! crate supports only for a memory map.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo as Entry};
use serde_json::json;
use tch::{Kind, Tensor};

use super::error::{Refusal, WeightsError, refuse};
use super::tensor_info::TensorInfo;
use super::tied::view_of;

/// Largest size of the header, as in the reference implementation.
pub(super) const MAX_HEADER_BYTES: u64 = 100_000_000;

/// Key of the header's metadata that lists, as JSON, the tensors that are tied to an earlier one.
/// The format itself cannot express this; other readers find equal tensors.
const TIED: &str = "vlm.tied";

/// Number of bytes of two tied tensors that are compared at once.
const COMPARED_BYTES: usize = 1 << 20;

/// An open `.safetensors` file.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    file: RefCell<File>,
    data_start: u64,
    tensors: Vec<(u64, TensorInfo)>,
}

impl SafetensorsFile {
    /// Opens a file. Returns it and its tensors, in the order of their data.
    ///
    /// # Errors
    /// The header is not valid, its tensors do not fill the file exactly, or a dtype is not
    /// supported.
    pub fn open(path: &Path) -> Result<(Self, Vec<TensorInfo>), WeightsError> {
        let mut file = File::open(path).map_err(WeightsError::io(path))?;
        let file_bytes = file.metadata().map_err(WeightsError::io(path))?.len();
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(WeightsError::io(path))?;
        let header_bytes = u64::from_le_bytes(prefix);
        let refused = |refusal: Refusal| refusal.in_file(path);
        if header_bytes > MAX_HEADER_BYTES {
            return Err(refused(Refusal(format!(
                "the header claims {header_bytes} bytes; the limit is {MAX_HEADER_BYTES}"
            ))));
        }
        if header_bytes > file_bytes - 8 {
            return Err(refused(Refusal(format!(
                "the header claims {header_bytes} bytes, but the file has {file_bytes}"
            ))));
        }
        let mut header = vec![0; usize::try_from(header_bytes).unwrap_or(0)];
        file.read_exact(&mut header).map_err(WeightsError::io(path))?;
        let (tensors, tied) = parse(&header, file_bytes - 8 - header_bytes).map_err(refused)?;
        let mut opened = Self { file: RefCell::new(file), data_start: 8 + header_bytes, tensors };
        for (name, first) in tied {
            opened.tie(&name, first, path)?;
        }
        let infos = opened.tensors.iter().map(|(_, info)| info.clone()).collect();
        Ok((opened, infos))
    }

    /// Marks the tensor `name` as tied to `first`, after comparing their values.
    fn tie(&mut self, name: &str, first: String, path: &Path) -> Result<(), WeightsError> {
        let place = |name: &str| self.tensors.iter().position(|(_, info)| info.name == name);
        let (Some(at), Some(first_at)) = (place(name), place(&first)) else {
            return Err(Refusal(format!("it ties {name:?} to {first:?}, but does not have both"))
                .in_file(path));
        };
        let ((a, info), (b, first_info)) = (&self.tensors[at], &self.tensors[first_at]);
        let is_alike = info.shape == first_info.shape && info.kind == first_info.kind;
        let bytes = info.shape.iter().product::<i64>() as usize * info.kind.elt_size_in_bytes();
        if at == first_at || !is_alike || !self.is_same(*a, *b, bytes, path)? {
            let message = format!("it ties {name:?} to {first:?}, but the two differ");
            return Err(Refusal(message).in_file(path));
        }
        self.tensors[at].1.shared_with = Some(first);
        Ok(())
    }

    fn is_same(&self, a: u64, b: u64, bytes: usize, path: &Path) -> Result<bool, WeightsError> {
        let mut file = self.file.borrow_mut();
        let mut read = |offset: u64, buffer: &mut [u8]| {
            file.seek(SeekFrom::Start(self.data_start + offset))
                .and_then(|_| file.read_exact(buffer))
                .map_err(WeightsError::io(path))
        };
        let (mut of_a, mut of_b) = (vec![0; COMPARED_BYTES], vec![0; COMPARED_BYTES]);
        for start in (0..bytes).step_by(COMPARED_BYTES) {
            let length = COMPARED_BYTES.min(bytes - start);
            read(a + start as u64, &mut of_a[..length])?;
            read(b + start as u64, &mut of_b[..length])?;
            if of_a[..length] != of_b[..length] {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Reads the tensor with the index `index`, on the CPU.
    ///
    /// # Errors
    /// The file cannot be read.
    pub fn read(&self, index: usize, path: &Path) -> Result<Tensor, WeightsError> {
        let (offset, info) = &self.tensors[index];
        let numel: i64 = info.shape.iter().product();
        let mut bytes = vec![0; numel as usize * info.kind.elt_size_in_bytes()];
        let mut file = self.file.borrow_mut();
        file.seek(SeekFrom::Start(self.data_start + offset))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(WeightsError::io(path))?;
        vlm_torch::tensor_from_bytes(&bytes, &info.shape, info.kind)
            .map_err(|source| WeightsError::Tensor { name: info.name.clone(), source })
    }
}

/// `(offset, description)` of each tensor.
type Entries = Vec<(u64, TensorInfo)>;

/// The tensors of a header, in the order of their data, and the tied names, `{name: first name}`.
fn parse(header: &[u8], data_bytes: u64) -> Result<(Entries, BTreeMap<String, String>), Refusal> {
    let metadata: Metadata = serde_json::from_slice(header).map_err(|error| {
        Refusal(format!("the safetensors header is not valid ({error}); download the file again"))
    })?;
    if metadata.data_len() as u64 != data_bytes {
        return refuse!(
            "the safetensors header describes {} bytes of tensors, the file has {data_bytes}; \
             download it again",
            metadata.data_len()
        );
    }
    let entries = metadata.tensors();
    let describe = |name: String| {
        let Entry { dtype, shape, data_offsets } = entries[&name];
        let Some(kind) = kind_of(*dtype) else {
            return refuse!("tensor {name:?} is of dtype {dtype:?}, which is not supported");
        };
        let shape =
            shape.iter().map(|&length| i64::try_from(length)).collect::<Result<Vec<_>, _>>();
        let Ok(shape) = shape else {
            return refuse!("tensor {name:?} has a dimension of more than 2^63");
        };
        Ok((data_offsets.0 as u64, TensorInfo { name, shape, kind, shared_with: None }))
    };
    let tensors = metadata.offset_keys().into_iter().map(describe).collect::<Result<_, _>>()?;
    let tied = metadata.metadata().as_ref().and_then(|map| map.get(TIED));
    let tied = tied.map_or(Ok(BTreeMap::new()), |json| serde_json::from_str(json));
    let tied = tied.map_err(|error| Refusal(format!("the metadata {TIED:?}: {error}")))?;
    Ok((tensors, tied))
}

/// The names of tensors that are tied to an earlier one: `{name: first name}`.
fn tied(tensors: &[(String, Tensor)]) -> BTreeMap<&str, &str> {
    let mut firsts = HashMap::new();
    let mut tied = BTreeMap::new();
    for (name, tensor) in tensors.iter().filter(|(_, tensor)| tensor.numel() > 0) {
        let first = *firsts.entry(view_of(tensor)).or_insert(name.as_str());
        if first != name {
            tied.insert(name.as_str(), first);
        }
    }
    tied
}

/// Writes named tensors, with the metadata `format: pt` that Hugging Face's loader requires. Tied
/// tensors are written once for each name, and listed under [`TIED`].
///
/// # Errors
/// The format does not support a dtype, or the file cannot be written.
pub(super) fn write(
    out: &mut impl Write,
    tensors: &[(String, Tensor)],
    path: &Path,
) -> Result<(), WeightsError> {
    let mut order: Vec<_> = tensors.iter().collect();
    // The wide dtypes first, so that every tensor starts at a multiple of its element size.
    order.sort_by_key(|(_, tensor)| std::cmp::Reverse(tensor.kind().elt_size_in_bytes()));
    let mut end = 0;
    let mut entries = Vec::with_capacity(order.len());
    for (name, tensor) in &order {
        let kind = tensor.kind();
        let Some(dtype) = dtype_of(kind) else {
            return Err(Refusal(format!(
                "safetensors has no dtype for {kind:?} of tensor {name:?}"
            ))
            .in_file(path));
        };
        let start = end;
        end += tensor.numel() * kind.elt_size_in_bytes();
        let shape = tensor.size().iter().map(|&length| length.unsigned_abs() as usize).collect();
        entries.push((name.clone(), Entry { dtype, shape, data_offsets: (start, end) }));
    }
    let refused = |message: String| Refusal(message).in_file(path);
    let metadata = Metadata::new(None, entries).map_err(|error| refused(error.to_string()))?;
    let mut header = serde_json::to_value(&metadata).map_err(|error| refused(error.to_string()))?;
    // The metadata does not go through the crate's map, whose order differs between runs: the same
    // tensors must make the same file.
    header["__metadata__"] = json!({ "format": "pt" });
    let tied = tied(tensors);
    if !tied.is_empty() {
        header["__metadata__"][TIED] = json!(json!(tied).to_string());
    }
    let mut header = header.to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' ');
    let io = || WeightsError::io(path);
    out.write_all(&(header.len() as u64).to_le_bytes()).map_err(io())?;
    out.write_all(&header).map_err(io())?;
    for (name, tensor) in order {
        let bytes = vlm_torch::tensor_to_bytes(tensor)
            .map_err(|source| WeightsError::Tensor { name: name.clone(), source })?;
        out.write_all(&bytes).map_err(io())?;
    }
    Ok(())
}

fn kind_of(dtype: Dtype) -> Option<Kind> {
    Some(match dtype {
        Dtype::BOOL => Kind::Bool,
        Dtype::U8 => Kind::Uint8,
        Dtype::I8 => Kind::Int8,
        Dtype::I16 => Kind::Int16,
        Dtype::I32 => Kind::Int,
        Dtype::I64 => Kind::Int64,
        Dtype::F16 => Kind::Half,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F32 => Kind::Float,
        Dtype::F64 => Kind::Double,
        _ => return None,
    })
}

fn dtype_of(kind: Kind) -> Option<Dtype> {
    Some(match kind {
        Kind::Bool => Dtype::BOOL,
        Kind::Uint8 => Dtype::U8,
        Kind::Int8 => Dtype::I8,
        Kind::Int16 => Dtype::I16,
        Kind::Int => Dtype::I32,
        Kind::Int64 => Dtype::I64,
        Kind::Half => Dtype::F16,
        Kind::BFloat16 => Dtype::BF16,
        Kind::Float => Dtype::F32,
        Kind::Double => Dtype::F64,
        _ => return None,
    })
}
