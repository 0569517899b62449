//! Divides the optimizer among the ranks (ZeRO stage 1, Rajbhandari et al. 2020): each rank receives
//! the sum of the gradients of its part of the weights, updates this part, and sends it to the others.
//! Each rank then needs the optimizer's state of its part only.

use std::ops::Range;

use serde_json::{Map, Value};
use tch::{Kind, Tensor};
use vlm_torch::ProcessGroup;

use super::world::World;
use crate::TrainError;

/// Largest number of elements that a rank exchanges at a time: 16 MiB of float32.
const MAX_SEGMENT: i64 = 4 << 20;
/// The tensors start at multiples of this number of elements, so that they are aligned in memory.
const ALIGNMENT: i64 = 16;

/// The next multiple of [`ALIGNMENT`].
fn aligned(elements: i64) -> i64 {
    (elements + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT
}

/// The position of a trained tensor in the flat buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    name: String,
    shape: Vec<i64>,
    elements: Range<i64>,
}

/// A part of a trained tensor that a rank updates.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Index of the tensor.
    pub tensor: usize,
    /// The elements of the flattened tensor.
    pub elements: Range<i64>,
    /// The first of them in the flat buffer of all weights.
    in_weights: i64,
    /// The first of them in the rank's buffer of gradients.
    in_shard: i64,
}

/// How the trained tensors are divided: they form one flat buffer, which consists of buckets, each
/// of which consists of a segment for every rank.
#[derive(Debug)]
struct Layout {
    places: Vec<Place>,
    world_size: i64,
    segment: i64,
    num_buckets: i64,
}

impl Layout {
    fn new(tensors: impl IntoIterator<Item = (String, Vec<i64>)>, world_size: i64) -> Self {
        let mut end = 0;
        let place = |(name, shape): (String, Vec<i64>)| {
            let elements = end..end + shape.iter().product::<i64>();
            end = aligned(elements.end);
            Place { name, shape, elements }
        };
        let places: Vec<Place> = tensors.into_iter().map(place).collect();
        let segment = aligned(end / world_size + 1).min(MAX_SEGMENT);
        let num_buckets = (end + world_size * segment - 1) / (world_size * segment);
        Self { places, world_size, segment, num_buckets }
    }

    fn num_elements(&self) -> i64 {
        self.num_buckets * self.world_size * self.segment
    }

    fn num_in_shard(&self) -> i64 {
        self.num_buckets * self.segment
    }

    /// The flat range of a bucket.
    fn bucket(&self, index: i64) -> Range<i64> {
        let len = self.world_size * self.segment;
        index * len..(index + 1) * len
    }

    /// The flat range of a rank's segment of a bucket.
    fn segment(&self, bucket: i64, rank: i64) -> Range<i64> {
        let start = self.bucket(bucket).start + rank * self.segment;
        start..start + self.segment
    }

    /// The parts of tensors that lie in a flat range: index of the tensor, and the flat range.
    fn within(&self, range: &Range<i64>) -> Vec<(usize, Range<i64>)> {
        let part = |(index, place): (usize, &Place)| {
            let both = place.elements.start.max(range.start)..place.elements.end.min(range.end);
            (!both.is_empty()).then_some((index, both))
        };
        self.places.iter().enumerate().filter_map(part).collect()
    }

    fn pieces_of(&self, rank: i64) -> Vec<Piece> {
        let of_bucket = |bucket: i64| {
            let segment = self.segment(bucket, rank);
            let piece = move |(tensor, flat): (usize, Range<i64>)| {
                let first = self.places[tensor].elements.start;
                Piece {
                    tensor,
                    elements: flat.start - first..flat.end - first,
                    in_weights: flat.start,
                    in_shard: bucket * self.segment + flat.start - segment.start,
                }
            };
            self.within(&self.segment(bucket, rank)).into_iter().map(piece).collect::<Vec<_>>()
        };
        (0..self.num_buckets).flat_map(of_bucket).collect()
    }
}

/// The weights of all trained tensors, and the gradients of this rank's part of them.
#[derive(Debug)]
pub struct Shards<'a> {
    world: &'a World,
    group: &'a ProcessGroup,
    layout: Layout,
    params: Vec<Tensor>,
    /// The weights; the trained tensors are views of it.
    weights: Tensor,
    /// The sum of the gradients of this rank's pieces over all ranks.
    gradients: Tensor,
}

fn narrow(tensor: &Tensor, range: &Range<i64>) -> Tensor {
    tensor.narrow(0, range.start, range.end - range.start)
}

