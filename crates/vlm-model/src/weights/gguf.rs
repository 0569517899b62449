//! Writes GGUF files, the format of llama.cpp (version 3 of the specification in the ggml project).

use std::io::Write;
use std::path::Path;

use tch::{Kind, Tensor};

use super::WeightsError;
use super::error::Refusal;

/// A value of the metadata.
#[derive(Debug, Clone, PartialEq)]
pub enum GgufValue {
    /// A 32-bit unsigned integer.
    U32(u32),
    /// A 32-bit signed integer.
    I32(i32),
    /// A 32-bit float.
    F32(f32),
    /// A truth value.
    Bool(bool),
    /// A text in UTF-8.
    Text(String),
    /// A list of values of one type.
    List(Vec<GgufValue>),
}

/// Tensors start at multiples of this many bytes.
const ALIGNMENT: usize = 32;

impl GgufValue {
    /// The number of the type in the format.
    fn type_number(&self) -> u32 {
        match self {
            Self::U32(_) => 4,
            Self::I32(_) => 5,
            Self::F32(_) => 6,
            Self::Bool(_) => 7,
            Self::Text(_) => 8,
            Self::List(_) => 9,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        match self {
            Self::U32(value) => out.extend(value.to_le_bytes()),
            Self::I32(value) => out.extend(value.to_le_bytes()),
            Self::F32(value) => out.extend(value.to_le_bytes()),
            Self::Bool(value) => out.push(u8::from(*value)),
            Self::Text(text) => write_text(out, text),
            Self::List(values) => {
                let number = values.first().map_or(4, Self::type_number);
                out.extend(number.to_le_bytes());
                out.extend((values.len() as u64).to_le_bytes());
                values.iter().for_each(|value| value.write(out));
            }
        }
    }
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

/// The number of a tensor type in the format.
fn tensor_type(kind: Kind) -> Option<u32> {
    match kind {
        Kind::Float => Some(0),
        Kind::Half => Some(1),
        Kind::BFloat16 => Some(30),
        _ => None,
    }
}

/// Writes a GGUF file with the metadata and the tensors (float32, float16 or bfloat16) atomically,
/// both in the given order.
///
/// # Errors
/// A tensor of another dtype or with more than four dimensions; a failure of the file system.
pub fn save_gguf(
    path: &Path,
    metadata: &[(String, GgufValue)],
    tensors: &[(String, Tensor)],
) -> Result<(), WeightsError> {
    let header = header(metadata, tensors).map_err(|refusal| refusal.in_file(path))?;
    vlm_torch::write_atomically(path, |file| {
        let io = || WeightsError::io(path);
        file.write_all(&header).map_err(io())?;
        for (name, tensor) in tensors {
            let mut bytes = vlm_torch::tensor_to_bytes(tensor)
                .map_err(|source| WeightsError::Tensor { name: name.clone(), source })?;
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
            file.write_all(&bytes).map_err(io())?;
        }
        Ok(())
    })
}

/// Everything in front of the tensors' values.
fn header(
    metadata: &[(String, GgufValue)],
    tensors: &[(String, Tensor)],
) -> Result<Vec<u8>, Refusal> {
    let mut out = b"GGUF".to_vec();
    out.extend(3_u32.to_le_bytes());
    out.extend((tensors.len() as u64).to_le_bytes());
    out.extend((metadata.len() as u64).to_le_bytes());
    for (key, value) in metadata {
        write_text(&mut out, key);
        out.extend(value.type_number().to_le_bytes());
        value.write(&mut out);
    }
    let mut offset = 0;
    for (name, tensor) in tensors {
        let (kind, shape) = (tensor.kind(), tensor.size());
        let Some(number) = tensor_type(kind) else {
            return Err(Refusal(format!(
                "GGUF has no type for {kind:?} of tensor {name:?}; expected float32, float16 or \
                 bfloat16"
            )));
        };
        if shape.len() > 4 {
            return Err(Refusal(format!(
                "tensor {name:?} has {} dimensions; GGUF has at most 4",
                shape.len()
            )));
        }
        write_text(&mut out, name);
        out.extend((shape.len() as u32).to_le_bytes());
        // The first dimension is the one whose elements are adjacent in memory.
        for length in shape.iter().rev() {
            out.extend(length.to_le_bytes());
        }
        out.extend(number.to_le_bytes());
        out.extend((offset as u64).to_le_bytes());
        offset += (tensor.numel() * kind.elt_size_in_bytes()).next_multiple_of(ALIGNMENT);
    }
    out.resize(out.len().next_multiple_of(ALIGNMENT), 0);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_bytes_of_the_specification() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let metadata = [
            ("a".to_owned(), GgufValue::U32(7)),
            ("b".to_owned(), GgufValue::List(vec![GgufValue::Text("xy".into())])),
        ];
        let tensors = [
            ("t".to_owned(), Tensor::from_slice(&[1.0_f32, 2.0, 3.0]).view([1, 3])),
            ("u".to_owned(), Tensor::from_slice(&[4.0_f32])),
        ];
        save_gguf(&path, &metadata, &tensors).unwrap();
        let bytes = std::fs::read(&path).unwrap();
        let mut expected = b"GGUF".to_vec();
        expected.extend([3, 0, 0, 0]);
        for count in [2_u64, 2] {
            expected.extend(count.to_le_bytes());
        }
        // "a" is a u32, 7.
        expected.extend(1_u64.to_le_bytes());
        expected.extend(b"a");
        expected.extend([4, 0, 0, 0, 7, 0, 0, 0]);
        // "b" is a list of one text of two bytes.
        expected.extend(1_u64.to_le_bytes());
        expected.extend(b"b");
        expected.extend([9, 0, 0, 0, 8, 0, 0, 0]);
        for count in [1_u64, 2] {
            expected.extend(count.to_le_bytes());
        }
        expected.extend(b"xy");
        // The tensor "t" has two dimensions, in reverse order, and starts at 0.
        expected.extend(1_u64.to_le_bytes());
        expected.extend(b"t");
        expected.extend([2, 0, 0, 0]);
        for length in [3_u64, 1] {
            expected.extend(length.to_le_bytes());
        }
        expected.extend([0; 4]);
        expected.extend(0_u64.to_le_bytes());
        expected.extend(1_u64.to_le_bytes());
        expected.extend(b"u");
        expected.extend([1, 0, 0, 0]);
        expected.extend(1_u64.to_le_bytes());
        expected.extend([0; 4]);
        expected.extend(32_u64.to_le_bytes());
        expected.resize(expected.len().next_multiple_of(32), 0);
        let start = expected.len();
        for value in [1.0_f32, 2.0, 3.0] {
            expected.extend(value.to_le_bytes());
        }
        expected.resize(start + 32, 0);
        expected.extend(4.0_f32.to_le_bytes());
        expected.resize(start + 64, 0);
        assert_eq!(bytes, expected);
    }

    #[test]
    fn integers_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let tensors = [("ids".to_owned(), Tensor::from_slice(&[1_i64]))];
        let error = save_gguf(&folder.path().join("m.gguf"), &[], &tensors).unwrap_err();
        assert!(error.to_string().contains("Int64 of tensor \"ids\""), "{error}");
    }
}
