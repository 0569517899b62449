//! The layout of an image: the exact position, size, rotation and hue of each object, and the
//! background. A scene has many layouts: different images with the same caption.

use rand::Rng;

use super::scene::{Arrangement, Colour, Object, Place, Relation, Scene, Size};

/// Width and height of an image in pixels.
pub const IMAGE_SIZE: usize = 224;
/// Width and height of a cell in pixels. A cell is a patch of the demo's vision encoder.
pub const CELL: usize = 32;
/// Number of cells in a row and in a column.
pub const GRID: usize = IMAGE_SIZE / CELL;
/// Number of cells in an image.
pub const NUM_CELLS: usize = GRID * GRID;

/// An object with the properties that the caption does not mention.
#[derive(Clone, Copy, Debug)]
pub struct PlacedObject {
    /// Size, colour and shape.
    pub object: Object,
    /// Centre `[x, y]` in pixels, from the top left corner.
    pub center: [f32; 2],
    /// Half of the extent in pixels.
    pub radius: f32,
    /// Rotation in radians.
    pub angle: f32,
    /// Red, green and blue, each from 0 to 255.
    pub rgb: [f32; 3],
}

/// The background of an image. A shade is red, green and blue, each from 0 to 255.
#[derive(Clone, Debug)]
pub enum Background {
    /// A single shade.
    Plain([f32; 3]),
    /// Interpolated between the shades of the four corners: top left, top right, bottom left,
    /// bottom right.
    Gradient([[f32; 3]; 4]),
    /// Bands of two alternating shades; then the direction (a unit vector), the width of a band and
    /// the offset, both in pixels.
    Stripes([[f32; 3]; 2], [f32; 2], f32, f32),
    /// Interpolated between the shades of a 5×5 grid.
    Clouds(Box<[[f32; 3]; 25]>),
}

/// An image before it is drawn.
#[derive(Clone, Debug)]
pub struct Layout {
    /// The objects, in the order of the caption.
    pub objects: Vec<PlacedObject>,
    /// The background.
    pub background: Background,
}

impl Layout {
    /// A random layout of `scene`.
    pub fn of(scene: &Scene, rng: &mut impl Rng) -> Layout {
        let objects = match scene.arrangement {
            Arrangement::One(object, place) => vec![place_one(object, place, rng)],
            Arrangement::Two(first, relation, second) => place_two(first, relation, second, rng),
        };
        Layout { objects, background: Background::sample(rng) }
    }

    /// A random layout with three or four objects, at most one in each quarter of the image. It
    /// belongs to no scene and has no caption, but a vision encoder that is trained on cells learns
    /// more from it.
    pub fn crowded(rng: &mut impl Rng) -> Layout {
        let left_out = rng.random_range(0..8);
        let mut objects = Vec::with_capacity(4);
        for quarter in (0..4).filter(|&quarter| quarter != left_out) {
            let x = if quarter % 2 == 0 { 56.0 } else { 168.0 };
            let y = if quarter / 2 == 0 { 56.0 } else { 168.0 };
            let center = [x + rng.random_range(-12.0..12.0), y + rng.random_range(-12.0..12.0)];
            objects.push(PlacedObject::sample(Object::sample(rng), center, rng));
        }
        Layout { objects, background: Background::sample(rng) }
    }

    /// For each object and cell a bit mask of the cell's 8×8 sample points that the object covers;
    /// the bit of a point is `8 · row + column`.
    pub fn masks(&self) -> Vec<[u64; NUM_CELLS]> {
        const SIDE: usize = 8;
        let step = (CELL / SIDE) as f32;
        let mask_of = |placed: &PlacedObject, cell: usize| {
            let (left, top) = ((cell % GRID * CELL) as f32, (cell / GRID * CELL) as f32);
            let reach = 1.5 * placed.radius + CELL as f32;
            if (placed.center[0] - left).abs().max((placed.center[1] - top).abs()) > reach {
                return 0;
            }
            (0..SIDE * SIDE).fold(0u64, |mask, point| {
                let x = left + ((point % SIDE) as f32 + 0.5) * step;
                let y = top + ((point / SIDE) as f32 + 0.5) * step;
                mask | u64::from(placed.distance(x, y) < 0.0) << point
            })
        };
        let masks = |placed| std::array::from_fn(|cell| mask_of(placed, cell));
        self.objects.iter().map(masks).collect()
    }

    /// For each object the fraction of each cell that it covers, from 0 to 1, in row-major order.
    pub fn coverage(&self) -> Vec<[f32; NUM_CELLS]> {
        let share = |mask: u64| mask.count_ones() as f32 / 64.0;
        self.masks().into_iter().map(|masks| masks.map(share)).collect()
    }
}

impl PlacedObject {
    fn sample(object: Object, center: [f32; 2], rng: &mut impl Rng) -> PlacedObject {
        let radius = match object.size {
            Size::Small => rng.random_range(23.0..27.0),
            Size::Large => rng.random_range(40.0..46.0f32),
        };
        let inside = |at: f32| at.clamp(radius + 1.0, IMAGE_SIZE as f32 - radius - 1.0);
        let (hue, saturation, value) = match object.colour {
            Colour::Red => (0.0, 0.9, 0.85),
            Colour::Orange => (29.0, 0.95, 0.97),
            Colour::Yellow => (55.0, 0.9, 0.97),
            Colour::Green => (125.0, 0.8, 0.65),
            Colour::Cyan => (181.0, 0.8, 0.9),
            Colour::Blue => (224.0, 0.9, 0.85),
            Colour::Purple => (276.0, 0.75, 0.65),
            Colour::Pink => (328.0, 0.5, 0.99),
        };
        PlacedObject {
            object,
            center: center.map(inside),
            radius,
            angle: rng.random_range(-0.15..0.15),
            rgb: hsv_to_rgb(
                hue + rng.random_range(-5.0..5.0),
                saturation + rng.random_range(-0.05..0.05),
                value + rng.random_range(-0.08f32..0.01),
            ),
        }
    }
}

