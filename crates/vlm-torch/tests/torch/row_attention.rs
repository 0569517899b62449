//! Attention within rows equals its definition, written with tch's operations in float64, in values
//! and gradients.
//!
//! Dimensions: N tokens of all rows · P tokens of the prefix · D head width

use tch::{Device, IndexOp, Kind, Tensor};
use vlm_torch::{RowAttention, RowPrefix, RowRotary, has_row_attention, row_attention};

use crate::random;

/// Relative to the largest value, against float64: sums of up to 150 products in float32.
const TOLERANCE: f64 = 2e-6;

/// Inputs of a case, as leaves.
struct Case {
    q: Tensor,
    k: Tensor,
    v: Tensor,
    prefix: Option<[Tensor; 2]>,
    starts: Vec<i64>,
    tokens: Option<Vec<i64>>,
    is_rotated: bool,
    is_interleaved: bool,
    is_causal: bool,
}

impl Case {
    /// Rows with these lengths, with two key/value heads, and a prefix of `prefix` tokens.
    fn new(lengths: &[i64], group: i64, head_dim: i64, prefix: i64) -> Self {
        let mut starts = vec![0];
        for length in lengths {
            starts.push(starts[starts.len() - 1] + length);
        }
        let tokens = starts[starts.len() - 1];
        let leaf = |size: [i64; 3]| random(&size).set_requires_grad(true);
        Self {
            q: leaf([tokens, 2 * group, head_dim]),
            k: leaf([tokens, 2, head_dim]),
            v: leaf([tokens, 2, head_dim]),
            prefix: (prefix > 0).then(|| [(); 2].map(|()| leaf([prefix, 2, head_dim]))),
            starts,
            tokens: None,
            is_rotated: true,
            is_interleaved: true,
            is_causal: true,
        }
    }

    /// With the queries of these tokens alone.
    fn at(mut self, tokens: &[i64]) -> Self {
        let picked = self.q.detach().index_select(0, &Tensor::from_slice(tokens));
        self.q = picked.set_requires_grad(true);
        self.tokens = Some(tokens.to_vec());
        self
    }

    fn leaves(&self) -> Vec<&Tensor> {
        let own = [&self.q, &self.k, &self.v];
        own.into_iter().chain(self.prefix.iter().flatten()).collect()
    }

    /// Angles of `count` positions from `start`, complex64 `[count, D / 2]`.
    fn angles(&self, start: i64, count: i64) -> Tensor {
        let half = self.k.size()[2] / 2;
        let positions = Tensor::arange_start(start, start + count, (Kind::Float, Device::Cpu));
        let frequencies = (Tensor::arange(half, (Kind::Float, Device::Cpu)) * -0.3).exp();
        let angles = positions.outer(&frequencies);
        Tensor::polar(&angles.ones_like(), &angles)
    }

    /// The angle of each token: its position in its row, after the prefix.
    fn token_angles(&self) -> Tensor {
        let first = self.prefix.as_ref().map_or(0, |[k, _]| k.size()[0]);
        let of_rows: Vec<Tensor> =
            self.starts.windows(2).map(|row| self.angles(first, row[1] - row[0])).collect();
        Tensor::cat(&of_rows, 0)
    }

    fn ours(&self) -> Tensor {
        let rotations = self.token_angles();
        let prefix_rotations = self.prefix.as_ref().map(|[k, _]| self.angles(0, k.size()[0]));
        let tokens = self.tokens.as_ref().map(|tokens| Tensor::from_slice(tokens));
        row_attention(&RowAttention {
            q: &self.q,
            k: &self.k,
            v: &self.v,
            starts: &self.starts,
            tokens: tokens.as_ref(),
            prefix: self.prefix.as_ref().map(|[k, v]| RowPrefix {
                k,
                v,
                rotations: prefix_rotations.as_ref().filter(|_| self.is_rotated),
            }),
            rotary: self.is_rotated.then_some(RowRotary {
                rotations: &rotations,
                is_interleaved: self.is_interleaved,
            }),
            is_causal: self.is_causal,
        })
        .unwrap()
    }

    /// `x` `[T, heads, D]` (f64) rotated by `angles` `[T, D / 2]`.
    fn rotated(&self, x: &Tensor, angles: &Tensor) -> Tensor {
        if !self.is_rotated {
            return x.shallow_clone();
        }
        let half = x.size()[2] / 2;
        let angles = angles.to_kind(Kind::ComplexDouble).unsqueeze(1);
        let (cosine, sine) = (angles.real(), angles.imag());
        let (first, second) = match self.is_interleaved {
            true => (x.slice(2, 0, None, 2), x.slice(2, 1, None, 2)),
            false => (x.narrow(2, 0, half), x.narrow(2, half, half)),
        };
        let turned = [&first * &cosine - &second * &sine, &first * &sine + &second * &cosine];
        match self.is_interleaved {
            true => Tensor::stack(&turned, 3).flatten(2, 3),
            false => Tensor::cat(&turned, 2),
        }
    }

