use tch::{Kind, Tensor};
use vlm_torch::{tensor_from_bytes, tensor_to_bytes};

#[test]
fn every_kind_is_read_back_as_it_was_written() {
    let kinds = [
        Kind::Float,
        Kind::Double,
        Kind::Half,
        Kind::BFloat16,
        Kind::Int64,
        Kind::Int,
        Kind::Int16,
        Kind::Int8,
        Kind::Uint8,
        Kind::Bool,
    ];
    for kind in kinds {
        let tensor = Tensor::from_slice(&[0i64, 1, 2, 100, 7, 42]).to_kind(kind).reshape([2, 3]);
        let bytes = tensor_to_bytes(&tensor).unwrap();
        assert_eq!(bytes.len(), 6 * kind.elt_size_in_bytes());
        let again = tensor_from_bytes(&bytes, &[2, 3], kind).unwrap();
        assert_eq!(again.kind(), kind);
        assert!(again.equal(&tensor), "{kind:?}");
    }
}

#[test]
fn bytes_are_little_endian_and_row_major() {
    assert_eq!(tensor_to_bytes(&Tensor::from_slice(&[1i16, -2])).unwrap(), [1, 0, 0xfe, 0xff]);
    let one = Tensor::from_slice(&[1f32]).to_kind(Kind::BFloat16);
    assert_eq!(tensor_to_bytes(&one).unwrap(), [0x80, 0x3f]);
    let transposed = Tensor::from_slice(&[1u8, 2, 3, 4]).reshape([2, 2]).tr();
    assert_eq!(tensor_to_bytes(&transposed).unwrap(), [1, 3, 2, 4]);
}

#[test]
fn scalars_and_empty_tensors_are_supported() {
    let scalar = tensor_from_bytes(&2f32.to_le_bytes(), &[], Kind::Float).unwrap();
    assert_eq!((scalar.dim(), f64::try_from(&scalar).unwrap()), (0, 2.0));
    let empty = tensor_from_bytes(&[], &[0, 3], Kind::Half).unwrap();
    assert!(tensor_to_bytes(&empty).unwrap().is_empty());
}

#[test]
fn wrong_lengths_and_shapes_are_errors() {
    let error = tensor_from_bytes(&[0; 7], &[2], Kind::Float).unwrap_err().to_string();
    assert_eq!(error, "tensor_from_bytes: [2] of Float takes 8 bytes, found 7");
    assert!(tensor_from_bytes(&[], &[-1], Kind::Float).is_err());
    assert!(tensor_from_bytes(&[], &[i64::MAX, i64::MAX], Kind::Float).is_err());
    assert!(tensor_to_bytes(&Tensor::new()).is_err());
}
