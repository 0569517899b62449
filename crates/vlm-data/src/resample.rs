//! Resampling of RGB images of 8 bits, bit for bit as Pillow's `Image.resize`.
//!
//! # Source
//! `src/libImaging/Resample.c` of Pillow 13: each output pixel is the sum of the input pixels under
//! a filter whose width grows with the reduction, with weights in float64 that are normalized and
//! then rounded to 22 bits. One dimension is resampled and rounded to 8 bits, then the other.

use std::borrow::Cow;
use std::f64::consts::PI;
use std::ops::Range;

use crate::weighted_sums::{Block, WEIGHT_BITS, Weights};

const CHANNELS: usize = 3;

/// The filters, by Pillow's names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Filter {
    Nearest,
    Lanczos,
    Bilinear,
    Bicubic,
    Box,
    Hamming,
}

impl Filter {
    /// The filter with Pillow's number; `None` for another number.
    pub(crate) fn from_number(number: u8) -> Option<Self> {
        let filters =
            [Self::Nearest, Self::Lanczos, Self::Bilinear, Self::Bicubic, Self::Box, Self::Hamming];
        filters.get(usize::from(number)).copied()
    }

    /// Half the width of the filter, in output pixels where an image is reduced.
    fn support(self) -> f64 {
        match self {
            Self::Nearest => 0.0,
            Self::Box => 0.5,
            Self::Bilinear | Self::Hamming => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let sinc = |x: f64| if x == 0.0 { 1.0 } else { (x * PI).sin() / (x * PI) };
        let distance = x.abs();
        match self {
            Self::Nearest => 0.0,
            Self::Box => f64::from(x > -0.5 && x <= 0.5),
            Self::Bilinear => (1.0 - distance).max(0.0),
            Self::Hamming if distance == 0.0 => 1.0,
            Self::Hamming if distance >= 1.0 => 0.0,
            Self::Hamming => {
                let angle = distance * PI;
                // Pillow's two factors have the precision of float32.
                let window = f64::from(0.54f32) + f64::from(0.46f32) * angle.cos();
                angle.sin() / angle * window
            }
            Self::Bicubic => {
                const A: f64 = -0.5;
                if distance < 1.0 {
                    ((A + 2.0) * distance - (A + 3.0)) * distance * distance + 1.0
                } else if distance < 2.0 {
                    (((distance - 5.0) * distance + 8.0) * distance - 4.0) * A
                } else {
                    0.0
                }
            }
            Self::Lanczos if (-3.0..3.0).contains(&x) => sinc(x) * sinc(x / 3.0),
            Self::Lanczos => 0.0,
        }
    }
}

/// Some pixels of one dimension of a resampled image: `length` pixels from `start` on, of the
/// `resized` pixels that `source` pixels become.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Part {
    pub(crate) source: usize,
    pub(crate) resized: u64,
    pub(crate) start: u64,
    pub(crate) length: usize,
}

/// The input pixels of one output pixel, from `first` on, and their weights.
struct Window {
    first: usize,
    weights: Vec<i32>,
}

/// The windows of the output pixels of one dimension.
struct Windows {
    /// The input pixels that the windows read.
    input: Range<usize>,
    /// The weights of each window, for the pixels of `input`.
    weights: Vec<Weights>,
}

impl Part {
    fn windows(&self, filter: Filter) -> Windows {
        let scale = self.source as f64 / self.resized as f64;
        let windows: Vec<Window> = if filter == Filter::Nearest {
            // Pillow adds the scale for every pixel.
            let mut place = scale * 0.5;
            (0..self.start).for_each(|_| place += scale);
            let window = |_| {
                let first = (place as usize).min(self.source - 1);
                place += scale;
                Window { first, weights: vec![1 << WEIGHT_BITS] }
            };
            (0..self.length).map(window).collect()
        } else {
            let indices = (self.start..).take(self.length);
            indices.map(|index| self.window(filter, scale, index)).collect()
        };
        let start = windows.iter().map(|window| window.first).min().unwrap_or(0);
        let end = windows.iter().map(|window| window.first + window.weights.len()).max();
        let weights =
            windows.iter().map(|window| Weights::new(window.first - start, &window.weights));
        Windows { input: start..end.unwrap_or(start), weights: weights.collect() }
    }