    /// The definition, one row and head at a time, in float64.
    fn expected(&self) -> Tensor {
        let double = |x: &Tensor| x.to_kind(Kind::Double);
        let (q, k, v) = (double(&self.q), double(&self.k), double(&self.v));
        let angles = self.token_angles();
        let tokens = match &self.tokens {
            Some(tokens) => tokens.clone(),
            None => (0..q.size()[0]).collect(),
        };
        let group = q.size()[1] / 2;
        let scale = 1.0 / (q.size()[2] as f64).sqrt();
        let attend = |(index, &token): (usize, &i64)| {
            let row = self.starts.iter().rposition(|&start| start <= token).unwrap();
            let (start, end) = (self.starts[row], self.starts[row + 1]);
            let seen = if self.is_causal { token + 1 } else { end } - start;
            let mut keys = self.rotated(&k, &angles).narrow(0, start, seen);
            let mut values = v.narrow(0, start, seen);
            if let Some([prefix_k, prefix_v]) = &self.prefix {
                let turned = self.rotated(&double(prefix_k), &self.angles(0, prefix_k.size()[0]));
                keys = Tensor::cat(&[turned, keys], 0);
                values = Tensor::cat(&[double(prefix_v), values], 0);
            }
            let query = self.rotated(&q.i(index as i64).unsqueeze(0), &angles.narrow(0, token, 1));
            let heads: Vec<Tensor> = (0..q.size()[1])
                .map(|head| {
                    let scores = keys.select(1, head / group).mv(&query.i((0, head))) * scale;
                    values.select(1, head / group).tr().mv(&scores.softmax(0, Kind::Double))
                })
                .collect();
            Tensor::stack(&heads, 0)
        };
        let rows: Vec<Tensor> = tokens.iter().enumerate().map(attend).collect();
        Tensor::stack(&rows, 0)
    }

    fn gradients(&self, output: &Tensor, direction: &Tensor) -> Vec<Tensor> {
        let loss = (output * direction).sum(output.kind());
        Tensor::run_backward(&[loss], &self.leaves(), false, false)
    }

    fn check(&self, name: &str) {
        let (ours, expected) = (self.ours(), self.expected());
        let direction = random(&ours.size());
        let largest = |x: &Tensor| f64::try_from(x.abs().max()).unwrap();
        let check = |part: usize, ours: &Tensor, expected: &Tensor| {
            let difference = largest(&(ours.to_kind(Kind::Double) - expected));
            let scale = largest(expected).max(1.0);
            assert!(difference <= TOLERANCE * scale, "{name}, part {part}: {difference:e}");
        };
        check(0, &ours.detach(), &expected.detach());
        let of_ours = self.gradients(&ours, &direction);
        let of_expected = self.gradients(&expected, &direction.to_kind(Kind::Double));
        for (part, (ours, expected)) in of_ours.iter().zip(&of_expected).enumerate() {
            check(part + 1, ours, &expected.to_kind(Kind::Double));
        }
    }
}

/// Tests end early on a CPU without AVX-512 and AVX2, where the model uses libtorch's attention.
fn is_available() -> bool {
    has_row_attention(32)
}

#[test]
fn attention_within_rows_equals_its_definition() {
    if !is_available() {
        return;
    }
    tch::manual_seed(11);
    // Around the sizes of vectors, tiles (6) and blocks of queries (48).
    let lengths = [1, 47, 17, 64, 5];
    Case::new(&lengths, 2, 32, 0).check("causal");
    Case::new(&lengths, 1, 64, 9).check("after a prefix");
    Case::new(&[31, 16], 3, 16, 20).check("narrow heads");
    Case::new(&[50], 1, 96, 0).check("wide heads");
    let halves = Case { is_interleaved: false, ..Case::new(&[20, 33], 2, 64, 8) };
    halves.check("pairs half a head apart");
    let odd = Case { is_interleaved: false, ..Case::new(&[20], 2, 48, 0) };
    odd.check("half a head that is no multiple of a vector");
    let all = Case { is_causal: false, is_rotated: false, ..Case::new(&[50, 50], 1, 64, 0) };
    all.check("not causal, without rotation");
}

#[test]
fn queries_of_some_tokens_give_the_outputs_of_these() {
    if !is_available() {
        return;
    }
    tch::manual_seed(12);
    // The second row has no query.
    let tokens = [3, 4, 5, 9, 12, 60, 61, 62, 63, 64, 65, 66, 99];
    Case::new(&[13, 40, 47], 2, 32, 9).at(&tokens).check("some tokens");
}

