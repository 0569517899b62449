//! Rotary position embedding (Su et al. 2021): each pair of elements is rotated as one complex
//! number.

use tch::{Device, Kind, Tensor};

use vlm_shapes::{RopeScaling, RotaryLayout, Yarn};

/// The rotary angles of every position, as complex numbers.
#[derive(Debug)]
pub struct RotaryAngles {
    /// `[max_positions, head_dim / 2]`, complex64.
    rotations: Tensor,
}

impl RotaryAngles {
    /// The angles `position · theta^(-2i / head_dim)` of `max_positions` positions, in float32,
    /// with their frequencies scaled by `scaling`.
    pub fn new(
        head_dim: i64,
        max_positions: i64,
        theta: f64,
        scaling: &RopeScaling,
        device: Device,
    ) -> Self {
        let even = Tensor::arange_start_step(0, head_dim, 2, (Kind::Float, device));
        let exponents = even / head_dim as f64;
        let wavelengths = Tensor::full([1], theta, (Kind::Float, device)).pow(&exponents);
        let (frequencies, radius) = match scaling {
            RopeScaling::None => (wavelengths.reciprocal(), 1.0),
            RopeScaling::Linear { factor } => (wavelengths.reciprocal() / *factor, 1.0),
            RopeScaling::Llama3 {
                factor,
                low_freq_factor,
                high_freq_factor,
                original_max_position_embeddings,
            } => {
                let bounds = [*low_freq_factor, *high_freq_factor];
                let length = *original_max_position_embeddings;
                (llama3(&wavelengths.reciprocal(), *factor, bounds, length), 1.0)
            }
            RopeScaling::Yarn(yarn) => {
                (yarn_frequencies(&wavelengths, theta, head_dim, yarn), yarn.attention_factor)
            }
        };
        let positions = Tensor::arange(max_positions, (Kind::Float, device));
        let angles = positions.outer(&frequencies);
        Self { rotations: Tensor::polar(&angles.full_like(radius), &angles) }
    }

    /// Number of positions.
    pub fn max_positions(&self) -> i64 {
        self.rotations.size()[0]
    }

    /// The rotations of `len` positions from `start`, `[1, T, 1, head_dim / 2]`, complex64.
    pub fn at(&self, start: i64, len: i64) -> Tensor {
        self.rotations.narrow(0, start, len).unsqueeze(0).unsqueeze(2)
    }

    /// The rotations of positions `[B, T]` (i64), `[B, T, 1, head_dim / 2]`, complex64.
    pub fn at_each(&self, positions_bt: &Tensor) -> Tensor {
        let mut shape = positions_bt.size();
        shape.extend([1, -1]);
        self.rotations.index_select(0, &positions_bt.flatten(0, -1)).view(shape.as_slice())
    }
}

/// LLaMA 3.1's frequencies, with `length` the original length: a frequency is kept if its
/// wavelength is below `length / high`, divided by `factor` if it is above `length / low`, and
/// interpolated in between. In float32 and in the order of operations of transformers'
/// `_compute_llama3_parameters`.
fn llama3(frequencies: &Tensor, factor: f64, [low, high]: [f64; 2], length: f64) -> Tensor {
    let wavelengths = frequencies.reciprocal() * (2.0 * std::f64::consts::PI);
    let is_low = wavelengths.gt(length / low);
    let is_high = wavelengths.lt(length / high);
    let divided = (frequencies / factor).where_self(&is_low, frequencies);
    let smooth = (wavelengths.reciprocal() * length - low) / (high - low);
    let rest: Tensor = 1.0 - &smooth;
    let between: Tensor = rest * &divided / factor + &smooth * &divided;
    between.where_self(&is_low.logical_or(&is_high).logical_not(), &divided)
}

/// YaRN's frequencies (Peng et al. 2023, section 3.2), in float32 and in the order of operations of
/// transformers' `_compute_yarn_parameters`. `wavelengths` are the reciprocals of the unscaled
/// frequencies.
fn yarn_frequencies(wavelengths: &Tensor, theta: f64, head_dim: i64, yarn: &Yarn) -> Tensor {
    let dim = head_dim as f64;
    let place_of = |rotations: f64| {
        let length = yarn.original_max_position_embeddings;
        dim * (length / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * theta.ln())
    };
    let (mut low, mut high) = (place_of(yarn.beta_fast), place_of(yarn.beta_slow));
    if yarn.truncate {
        (low, high) = (low.floor(), high.ceil());
    }
    (low, high) = (low.max(0.0), high.min(dim - 1.0));
    if low == high {
        high += 0.001;
    }
    let places = Tensor::arange(head_dim / 2, (Kind::Float, wavelengths.device()));
    let ramp = ((places - low) / (high - low)).clamp(0.0, 1.0);
    let kept: Tensor = 1.0 - ramp;
    let rest: Tensor = 1.0 - &kept;
    let divided = (wavelengths * yarn.factor).reciprocal();
    divided * rest + wavelengths.reciprocal() * kept
}