    fn window(&self, filter: Filter, scale: f64, index: u64) -> Window {
        let width = scale.max(1.0);
        let support = filter.support() * width;
        let centre = (index as f64 + 0.5) * scale;
        let first = (centre - support + 0.5).max(0.0) as usize;
        let end = ((centre + support + 0.5) as usize).min(self.source);
        let inverse = 1.0 / width;
        let place = |x: usize| (x as f64 - centre + 0.5) * inverse;
        let mut weights: Vec<f64> = (first..end).map(|x| filter.weight(place(x))).collect();
        let sum: f64 = weights.iter().sum();
        if sum != 0.0 {
            weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        let rounded = |weight: &f64| {
            let scaled = weight * f64::from(1 << WEIGHT_BITS);
            (scaled + if *weight < 0.0 { -0.5 } else { 0.5 }) as i32
        };
        Window { first, weights: weights.iter().map(rounded).collect() }
    }

    /// Whether the pixels are those of the source.
    fn is_whole_source(&self) -> bool {
        self.resized == self.source as u64 && self.length == self.source
    }
}

/// The part of a resampled image, `[y.length, x.length, 3]`, of `pixels` `[y.source, x.source, 3]`.
/// Every dimension is at least 1.
pub(crate) fn resample(pixels: &[u8], x: Part, y: Part, filter: Filter) -> Vec<u8> {
    let rows = y.windows(filter);
    let row_bytes = x.source * CHANNELS;
    let input = &pixels[rows.input.start * row_bytes..rows.input.end * row_bytes];
    if is_height_first(x, y) {
        let low = resample_height(input, row_bytes, &rows);
        return resample_width(&low, x, filter).into_owned();
    }
    let narrow = resample_width(input, x, filter);
    if y.is_whole_source() {
        return narrow.into_owned();
    }
    resample_height(&narrow, x.length * CHANNELS, &rows)
}

/// Pillow's order of the passes, which determines what is rounded in between: up to version 12 always
/// the width first; since version 13 the height, if it shrinks by more than twice as many pixels as
/// the width. The rule was found by trying Pillow 13.0 with 1,231 images.
fn is_height_first(x: Part, y: Part) -> bool {
    let shrinks_by = |part: Part| part.source as i128 - i128::from(part.resized);
    shrinks_by(y) > 0 && shrinks_by(y) > 2 * shrinks_by(x)
}

/// Rows of `x.length` pixels of the rows of `pixels`.
fn resample_width(pixels: &[u8], x: Part, filter: Filter) -> Cow<'_, [u8]> {
    /// Rows that are resampled together: a column of them is a row of a block.
    const ROWS: usize = Block::WIDTH / CHANNELS;
    if x.is_whole_source() {
        return Cow::Borrowed(pixels);
    }
    let Windows { input, weights } = x.windows(filter);
    let (row_bytes, out_row_bytes) = (x.source * CHANNELS, weights.len() * CHANNELS);
    let mut out = vec![0; pixels.len() / row_bytes * out_row_bytes];
    let mut block = Block::new(input.len());
    let rows = pixels.chunks(ROWS * row_bytes);
    for (rows, out) in rows.zip(out.chunks_mut(ROWS * out_row_bytes)) {
        for (y, row) in rows.chunks_exact(row_bytes).enumerate() {
            let (row, _) = row.as_chunks::<CHANNELS>();
            block.set_column(y * CHANNELS, &row[input.clone()]);
        }
        for (x, weights) in weights.iter().enumerate() {
            let sums = block.sum(weights);
            let (column, _) = sums.as_chunks::<CHANNELS>();
            for (row, pixel) in out.chunks_exact_mut(out_row_bytes).zip(column) {
                row[x * CHANNELS..][..CHANNELS].copy_from_slice(pixel);
            }
        }
    }
    Cow::Owned(out)
}