#[test]
fn a_row_depends_neither_on_other_rows_nor_on_threads() {
    if !is_available() {
        return;
    }
    let case = Case::new(&[60, 33, 70], 2, 32, 0);
    let of_row = |row: usize| {
        let (start, len) = (case.starts[row], case.starts[row + 1] - case.starts[row]);
        let part = |x: &Tensor| x.detach().narrow(0, start, len).set_requires_grad(true);
        let alone = Case::new(&[len], 2, 32, 0);
        (start, len, Case { q: part(&case.q), k: part(&case.k), v: part(&case.v), ..alone })
    };
    let threads = tch::get_num_threads();
    let direction = random(&case.q.size());
    let (output, gradients) = (case.ours(), case.gradients(&case.ours(), &direction));
    tch::set_num_threads(1);
    for row in 0..3 {
        let (start, len, alone) = of_row(row);
        let found = alone.ours();
        assert_eq!(found, output.narrow(0, start, len));
        let found = alone.gradients(&found, &direction.narrow(0, start, len));
        for (ours, all) in found.iter().zip(&gradients) {
            assert_eq!(ours, &all.narrow(0, start, len));
        }
    }
    tch::set_num_threads(threads);
}

/// A computation in bfloat16 is one in float32 whose results are rounded once.
#[test]
fn sixteen_bits_are_float32_with_rounded_results() {
    if !is_available() {
        return;
    }
    tch::manual_seed(13);
    for is_interleaved in [true, false] {
        let case = Case { is_interleaved, ..Case::new(&[60, 33, 7], 2, 32, 9) };
        let direction = random(&case.q.size()).to_kind(Kind::BFloat16);
        let [wide, narrow] = [Kind::Float, Kind::BFloat16].map(|kind| {
            let leaf = |x: &Tensor| {
                x.detach().to_kind(Kind::BFloat16).to_kind(kind).set_requires_grad(true)
            };
            let case = Case {
                q: leaf(&case.q),
                k: leaf(&case.k),
                v: leaf(&case.v),
                prefix: case.prefix.as_ref().map(|[k, v]| [leaf(k), leaf(v)]),
                starts: case.starts.clone(),
                tokens: None,
                ..case
            };
            let output = case.ours();
            assert_eq!(output.kind(), kind);
            let mut all = case.gradients(&output, &direction.to_kind(kind));
            all.push(output.detach());
            all
        });
        for (wide, narrow) in wide.iter().zip(&narrow) {
            assert_eq!(&wide.to_kind(Kind::BFloat16), narrow);
        }
    }
}

#[test]
fn undefined_values_reach_the_outputs_of_their_row_and_no_other() {
    if !is_available() {
        return;
    }
    let case = Case::new(&[30, 30], 1, 32, 0);
    let k = case.k.detach();
    let _ = k.i((10, 0)).fill_(f64::NAN);
    let is_nan = Case { k, ..case }.ours().isnan();
    let tokens = |from: i64, count: i64, head: i64| is_nan.narrow(0, from, count).select(1, head);
    assert!(bool::try_from(tokens(10, 20, 0).all()).unwrap());
    for other in [tokens(0, 10, 0), tokens(30, 30, 0), tokens(0, 60, 1)] {
        assert!(!bool::try_from(other.any()).unwrap());
    }
}

#[test]
fn wrong_inputs_are_an_error() {
    if !is_available() {
        return;
    }
    let case = Case::new(&[4, 4], 1, 32, 0);
    let attend = |q: &Tensor, starts: &[i64], tokens: Option<&[i64]>| {
        let tokens = tokens.map(Tensor::from_slice);
        let (k, v) = (&case.k, &case.v);
        let rotary = None;
        let input = RowAttention {
            q,
            k,
            v,
            starts,
            tokens: tokens.as_ref(),
            prefix: None,
            rotary,
            is_causal: true,
        };
        row_attention(&input).map(|_| ()).map_err(|error| error.to_string())
    };
    assert_eq!(attend(&case.q, &[0, 4, 8], None), Ok(()));
    let two = case.q.narrow(0, 0, 2);
    for (q, starts, tokens) in [
        (&case.q, [0, 4, 9], None),
        (&case.q, [0, 9, 8], None),
        (&case.q, [1, 4, 8], None),
        (&two, [0, 4, 8], None),
        (&two, [0, 4, 8], Some(&[5i64, 3][..])),
        (&two, [0, 4, 8], Some(&[5, 8])),
        (&two, [0, 4, 8], Some(&[-1, 3])),
        (&case.q.to_kind(Kind::Double), [0, 4, 8], None),
    ] {
        assert!(attend(q, &starts, tokens).is_err(), "{starts:?} {tokens:?}");
    }
}
