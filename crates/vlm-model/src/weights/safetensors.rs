//! `.safetensors`: <https://github.com/huggingface/safetensors>. The header's rules are the crate's;
//! the values are read one tensor at a time, which the crate offers only over a memory map.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use safetensors::tensor::{Dtype, Metadata, TensorInfo as Entry};
use tch::{Kind, Tensor};

use super::error::{Refusal, refuse};
use super::{TensorInfo, WeightsError};

/// As the reference implementation.
const MAX_HEADER_BYTES: u64 = 100_000_000;

/// An open `.safetensors` file.
#[derive(Debug)]
pub(super) struct SafetensorsFile {
    file: RefCell<File>,
    data_start: u64,
    tensors: Vec<(u64, TensorInfo)>,
}

impl SafetensorsFile {
    /// The file, and its tensors in the order of their data.
    /// # Errors
    /// A header that is no header, or whose tensors do not fill the file exactly; dtypes that
    /// libtorch does not have here.
    pub fn open(path: &Path) -> Result<(Self, Vec<TensorInfo>), WeightsError> {
        let mut file = File::open(path).map_err(WeightsError::io(path))?;
        let file_bytes = file.metadata().map_err(WeightsError::io(path))?.len();
        let mut prefix = [0; 8];
        file.read_exact(&mut prefix).map_err(WeightsError::io(path))?;
        let header_bytes = u64::from_le_bytes(prefix);
        let refused = |refusal: Refusal| refusal.in_file(path);
        if header_bytes > MAX_HEADER_BYTES.min(file_bytes - 8) {
            return Err(refused(Refusal(format!(
                "the header claims {header_bytes} bytes of {file_bytes}"
            ))));
        }
        let mut header = vec![0; usize::try_from(header_bytes).unwrap_or(0)];
        file.read_exact(&mut header).map_err(WeightsError::io(path))?;
        let tensors = parse(&header, file_bytes - 8 - header_bytes).map_err(refused)?;
        let infos = tensors.iter().map(|(_, info)| info.clone()).collect();
        Ok((Self { file: RefCell::new(file), data_start: 8 + header_bytes, tensors }, infos))
    }

    /// The tensor of that number on the CPU.
    /// # Errors
    /// The system's.
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

/// Offsets and descriptions, by offset.
fn parse(header: &[u8], data_bytes: u64) -> Result<Vec<(u64, TensorInfo)>, Refusal> {
    let metadata: Metadata = serde_json::from_slice(header).map_err(|error| {
        Refusal(format!("the safetensors header is not valid ({error}): fetch the file again"))
    })?;
    if metadata.data_len() as u64 != data_bytes {
        return refuse!(
            "the safetensors header describes {} bytes of tensors, the file has {data_bytes}: fetch it again",
            metadata.data_len()
        );
    }
    let entries = metadata.tensors();
    let describe = |name: String| {
        let Entry { dtype, shape, data_offsets } = entries[&name];
        let Some(kind) = kind_of(*dtype) else {
            return refuse!("tensor {name:?} is of dtype {dtype:?}, which is not read");
        };
        let shape =
            shape.iter().map(|&length| i64::try_from(length)).collect::<Result<Vec<_>, _>>();
        let Ok(shape) = shape else {
            return refuse!("tensor {name:?} has a length beyond 2^63");
        };
        Ok((data_offsets.0 as u64, TensorInfo { name, shape, kind, shared_with: None }))
    };
    metadata.offset_keys().into_iter().map(describe).collect()
}

/// Writes named tensors, with the `format: pt` that Hugging Face's loader asks for.
/// # Errors
/// A dtype that the format lacks; the system's.
pub(super) fn write(
    out: &mut impl Write,
    tensors: &[(String, Tensor)],
    path: &Path,
) -> Result<(), WeightsError> {
    let mut order: Vec<_> = tensors.iter().collect();
    // The wide dtypes first, so that every tensor starts at a multiple of its element's size.
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
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let header = Metadata::new(Some(format), entries)
        .map_err(|error| error.to_string())
        .and_then(|metadata| serde_json::to_string(&metadata).map_err(|error| error.to_string()))
        .map_err(|message| Refusal(message).in_file(path))?;
    let padded = header.len().next_multiple_of(8);
    let io = || WeightsError::io(path);
    out.write_all(&(padded as u64).to_le_bytes()).map_err(io())?;
    write!(out, "{header:padded$}").map_err(io())?;
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
