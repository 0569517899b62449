//! Draws a layout: shapes from signed distances, with edges smoothed over one pixel, on a
//! background.

use super::layout::{Background, IMAGE_SIZE, Layout, PlacedObject};
use super::scene::Shape;

impl Layout {
    /// The pixels of the image, `[224, 224, 3]` (height, width, RGB).
    pub fn draw(&self) -> Vec<u8> {
        let mut pixels = self.background.paint();
        for placed in &self.objects {
            placed.paint(&mut pixels);
        }
        pixels
    }
}

impl PlacedObject {
    fn paint(&self, pixels: &mut [u8]) {
        let first = |center: f32| (center - self.radius - 2.0).max(0.0) as usize;
        let past = |center: f32| ((center + self.radius + 3.0) as usize).min(IMAGE_SIZE);
        for y in first(self.center[1])..past(self.center[1]) {
            for x in first(self.center[0])..past(self.center[0]) {
                // The covered fraction of a pixel falls from 1 to 0 as the outline passes over its
                // centre within the width of one pixel.
                let covered = (0.5 - self.distance(x as f32 + 0.5, y as f32 + 0.5)).clamp(0.0, 1.0);
                if covered > 0.0 {
                    let pixel = &mut pixels[(y * IMAGE_SIZE + x) * 3..][..3];
                    for (channel, colour) in pixel.iter_mut().zip(self.rgb) {
                        *channel = (f32::from(*channel) + covered * (colour - f32::from(*channel)))
                            .round() as u8;
                    }
                }
            }
        }
    }

    /// Signed distance of a point of the image from the outline, in pixels; negative inside.
    pub(super) fn distance(&self, x: f32, y: f32) -> f32 {
        let (dx, dy) = ((x - self.center[0]) / self.radius, (y - self.center[1]) / self.radius);
        let reach = dx.abs().max(dy.abs());
        if reach > 1.3 {
            return (reach - 1.0) * self.radius;
        }
        let (sin, cos) = self.angle.sin_cos();
        unit_distance(self.object.shape, cos * dx + sin * dy, cos * dy - sin * dx) * self.radius
    }
}

/// Signed distance to a shape of extent 1 around the origin, with y pointing down. It is exact only
/// near the outline, which is enough for drawing.
fn unit_distance(shape: Shape, x: f32, y: f32) -> f32 {
    match shape {
        Shape::Circle => x.hypot(y) - 0.98,
        Shape::Square => x.abs().max(y.abs()) - 0.84,
        Shape::Triangle => {
            // The half planes of an upright triangle with base at 0.75 and tip at -0.95.
            let (run, rise) = (0.98f32, 1.7f32);
            let side = (x.abs() * rise - (y + 0.95) * run) / run.hypot(rise);
            side.max(y - 0.75)
        }
        Shape::Star => star_distance(x, y),
        Shape::Cross => {
            let (x, y) = (x.abs(), y.abs());
            (x - 0.95).max(y - 0.3).min((x - 0.3).max(y - 0.95))
        }
        Shape::Ring => (x.hypot(y) - 0.74).abs() - 0.24,
    }
}

/// Signed distance to a star with five points. The plane is folded onto one half of a point, where
/// the outline is a single line.
fn star_distance(x: f32, y: f32) -> f32 {
    use std::f32::consts::PI;
    const OUTER: f32 = 1.0;
    const INNER: f32 = 0.44;
    let sector = 2.0 * PI / 5.0;
    let from_tip = (x.atan2(-y) + PI / 5.0).rem_euclid(sector) - PI / 5.0;
    let radius = x.hypot(y);
    let (px, py) = (radius * from_tip.abs().sin(), radius * from_tip.cos());
    let (ex, ey) = (INNER * (PI / 5.0).sin(), INNER * (PI / 5.0).cos() - OUTER);
    (px * -ey - (OUTER - py) * ex) / ex.hypot(ey)
}