impl<'a> Shards<'a> {
    /// Moves the trained tensors to a common buffer. `None` for a single process without a group.
    ///
    /// # Errors
    /// A tensor that is not float32.
    pub fn new(world: &'a World, params: &[(String, Tensor)]) -> Result<Option<Self>, TrainError> {
        let Some(group) = world.group() else { return Ok(None) };
        if let Some((name, tensor)) = params.iter().find(|(_, t)| t.kind() != Kind::Float) {
            return Err(TrainError::Failed(format!(
                "`shard_optimizer`: {name} is {:?}; expected float32",
                tensor.kind()
            )));
        }
        let shapes = params.iter().map(|(name, tensor)| (name.clone(), tensor.size()));
        let layout = Layout::new(shapes, world.world_size() as i64);
        let device = params.first().map_or(tch::Device::Cpu, |(_, tensor)| tensor.device());
        let weights = Tensor::zeros([layout.num_elements()], (Kind::Float, device));
        for ((_, param), place) in params.iter().zip(&layout.places) {
            let mut view = narrow(&weights, &place.elements).view(&place.shape[..]);
            view.copy_(&param.detach());
            param.shallow_clone().set_data(&view);
        }
        Ok(Some(Self {
            world,
            group,
            params: params.iter().map(|(_, tensor)| tensor.shallow_clone()).collect(),
            gradients: Tensor::zeros([layout.num_in_shard()], (Kind::Float, device)),
            weights,
            layout,
        }))
    }

    /// The parts of the trained tensors that this rank updates, each with its weights and its
    /// gradients, which are views of the common buffers.
    pub fn pieces(&self) -> Vec<(Piece, Tensor, Tensor)> {
        let views = |piece: Piece| {
            let len = piece.elements.end - piece.elements.start;
            let weights = self.weights.narrow(0, piece.in_weights, len);
            let gradients = self.gradients.narrow(0, piece.in_shard, len);
            (piece, weights, gradients)
        };
        self.layout.pieces_of(self.world.rank() as i64).into_iter().map(views).collect()
    }

    /// Sums the gradients over the ranks, multiplied by `factor`, and resets those of the trained
    /// tensors. Returns for each tensor whether any rank has a gradient of it. Collective.
    ///
    /// # Errors
    /// See [`World`].
    pub fn reduce(&self, factor: f64) -> Result<Vec<bool>, TrainError> {
        let context = |error| self.world.with_rank_context(error);
        let gradients: Vec<Option<Tensor>> = self
            .params
            .iter()
            .map(|param| Some(param.grad()).filter(Tensor::defined).map(|g| g.reshape([-1])))
            .collect();
        let own: Vec<i64> = gradients.iter().map(|g| i64::from(g.is_some())).collect();
        let mut num_ranks = Tensor::from_slice(&own);
        self.group.all_reduce_sum(&mut num_ranks).map_err(context)?;
        let is_used = Vec::<i64>::try_from(num_ranks).map_err(vlm_model::ModelError::from)?;

        let layout = &self.layout;
        for bucket in 0..layout.num_buckets {
            let range = layout.bucket(bucket);
            let input = narrow(&self.weights, &range).zeros_like();
            for (tensor, flat) in layout.within(&range) {
                let Some(gradient) = &gradients[tensor] else { continue };
                let first = layout.places[tensor].elements.start;
                let mut to = narrow(&input, &(flat.start - range.start..flat.end - range.start));
                to.copy_(&narrow(gradient, &(flat.start - first..flat.end - first)));
            }
            let at = bucket * layout.segment;
            let output = narrow(&self.gradients, &(at..at + layout.segment));
            self.group.reduce_scatter_sum(&input, &output).map_err(context)?;
        }
        vlm_torch::set_grad_none(&self.params)?;
        if factor != 1.0 {
            _ = self.gradients.shallow_clone().g_mul_scalar_(factor);
        }
        Ok(is_used.into_iter().map(|ranks| ranks > 0).collect())
    }

    /// The norm of all gradients, a scalar on their device, which is the same on all ranks. The
    /// gradients are then clipped to `max_norm`. Collective, after [`Self::reduce`].
    ///
    /// # Errors
    /// See [`World`].
    pub fn clip_grad_norm(&self, max_norm: f64) -> Result<Tensor, TrainError> {
        let mut squares = self.gradients.norm().square();
        self.group.all_reduce_sum(&mut squares).map_err(|e| self.world.with_rank_context(e))?;
        let norm = squares.sqrt();
        if max_norm.is_finite() {
            let factor = ((&norm + 1e-6).reciprocal() * max_norm).clamp_max(1.0);
            _ = self.gradients.shallow_clone().g_mul_(&factor);
        }
        Ok(norm)
    }

