//! Images and the classes of their patches, for training the vision encoder.

use tch::{Kind, Tensor};
use vlm_demo::{IMAGE_SIZE, Layout, NUM_CELLS};
use vlm_torch::tensor_from_bytes;

/// A cell is an example of an object if the object covers at least this fraction of it.
const MIN_COVERED: f32 = 0.12;
/// A cell is an example of an empty cell if at most this fraction of it is covered. Between the two
/// thresholds a cell has no target.
const MAX_EMPTY: f32 = 0.02;

/// Images and their targets as plain bytes, so that they can be made on threads without libtorch.
#[derive(Debug, Default)]
pub(super) struct DrawnBatch {
    num_images: i64,
    pixels: Vec<u8>,
    /// For each cell 0 for empty, 1 for an object, 2 for no target.
    states: Vec<u8>,
    sizes: Vec<u8>,
    colours: Vec<u8>,
    shapes: Vec<u8>,
}

/// Images and their targets as tensors.
/// N images · P patches
#[derive(Debug)]
pub(super) struct VisionBatch {
    /// Normalised pixels, `[N, 3, 224, 224]` f32.
    pub pixel_values: Tensor,
    /// Whether a patch shows an object, `[N · P]` bool.
    pub is_object: Tensor,
    /// Whether a patch is empty, `[N · P]` bool.
    pub is_empty: Tensor,
    /// Size of the object, `[N · P]` i64; meaningful only where `is_object`.
    pub sizes: Tensor,
    /// Colour of the object, like `sizes`.
    pub colours: Tensor,
    /// Shape of the object, like `sizes`.
    pub shapes: Tensor,
}

impl DrawnBatch {
    /// Draws an image and adds it with its targets.
    pub fn push(&mut self, layout: &Layout) {
        self.num_images += 1;
        self.pixels.extend(layout.draw());
        let coverage = layout.coverage();
        let covered = |object: usize, cell: usize| coverage[object][cell];
        for cell in 0..NUM_CELLS {
            let most = (0..layout.objects.len())
                .max_by(|&a, &b| covered(a, cell).total_cmp(&covered(b, cell)));
            let share = most.map_or(0.0, |object| covered(object, cell));
            self.states.push(if share >= MIN_COVERED {
                1
            } else {
                2 * u8::from(share > MAX_EMPTY)
            });
            let object = most.map(|index| layout.objects[index].object);
            self.sizes.push(object.map_or(0, |object| object.size as u8));
            self.colours.push(object.map_or(0, |object| object.colour as u8));
            self.shapes.push(object.map_or(0, |object| object.shape as u8));
        }
    }

    /// Converts to tensors. `mean` and `std` are those of the encoder's preprocessing.
    ///
    /// # Errors
    /// A failure of libtorch.
    pub fn to_tensors(&self, mean: [f32; 3], std: [f32; 3]) -> vlm_torch::Result<VisionBatch> {
        let side = IMAGE_SIZE as i64;
        let cells = self.num_images * NUM_CELLS as i64;
        let bytes = |bytes: &[u8], shape: &[i64]| tensor_from_bytes(bytes, shape, Kind::Uint8);
        let channels = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
        let pixels = bytes(&self.pixels, &[self.num_images, side, side, 3])?
            .permute([0, 3, 1, 2])
            .to_kind(Kind::Float);
        let states = bytes(&self.states, &[cells])?;
        Ok(VisionBatch {
            pixel_values: (pixels / 255.0 - channels(mean)) / channels(std),
            is_object: states.eq(1),
            is_empty: states.eq(0),
            sizes: bytes(&self.sizes, &[cells])?.to_kind(Kind::Int64),
            colours: bytes(&self.colours, &[cells])?.to_kind(Kind::Int64),
            shapes: bytes(&self.shapes, &[cells])?.to_kind(Kind::Int64),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vlm_demo::{Split, seeded_rng};

    #[test]
    fn targets_are_the_objects_of_the_scene() {
        let mut rng = seeded_rng(9);
        let scene = Split::Starting.sample(1, &mut rng);
        let mut drawn = DrawnBatch::default();
        drawn.push(&Layout::of(&scene, &mut rng));
        let batch = drawn.to_tensors([0.5; 3], [0.5; 3]).unwrap();
        assert_eq!(batch.pixel_values.size(), [1, 3, 224, 224]);
        let object = scene.objects()[0];
        let colours = Vec::<i64>::try_from(batch.colours.masked_select(&batch.is_object)).unwrap();
        assert!(!colours.is_empty());
        assert!(colours.iter().all(|&colour| colour == object.colour as i64));
    }
}
