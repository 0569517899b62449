//! Language model, vision encoder, projector, the joined model, weights in and out, generation.
