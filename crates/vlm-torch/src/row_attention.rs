//! Attention within the rows of a batch, with rotary position embedding, in one pass on the CPU.
//!
//! Dimensions: N tokens of all rows · Q queries · P tokens of the prefix · D head width

use std::ffi::c_int;
use std::ptr;

use tch::Tensor;

use crate::{Error, Result, ffi};

/// Whether [`row_attention`] can be used for heads of width `head_dim` on this CPU: it has AVX-512
/// or AVX2, and the width is a multiple of 16.
pub fn has_row_attention(head_dim: i64) -> bool {
    // SAFETY: the function reads its argument only.
    unsafe { ffi::vlm_has_row_attention(head_dim) != 0 }
}

/// Rotary position embedding of queries and keys.
#[derive(Debug)]
pub struct RowRotary<'a> {
    /// The rotations, complex64 `[M, D / 2]`. Token n is rotated by entry n modulo M.
    pub rotations: &'a Tensor,
    /// Whether neighbours are rotated as a pair; otherwise elements half a head apart.
    pub is_interleaved: bool,
}

/// Keys and values of the tokens that all rows begin with.
#[derive(Debug)]
pub struct RowPrefix<'a> {
    /// Keys `[P, key/value heads, D]`, not yet rotated.
    pub k: &'a Tensor,
    /// Values, as the keys.
    pub v: &'a Tensor,
    /// Their rotations, complex64 `[P, D / 2]`, if the rows' keys are rotated.
    pub rotations: Option<&'a Tensor>,
}

/// Input of [`row_attention`].
#[derive(Debug)]
pub struct RowAttention<'a> {
    /// Queries `[Q, heads, D]`.
    pub q: &'a Tensor,
    /// Keys `[N, key/value heads, D]`.
    pub k: &'a Tensor,
    /// Values, as the keys.
    pub v: &'a Tensor,
    /// The first token of each row, and N.
    pub starts: &'a [i64],
    /// The tokens whose queries are given, i64 `[Q]`, ascending; `None` for all.
    pub tokens: Option<&'a Tensor>,
    /// What the rows begin with, if it is not among the tokens.
    pub prefix: Option<RowPrefix<'a>>,
    /// The rotary position embedding, if there is one.
    pub rotary: Option<RowRotary<'a>>,
    /// Whether a token attends to no later one of its row.
    pub is_causal: bool,
}

/// Scaled dot-product attention in which the tokens of a row attend to the prefix and to each other,
/// `[Q, heads, D]`. Each key/value head serves the same number of heads, in order. All tensors are
/// on the CPU, of the same type, float32 or bfloat16; the computation is in float32. Second
/// derivatives are not supported.
///
/// The result for a row depends neither on the other rows nor on the number of threads.
///
/// # Errors
/// Shapes or types that do not agree, or [`has_row_attention`] is false; no memory left.
pub fn row_attention(input: &RowAttention) -> Result<Tensor> {
    const OPERATION: &str = "row_attention";
    let RowAttention { q, k, v, starts, tokens, prefix, rotary, is_causal } = input;
    let handle = |tensor: Option<&Tensor>| tensor.map_or(ptr::null(), Tensor::as_ptr);
    let mut out = ptr::null_mut();
    // SAFETY: the handles are live tensors that are borrowed for the call, or null where the shim
    // allows it; `starts` is read with its length, and `out` has room for one pointer.
    let status = unsafe {
        ffi::vlm_row_attention(
            q.as_ptr(),
            k.as_ptr(),
            v.as_ptr(),
            handle(prefix.as_ref().map(|prefix| prefix.k)),
            handle(prefix.as_ref().map(|prefix| prefix.v)),
            handle(rotary.as_ref().map(|rotary| rotary.rotations)),
            handle(prefix.as_ref().and_then(|prefix| prefix.rotations)),
            handle(*tokens),
            starts.as_ptr(),
            starts.len(),
            c_int::from(rotary.as_ref().is_some_and(|rotary| rotary.is_interleaved)),
            c_int::from(*is_causal),
            &mut out,
        )
    };
    ffi::check(OPERATION, status)?;
    if out.is_null() {
        return Err(Error::torch(OPERATION, "libtorch returned no tensor"));
    }
    // SAFETY: on success the shim wrote a tensor allocated for the caller to own.
    Ok(unsafe { Tensor::from_ptr(out) })
}