/// Rotates each pair of `x` `[B, T, heads, head_dim]` by the angle of its position. `rotations` are
/// those of [`RotaryAngles::at`] or [`RotaryAngles::at_each`]. Computed in float32, returned in the
/// dtype of `x`.
pub fn rotate(x: &Tensor, rotations: &Tensor, layout: RotaryLayout) -> Tensor {
    let (batch, len, heads, head_dim) = x.size4().expect("[B, T, heads, head_dim] by construction");
    let x_f32 = x.to_kind(Kind::Float);
    let split = |shape: [i64; 5]| x_f32.contiguous().view(shape);
    let half = head_dim / 2;
    let turned = match layout {
        RotaryLayout::Interleaved => {
            let pairs = split([batch, len, heads, half, 2]);
            (pairs.view_as_complex() * rotations).view_as_real().flatten(3, 4)
        }
        RotaryLayout::HalfSplit => {
            let pairs = split([batch, len, heads, 2, half]).transpose(3, 4).contiguous();
            let turned = (pairs.view_as_complex() * rotations).view_as_real();
            turned.transpose(3, 4).flatten(3, 4)
        }
    };
    turned.to_kind(x.kind())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_are_rotated_by_position_times_frequency() {
        let angles = RotaryAngles::new(4, 8, 100.0, &RopeScaling::None, Device::Cpu);
        let x = Tensor::from_slice(&[1f32, 0.0, 1.0, 0.0]).view([1, 1, 1, 4]);
        let turned = rotate(&x, &angles.at(3, 1), RotaryLayout::Interleaved);
        // Head width 4 and theta 100 give the frequencies 1 and 0.1; the position is 3.
        let expected = [3f64.cos(), 3f64.sin(), 0.3f64.cos(), 0.3f64.sin()];
        let got = Vec::<f32>::try_from(turned.flatten(0, -1)).unwrap();
        for (g, e) in got.iter().zip(expected) {
            assert!((f64::from(*g) - e).abs() < 1e-6, "{got:?} against {expected:?}");
        }
    }

    #[test]
    fn both_layouts_rotate_the_same_pairs() {
        let angles = RotaryAngles::new(4, 8, 100.0, &RopeScaling::None, Device::Cpu);
        let adjacent = Tensor::from_slice(&[1f32, 2.0, 3.0, 4.0]).view([1, 1, 1, 4]);
        let halves = Tensor::from_slice(&[1f32, 3.0, 2.0, 4.0]).view([1, 1, 1, 4]);
        let numbers = |x: &Tensor, layout| {
            Vec::<f32>::try_from(rotate(x, &angles.at(3, 1), layout).flatten(0, -1)).unwrap()
        };
        let (a, h) = (
            numbers(&adjacent, RotaryLayout::Interleaved),
            numbers(&halves, RotaryLayout::HalfSplit),
        );
        assert_eq!([a[0], a[2], a[1], a[3]], [h[0], h[1], h[2], h[3]]);
    }

    #[test]
    fn dot_products_depend_only_on_the_distance() {
        let angles = RotaryAngles::new(8, 64, 1e6, &RopeScaling::None, Device::Cpu);
        let (q, k) = (
            Tensor::randn([1, 1, 1, 8], (Kind::Float, Device::Cpu)),
            Tensor::ones([1, 1, 1, 8], (Kind::Float, Device::Cpu)),
        );
        let dot = |at_q, at_k| {
            f64::try_from(
                (rotate(&q, &angles.at(at_q, 1), RotaryLayout::HalfSplit)
                    * rotate(&k, &angles.at(at_k, 1), RotaryLayout::HalfSplit))
                .sum(Kind::Double),
            )
            .unwrap()
        };
        assert!((dot(5, 2) - dot(40, 37)).abs() < 1e-4);
    }
}