    /// Sends the weights that this rank has updated to the others. Collective.
    ///
    /// # Errors
    /// See [`World`].
    pub fn share(&self) -> Result<(), TrainError> {
        for bucket in 0..self.layout.num_buckets {
            let own = self.layout.segment(bucket, self.world.rank() as i64);
            let own = narrow(&self.weights, &own).copy();
            let all = narrow(&self.weights, &self.layout.bucket(bucket));
            let shared = self.group.all_gather_into(&own, &all);
            shared.map_err(|e| self.world.with_rank_context(e))?;
        }
        Ok(())
    }

    /// The values of all tensors, from those of the pieces of every rank, as tensors on the CPU by
    /// name; on rank 0 only. `pieces` are the values of this rank's pieces, in their order.
    /// Collective.
    ///
    /// # Errors
    /// See [`World`].
    pub fn gather(&self, pieces: &[Tensor]) -> Result<Vec<(String, Tensor)>, TrainError> {
        let layout = &self.layout;
        let own = Tensor::zeros([layout.num_in_shard()], (Kind::Float, tch::Device::Cpu));
        for (piece, values) in layout.pieces_of(self.world.rank() as i64).iter().zip(pieces) {
            own.narrow(0, piece.in_shard, values.size()[0]).copy_(values);
        }
        let all = self.group.all_gather(&own).map_err(|e| self.world.with_rank_context(e))?;
        if !self.world.is_first_rank() {
            return Ok(Vec::new());
        }
        let whole = |place: &Place| {
            Tensor::zeros(
                [place.elements.end - place.elements.start],
                (Kind::Float, tch::Device::Cpu),
            )
        };
        let wholes: Vec<Tensor> = layout.places.iter().map(whole).collect();
        for (rank, shard) in all.iter().enumerate() {
            for piece in layout.pieces_of(rank as i64) {
                let len = piece.elements.end - piece.elements.start;
                let mut to = narrow(&wholes[piece.tensor], &piece.elements);
                to.copy_(&shard.narrow(0, piece.in_shard, len));
            }
        }
        let named =
            |(place, values): (&Place, Tensor)| (place.name.clone(), values.view(&place.shape[..]));
        Ok(layout.places.iter().zip(wholes).map(named).collect())
    }

    /// The cost of the communication, for `summary.json`.
    pub fn statistics(&self) -> Map<String, Value> {
        let elements = |place: &Place| place.elements.end - place.elements.start;
        let num_elements: i64 = self.layout.places.iter().map(elements).sum();
        let value = serde_json::json!({
            "world_size": self.world.world_size(),
            "gradient_bytes_per_update": 4 * num_elements,
            "gradient_buckets": self.layout.num_buckets,
        });
        value.as_object().cloned().unwrap_or_default()
    }

    /// Name and shape of every trained tensor.
    pub fn shapes(&self) -> impl Iterator<Item = (&str, &[i64])> {
        self.layout.places.iter().map(|place| (place.name.as_str(), &place.shape[..]))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pieces_of_all_ranks_are_every_element_once() {
        for world_size in 1..5 {
            let shapes: [&[i64]; 4] = [&[3, 5], &[1], &[100, 7], &[17]];
            let named = shapes.iter().enumerate().map(|(k, s)| (k.to_string(), s.to_vec()));
            let layout = Layout::new(named, world_size);
            let mut seen: Vec<Vec<i64>> =
                shapes.iter().map(|s| vec![0; s.iter().product::<i64>() as usize]).collect();
            for piece in (0..world_size).flat_map(|rank| layout.pieces_of(rank)) {
                for at in piece.elements {
                    seen[piece.tensor][at as usize] += 1;
                }
            }
            assert!(seen.iter().flatten().all(|&times| times == 1), "{world_size} ranks");
        }
    }

    #[test]
    fn large_models_are_exchanged_in_several_buckets_of_equal_segments() {
        let layout = Layout::new([("a".to_owned(), vec![5 * MAX_SEGMENT])], 2);
        assert_eq!((layout.segment, layout.num_buckets), (MAX_SEGMENT, 3));
        let elements = |rank| -> i64 {
            layout.pieces_of(rank).iter().map(|p| p.elements.end - p.elements.start).sum()
        };
        assert_eq!((elements(0), elements(1)), (3 * MAX_SEGMENT, 2 * MAX_SEGMENT));
    }
}
