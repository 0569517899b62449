//! What the vision encoder is asked about each patch of a drawn picture.

use tch::{Kind, Tensor};
use vlm_demo::{Layout, NUM_CELLS, PICTURE};
use vlm_torch::tensor_from_bytes;

/// A cell that an object covers by this share or more is asked what the object is.
const COVERED: f32 = 0.12;
/// A cell that is covered less than this shows nothing. Between the two nothing is asked.
const EMPTY: f32 = 0.02;

/// Pictures and their answers, as plain bytes: made on threads that leave the arithmetic alone.
#[derive(Debug, Default)]
pub(super) struct DrawnBatch {
    num_pictures: i64,
    pixels: Vec<u8>,
    /// 0 nothing, 1 an object, 2 not asked.
    states: Vec<u8>,
    sizes: Vec<u8>,
    colours: Vec<u8>,
    shapes: Vec<u8>,
}

/// The same as tensors. N pictures · P patches
#[derive(Debug)]
pub(super) struct VisionBatch {
    /// `[N, 3, 224, 224]`, normalised.
    pub pixel_values: Tensor,
    /// `[N · P]` bool: an object is here.
    pub is_object: Tensor,
    /// `[N · P]` bool: nothing is here.
    pub is_empty: Tensor,
    /// `[N · P]` i64 each; meaningful where `is_object`.
    pub sizes: Tensor,
    /// See `sizes`.
    pub colours: Tensor,
    /// See `sizes`.
    pub shapes: Tensor,
}

impl DrawnBatch {
    /// Draws a picture and notes its answers.
    pub fn push(&mut self, layout: &Layout) {
        self.num_pictures += 1;
        self.pixels.extend(layout.draw());
        let coverage = layout.coverage();
        let covered = |object: usize, cell: usize| coverage[object][cell];
        for cell in 0..NUM_CELLS {
            let most = (0..layout.objects.len())
                .max_by(|&a, &b| covered(a, cell).total_cmp(&covered(b, cell)));
            let share = most.map_or(0.0, |object| covered(object, cell));
            self.states.push(if share >= COVERED { 1 } else { 2 * u8::from(share > EMPTY) });
            let object = most.map(|index| layout.objects[index].object);
            self.sizes.push(object.map_or(0, |object| object.size as u8));
            self.colours.push(object.map_or(0, |object| object.colour as u8));
            self.shapes.push(object.map_or(0, |object| object.shape as u8));
        }
    }

    /// To tensors; `mean` and `std` are those of the encoder's preprocessing.
    /// # Errors
    /// libtorch's.
    pub fn to_tensors(&self, mean: [f32; 3], std: [f32; 3]) -> vlm_torch::Result<VisionBatch> {
        let side = PICTURE as i64;
        let cells = self.num_pictures * NUM_CELLS as i64;
        let bytes = |bytes: &[u8], shape: &[i64]| tensor_from_bytes(bytes, shape, Kind::Uint8);
        let channels = |values: [f32; 3]| Tensor::from_slice(&values).view([1, 3, 1, 1]);
        let pixels = bytes(&self.pixels, &[self.num_pictures, side, side, 3])?
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
    use vlm_demo::{Scene, Split, seeded_rng};

    #[test]
    fn answers_name_the_objects_of_the_scene() {
        let mut rng = seeded_rng(9);
        let scene = Scene::sample(Split::Starting, 1, &mut rng);
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