/// A row of each of the windows of the rows of `pixels`, which are the windows' input.
fn resample_height(pixels: &[u8], row_bytes: usize, windows: &Windows) -> Vec<u8> {
    let mut out = vec![0; windows.weights.len() * row_bytes];
    let mut block = Block::new(windows.input.len());
    for start in (0..row_bytes).step_by(Block::WIDTH) {
        let columns = start..row_bytes.min(start + Block::WIDTH);
        block.set_rows(pixels.chunks_exact(row_bytes).map(|row| &row[columns.clone()]));
        for (weights, row) in windows.weights.iter().zip(out.chunks_exact_mut(row_bytes)) {
            row[columns.clone()].copy_from_slice(&block.sum(weights)[..columns.len()]);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCE: Size = (13, 9);

    type Size = (usize, usize);
    type Sums = (u64, u64);

    /// Size, number of the filter, and `sums`.
    const PILLOW: [(Size, u8, Sums); 24] = [
        ((5, 4), 0, (3302, 105156)),
        ((5, 4), 1, (3232, 97905)),
        ((5, 4), 2, (3205, 96722)),
        ((5, 4), 3, (3219, 97289)),
        ((5, 4), 4, (3234, 96090)),
        ((5, 4), 5, (3214, 96673)),
        ((20, 30), 0, (94615, 85638259)),
        ((20, 30), 1, (103373, 92131830)),
        ((20, 30), 2, (95469, 84636187)),
        ((20, 30), 3, (99391, 88407971)),
        ((20, 30), 4, (94615, 85638259)),
        ((20, 30), 5, (94600, 84555543)),
        ((13, 2), 0, (3810, 161925)),
        ((13, 2), 1, (4154, 161530)),
        ((13, 2), 2, (4153, 161848)),
        ((13, 2), 3, (4156, 161827)),
        ((13, 2), 4, (4132, 161377)),
        ((13, 2), 5, (4191, 163705)),
        ((12, 3), 0, (6096, 320167)),
        ((12, 3), 1, (5806, 313110)),
        ((12, 3), 2, (5792, 311703)),
        ((12, 3), 3, (5784, 311372)),
        ((12, 3), 4, (5795, 312255)),
        ((12, 3), 5, (5806, 313230)),
    ];

    /// Values that jump, so that filters overshoot.
    fn source((width, height): Size) -> Vec<u8> {
        (0..width * height * CHANNELS).map(|i| (i * i * 31 % 251 / 125 * 127) as u8).collect()
    }

    fn whole(source: usize, resized: usize) -> Part {
        Part { source, resized: resized as u64, start: 0, length: resized }
    }

    /// Sum, and sum of the products with the positions from 1, of all bytes.
    fn sums(bytes: &[u8]) -> Sums {
        let weighted = bytes.iter().zip(1..).map(|(&byte, place)| u64::from(byte) * place);
        (bytes.iter().map(|&byte| u64::from(byte)).sum(), weighted.sum())
    }

    #[test]
    fn every_filter_gives_the_bytes_of_pillow() {
        // Image.fromarray(source).resize((width, height), filter) in Pillow 13.0: `sums` of its bytes.
        for ((width, height), number, expected) in PILLOW {
            let (x, y) = (whole(SOURCE.0, width), whole(SOURCE.1, height));
            let ours = resample(&source(SOURCE), x, y, Filter::from_number(number).unwrap());
            assert_eq!(sums(&ours), expected, "{width} × {height}, filter {number}");
        }
    }

    #[test]
    fn the_constants_of_hammings_window_have_the_precision_of_pillow() {
        // With those of float64 a byte of this image is another one.
        let ours = resample(&source((43, 30)), whole(43, 23), whole(30, 10), Filter::Hamming);
        assert_eq!(sums(&ours), (36883, 12745509));
    }

    #[test]
    fn a_part_is_that_of_the_whole_result_in_either_order_of_the_passes() {
        for ((width, height), size) in [((30, 20), (17, 11)), ((20, 90), (15, 30))] {
            let (x, y) = (whole(width, size.0), whole(height, size.1));
            assert_eq!(is_height_first(x, y), height == 90);
            for number in 0..6 {
                let filter = Filter::from_number(number).unwrap();
                let all = resample(&source((width, height)), x, y, filter);
                let (of_x, of_y) =
                    (Part { start: 4, length: 7, ..x }, Part { start: 2, length: 5, ..y });
                let part = resample(&source((width, height)), of_x, of_y, filter);
                let rows = all.chunks_exact(size.0 * CHANNELS).skip(2).take(5);
                let expected: Vec<u8> = rows.flat_map(|row| &row[4 * 3..11 * 3]).copied().collect();
                assert_eq!(part, expected, "filter {number}");
            }
        }
    }
}
