//! What is done with a tensor when it is read: a part of a stacked tensor is taken, or elements that
//! another program stores in another order are arranged.

use tch::{Kind, TchError, Tensor};

/// What is done with a tensor after it is read from its file.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Transform {
    /// Part `index` of `count` equal parts of the dimension `dim`.
    Chunk {
        /// The dimension.
        dim: usize,
        /// Number of the part, from 0.
        index: i64,
        /// Number of parts.
        count: i64,
    },
    /// All elements are halved, which is exact.
    Half,
    /// `[1, …]` → `[…]`.
    WithoutFirst,
    /// Position embeddings `[before + from², V]`, `before` of which belong to no patch → `[before +
    /// to², V]`: those of the patches are interpolated from a grid of `from` × `from` to one of
    /// `to` × `to`, in float32.
    Grid {
        /// Number of positions before those of the patches, such as that of a class token.
        before: i64,
        /// Number of patches per side in the file.
        from: i64,
        /// Number of patches per side of the result.
        to: i64,
    },
    /// The kernel of a patch embedding, stored as a matrix with the channels last: `[V, p · p · 3]`
    /// → `[V, 3, p, p]`.
    PatchKernel,
}

/// Number of colour channels of an image.
const CHANNELS: i64 = 3;

impl Transform {
    /// The shape after the transform of a tensor of the shape `shape`; `None` if it cannot be
    /// applied.
    pub(super) fn shape(self, shape: &[i64]) -> Option<Vec<i64>> {
        let mut shape = shape.to_vec();
        match self {
            Self::Half => {}
            Self::Chunk { dim, count, .. } => {
                let length = shape.get_mut(dim).filter(|length| **length % count == 0)?;
                *length /= count;
            }
            Self::WithoutFirst => {
                shape.first().filter(|&&first| first == 1)?;
                shape.remove(0);
            }
            Self::Grid { before, from, to } => {
                shape
                    .first()
                    .filter(|&&first| shape.len() == 2 && first == before + from * from)?;
                shape[0] = before + to * to;
            }
            Self::PatchKernel => {
                let &[width, pixels] = shape.as_slice() else { return None };
                let side = patch_side(pixels)?;
                shape = vec![width, CHANNELS, side, side];
            }
        }
        Some(shape)
    }

    /// The dtype after the transform of a tensor of dtype `kind`.
    pub(super) fn kind(self, kind: Kind) -> Kind {
        match self {
            // A rounded result would not be that of a model in float32.
            Self::Grid { .. } => Kind::Float,
            _ => kind,
        }
    }

    pub(super) fn apply(self, tensor: &Tensor) -> Result<Tensor, TchError> {
        match self {
            Self::Chunk { dim, index, count } => {
                let length = tensor.size().get(dim).map_or(0, |length| length / count);
                // A copy, so that it does not share its memory with the other parts.
                Ok(tensor.f_narrow(dim as i64, index * length, length)?.copy())
            }
            Self::Half => tensor.f_mul_scalar(0.5),
            Self::WithoutFirst => tensor.f_squeeze_dim(0),
            Self::Grid { before, from, to } => {
                let table = tensor.f_to_kind(Kind::Float)?;
                let patches = table.f_narrow(0, before, from * from)?;
                let patches = interpolated(&patches, from, to)?;
                Tensor::f_cat(&[table.f_narrow(0, 0, before)?, patches], 0)
            }
            Self::PatchKernel => {
                let (width, pixels) = tensor.size2()?;
                let side = patch_side(pixels).unwrap_or(0);
                let channels_last = tensor.f_view([width, side, side, CHANNELS])?;
                channels_last.f_permute([0, 3, 1, 2])?.f_contiguous()
            }
        }
    }
}

/// The position embeddings `[from², V]` of a grid of patches, row by row → `[to², V]`: bicubic
/// interpolation without aligned corners, as `interpolate_pos_encoding` in transformers.
fn interpolated(table: &Tensor, from: i64, to: i64) -> Result<Tensor, TchError> {
    let grid = table.f_view([1, from, from, -1])?.f_permute([0, 3, 1, 2])?;
    let grid = grid.f_upsample_bicubic2d([to, to], false, None, None)?;
    grid.f_permute([0, 2, 3, 1])?.f_reshape([to * to, -1])
}

/// The side of a square patch of `elements` elements.
fn patch_side(elements: i64) -> Option<i64> {
    let side = (elements as f64 / CHANNELS as f64).sqrt().round() as i64;
    (side * side * CHANNELS == elements).then_some(side)
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    #[test]
    fn transformed_tensors_have_the_shape_that_was_announced() {
        let stored = |shape: &[i64]| {
            let count: i64 = shape.iter().product();
            Tensor::arange(count, (Kind::Float, Device::Cpu)).view(shape)
        };
        for (shape, transform) in [
            (vec![6, 2], Transform::Chunk { dim: 0, index: 2, count: 3 }),
            (vec![2, 6], Transform::Chunk { dim: 1, index: 1, count: 2 }),
            (vec![6], Transform::Chunk { dim: 0, index: 1, count: 3 }),
            (vec![2, 2], Transform::Half),
            (vec![1, 4, 2], Transform::WithoutFirst),
            (vec![2, 12], Transform::PatchKernel),
            (vec![5, 3], Transform::Grid { before: 1, from: 2, to: 3 }),
        ] {
            let found = transform.apply(&stored(&shape)).unwrap();
            assert_eq!(Some(found.size()), transform.shape(&shape), "{transform:?}");
        }
        assert_eq!(Transform::Chunk { dim: 0, index: 0, count: 3 }.shape(&[7]), None);
        assert_eq!(Transform::WithoutFirst.shape(&[2, 3]), None);
        assert_eq!(Transform::PatchKernel.shape(&[2, 13]), None);
        assert_eq!(Transform::Grid { before: 0, from: 2, to: 3 }.shape(&[5, 3]), None);
    }

    #[test]
    fn a_patch_kernel_is_that_of_the_same_convolution() {
        // A patch is a row of pixels, each with its three channels one after another.
        let matrix = Tensor::arange(12, (Kind::Float, Device::Cpu)).view([1, 12]);
        let kernel = Transform::PatchKernel.apply(&matrix).unwrap();
        let image = Tensor::randn([1, 3, 2, 2], (Kind::Float, Device::Cpu));
        let patch = image.permute([0, 2, 3, 1]).reshape([1, 12]);
        let convolved = image.conv2d(&kernel, None::<Tensor>, 2, 0, 1, 1).view([1, 1]);
        let difference = (patch.linear(&matrix, None::<Tensor>) - convolved).abs().max();
        assert!(f64::try_from(difference).unwrap() < 1e-4);
    }
}