fn place_one(object: Object, place: Place, rng: &mut impl Rng) -> PlacedObject {
    let third = |index: usize| [50.0, 112.0, 174.0][index];
    let (column, row) = (place as usize % 3, place as usize / 3);
    let center =
        [third(column) + rng.random_range(-10.0..10.0), third(row) + rng.random_range(-10.0..10.0)];
    PlacedObject::sample(object, center, rng)
}

fn place_two(
    first: Object,
    relation: Relation,
    second: Object,
    rng: &mut impl Rng,
) -> Vec<PlacedObject> {
    // In the direction of the relation the objects are half an image apart, and in the other
    // direction nearly level, so that only this relation describes them.
    let across = rng.random_range(60.0..164.0f32);
    let mut place = |object: Object, along: f32| {
        let along = along + rng.random_range(-8.0..8.0);
        let across = across + rng.random_range(-16.0..16.0);
        let center = match relation {
            Relation::LeftOf => [along, across],
            Relation::Above => [across, along],
        };
        PlacedObject::sample(object, center, rng)
    };
    vec![place(first, 56.0), place(second, 168.0)]
}

impl Background {
    fn sample(rng: &mut impl Rng) -> Background {
        let base = shade(rng);
        // The shades of a background are similar and nearly grey, so that only objects are
        // colourful.
        let near = |rng: &mut _| nearby(base, rng);
        match rng.random_range(0..4) {
            0 => Background::Plain(base),
            1 => Background::Gradient([base, near(rng), near(rng), near(rng)]),
            2 => {
                let angle = rng.random_range(0.0..std::f32::consts::PI);
                let width = rng.random_range(14.0..48.0);
                Background::Stripes(
                    [base, near(rng)],
                    [angle.cos(), angle.sin()],
                    width,
                    rng.random_range(0.0..96.0),
                )
            }
            _ => {
                let mut lattice = Box::new([base; 25]);
                lattice.iter_mut().for_each(|shade| *shade = near(rng));
                Background::Clouds(lattice)
            }
        }
    }
}

fn shade(rng: &mut impl Rng) -> [f32; 3] {
    hsv_to_rgb(
        rng.random_range(0.0..360.0),
        rng.random_range(0.0..0.12),
        rng.random_range(0.1..0.98),
    )
}

fn nearby(base: [f32; 3], rng: &mut impl Rng) -> [f32; 3] {
    let lighter = rng.random_range(-40.0..40.0f32);
    base.map(|channel| (channel + lighter + rng.random_range(-6.0..6.0)).clamp(0.0, 255.0))
}

/// Converts HSV to RGB: hue in degrees, saturation and value from 0 to 1; channels from 0 to 255.
fn hsv_to_rgb(hue: f32, saturation: f32, value: f32) -> [f32; 3] {
    let (saturation, value) = (saturation.clamp(0.0, 1.0), value.clamp(0.0, 1.0));
    [5.0f32, 3.0, 1.0].map(|offset| {
        let k = (offset + hue.rem_euclid(360.0) / 60.0) % 6.0;
        255.0 * (value - value * saturation * k.min(4.0 - k).clamp(0.0, 1.0))
    })
}

#[cfg(test)]
mod tests {
    use super::super::{Split, seeded_rng};
    use super::*;

    #[test]
    fn objects_are_inside_the_image_and_do_not_overlap() {
        let mut rng = seeded_rng(3);
        for num_objects in [1, 2] {
            for _ in 0..500 {
                let scene = Split::Starting.sample(num_objects, &mut rng);
                let layout = Layout::of(&scene, &mut rng);
                assert_eq!(layout.objects.len(), num_objects);
                for placed in &layout.objects {
                    for at in placed.center {
                        assert!(
                            at - placed.radius >= 0.0 && at + placed.radius <= IMAGE_SIZE as f32
                        );
                    }
                }
                if let [a, b] = &layout.objects[..] {
                    let distance = (a.center[0] - b.center[0]).hypot(a.center[1] - b.center[1]);
                    assert!(distance > a.radius + b.radius, "{a:?} {b:?}");
                }
            }
        }
    }

    #[test]
    fn primary_hues_convert_exactly() {
        assert_eq!(hsv_to_rgb(0.0, 1.0, 1.0), [255.0, 0.0, 0.0]);
        assert_eq!(hsv_to_rgb(120.0, 1.0, 1.0), [0.0, 255.0, 0.0]);
        assert_eq!(hsv_to_rgb(240.0, 1.0, 0.5), [0.0, 0.0, 127.5]);
        assert_eq!(hsv_to_rgb(60.0, 0.0, 1.0), [255.0, 255.0, 255.0]);
    }

    #[test]
    fn every_object_covers_part_of_a_cell() {
        let mut rng = seeded_rng(4);
        for _ in 0..300 {
            let layout = Layout::crowded(&mut rng);
            for shares in layout.coverage() {
                assert!(shares.iter().cloned().fold(0.0, f32::max) > 0.2);
            }
        }
    }
}
