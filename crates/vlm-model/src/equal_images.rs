//! Equal images of a batch, such as those of two questions about one image: the vision encoder
//! encodes them once.

use tch::{Device, Kind, Tensor};

use crate::indices::index_tensor;

/// Which images of a batch are equal.
///
/// Dimensions: N images · D distinct images
#[derive(Debug)]
pub(crate) struct EqualImages {
    /// Indices of the distinct images, `[D]`, i64.
    distinct: Tensor,
    /// For each image the index of its equal among the distinct ones, `[N]`, i64.
    equal_of_each: Tensor,
}

impl EqualImages {
    /// The equal images among `pixel_values` `[N, C, S, S]`; `None` if all are distinct. Only on the
    /// CPU, where the encoder takes long and reading the pixels costs no synchronisation.
    pub(crate) fn find(pixel_values: &Tensor) -> Option<Self> {
        if pixel_values.device() != Device::Cpu {
            return None;
        }
        let images = pixel_values.flatten(1, -1);
        let sums = Vec::<f64>::try_from(images.sum_dim_intlist(1, false, Kind::Double)).ok()?;
        let mut distinct: Vec<i64> = Vec::new();
        let mut equal_of_each: Vec<i64> = Vec::with_capacity(sums.len());
        for (image, sum) in sums.iter().enumerate() {
            let pixels = images.get(image as i64);
            let equals = |&other: &i64| sums[other as usize] == *sum && images.get(other) == pixels;
            let equal = distinct.iter().position(equals).unwrap_or_else(|| {
                distinct.push(image as i64);
                distinct.len() - 1
            });
            equal_of_each.push(equal as i64);
        }
        let index = |indices: &[i64]| index_tensor(indices, Device::Cpu);
        (distinct.len() < sums.len())
            .then(|| Self { distinct: index(&distinct), equal_of_each: index(&equal_of_each) })
    }

    /// The features `[N, …]` of `pixel_values` `[N, …]`, of which `encode` computes those of the
    /// distinct images.
    pub(crate) fn encode_once(
        &self,
        pixel_values: &Tensor,
        encode: impl Fn(&Tensor) -> Tensor,
    ) -> Tensor {
        encode(&pixel_values.index_select(0, &self.distinct)).index_select(0, &self.equal_of_each)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_images_are_found_and_encoded_once() {
        let distinct = Tensor::randn([3, 3, 8, 8], (Kind::Float, Device::Cpu));
        let images = distinct.index_select(0, &Tensor::from_slice(&[0i64, 1, 0, 2, 1]));
        let equal = EqualImages::find(&images).unwrap();
        assert_eq!(Vec::<i64>::try_from(&equal.distinct).unwrap(), [0, 1, 3]);
        assert_eq!(Vec::<i64>::try_from(&equal.equal_of_each).unwrap(), [0, 1, 0, 2, 1]);
        let features = equal.encode_once(&images, |pixels| {
            assert_eq!(pixels.size(), [3, 3, 8, 8]);
            pixels * 2
        });
        assert!(features.equal(&(&images * 2)));
        assert!(EqualImages::find(&distinct).is_none());
    }
}