impl Background {
    fn paint(&self) -> Vec<u8> {
        let mut pixels = vec![0u8; IMAGE_SIZE * IMAGE_SIZE * 3];
        match self {
            Background::Plain(shade) => {
                let shade = shade.map(|channel| channel.round() as u8);
                pixels.chunks_exact_mut(3).for_each(|pixel| pixel.copy_from_slice(&shade));
            }
            Background::Gradient(corners) => blend(corners, 2, &mut pixels),
            Background::Clouds(lattice) => blend(&lattice[..], 5, &mut pixels),
            Background::Stripes(shades, direction, width, offset) => {
                for (index, pixel) in pixels.chunks_exact_mut(3).enumerate() {
                    let (x, y) = ((index % IMAGE_SIZE) as f32, (index / IMAGE_SIZE) as f32);
                    let along =
                        (x * direction[0] + y * direction[1] + offset).rem_euclid(2.0 * width);
                    // 0 in the first band, 1 in the second, with a ramp of one pixel between them.
                    let second = (along - width + 0.5).clamp(0.0, 1.0)
                        - (along - 2.0 * width + 0.5).clamp(0.0, 1.0);
                    for (channel, (a, b)) in
                        pixel.iter_mut().zip(shades[0].into_iter().zip(shades[1]))
                    {
                        *channel = (a + second * (b - a)).round() as u8;
                    }
                }
            }
        }
        pixels
    }
}

/// Bilinear interpolation between `side × side` shades on a regular grid over the image.
fn blend(lattice: &[[f32; 3]], side: usize, pixels: &mut [u8]) {
    let scale = (side - 1) as f32 / (IMAGE_SIZE - 1) as f32;
    let at = |pixel: usize| {
        let position = pixel as f32 * scale;
        let low = (position as usize).min(side - 2);
        (low, position - low as f32)
    };
    for (y, row) in pixels.chunks_exact_mut(IMAGE_SIZE * 3).enumerate() {
        let (top, down) = at(y);
        let between = |column: usize| {
            let (upper, lower) = (lattice[top * side + column], lattice[(top + 1) * side + column]);
            std::array::from_fn::<f32, 3, _>(|channel| {
                upper[channel] + down * (lower[channel] - upper[channel])
            })
        };
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let (left, across) = at(x);
            let (a, b) = (between(left), between(left + 1));
            for (channel, value) in pixel.iter_mut().enumerate() {
                *value = (a[channel] + across * (b[channel] - a[channel])).round() as u8;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::scene::{Colour, Object, Size};
    use super::super::{Split, seeded_rng};
    use super::*;

    #[test]
    fn same_seed_gives_the_same_image() {
        let draw = |seed| {
            let mut rng = seeded_rng(seed);
            Layout::of(&Split::Starting.sample(2, &mut rng), &mut rng).draw()
        };
        assert_eq!(draw(5), draw(5));
        assert_ne!(draw(5), draw(6));
    }

    #[test]
    fn drawn_area_of_every_shape_matches_its_geometry() {
        let share = |shape| {
            let object = Object { size: Size::Large, colour: Colour::Red, shape };
            let placed = PlacedObject {
                object,
                center: [112.0; 2],
                radius: 45.0,
                angle: 0.1,
                rgb: [255.0; 3],
            };
            let layout = Layout { objects: vec![placed], background: Background::Plain([0.0; 3]) };
            let lit: f32 = layout.draw().iter().map(|&channel| f32::from(channel) / 255.0).sum();
            lit / 3.0 / (45.0 * 45.0)
        };
        let near = |shape, expected: f32| {
            let found = share(shape);
            assert!((found - expected).abs() < 0.03, "{shape:?}: {found}, expected {expected}");
        };
        near(Shape::Circle, std::f32::consts::PI * 0.98 * 0.98);
        near(Shape::Square, 4.0 * 0.84 * 0.84);
        near(Shape::Triangle, 0.98 * 1.7);
        near(Shape::Cross, 2.0 * 1.9 * 0.6 - 0.36);
        near(Shape::Ring, std::f32::consts::PI * (0.98f32.powi(2) - 0.5f32.powi(2)));
        near(Shape::Star, 5.0 * 0.44 * (std::f32::consts::PI / 5.0).sin());
    }
}
