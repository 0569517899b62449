//! The feed-forward layer of a block: a SwiGLU, or a mixture of experts that are SwiGLUs.
//!
//! Dimensions: B batch · T tokens · N tokens of all rows · R rows · H hidden size ·
//! E routed experts · K experts per token

use tch::{Device, Kind, Tensor};

use crate::layers::{Linear, RmsNorm, select_positions};
use crate::lm_init::inits;
use crate::packed_rows::PackedRows;
use crate::params::{Init, Scope};
use vlm_shapes::{LmConfig, LoadBalance};

/// SwiGLU (Shazeer 2020): `down(silu(gate x) · up x)`.
#[derive(Debug)]
pub(crate) struct SwiGlu {
    gate: Linear,
    down: Linear,
    up: Linear,
    dropout: f64,
}

impl SwiGlu {
    fn new(scope: &Scope, config: &LmConfig) -> Self {
        let (dim, width) = (config.dim, config.intermediate_size());
        let (init, residual) = inits(config);
        let names = config.names();
        let linear = |name: &str, in_dim, out_dim, init| {
            Linear::with_bias_if(config.mlp_bias, &scope.sub(name), in_dim, out_dim, init)
        };
        Self {
            gate: linear(names.gate, dim, width, init),
            down: linear(names.down, width, dim, residual),
            up: linear(names.up, dim, width, init),
            dropout: if config.mlp_dropout { config.dropout } else { 0.0 },
        }
    }

    /// `[…, H]` → `[…, H]`.
    fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        let gated = vlm_torch::swiglu(&self.gate.forward(x), &self.up.forward(x));
        // As every tensor operation, it fails only when there is no memory left.
        let gated = gated.unwrap_or_else(|error| panic!("{error}"));
        self.down.forward(&gated).dropout(self.dropout, train)
    }
}

/// Routed and shared experts (DeepSeekMoE, Dai et al. 2024), as MiniMind's `MOEFeedForward` of each
/// family.
///
/// Differs from the reference on purpose: the outputs of the experts keep their precision. The
/// reference casts them, and so their gradients, to float16.
#[derive(Debug)]
pub(crate) struct MixtureOfExperts {
    gate: Tensor,
    experts: Vec<SwiGlu>,
    shared_experts: Vec<SwiGlu>,
    experts_per_token: i64,
    normalise: bool,
    load_balance: LoadBalance,
    aux_loss_alpha: f64,
}

impl MixtureOfExperts {
    fn new(scope: &Scope, config: &LmConfig) -> Self {
        let moe = &config.moe;
        let bound = (1.0 / config.dim as f64).sqrt();
        let names = config.names();
        let experts = scope.sub(names.experts);
        Self {
            experts: (0..moe.n_routed_experts)
                .map(|index| SwiGlu::new(&experts.sub(index), config))
                .collect(),
            gate: scope.sub(names.router).param(
                "weight",
                &[moe.n_routed_experts, config.dim],
                Init::Uniform(bound),
            ),
            shared_experts: shared_experts(&scope.sub(names.shared_experts), config),
            experts_per_token: moe.num_experts_per_tok,
            normalise: moe.norm_topk_prob
                && (moe.norm_single_expert || moe.num_experts_per_tok > 1),
            load_balance: moe.load_balance,
            aux_loss_alpha: moe.aux_loss_alpha,
        }
    }

    fn has_aux_loss(&self, train: bool) -> bool {
        train && self.aux_loss_alpha > 0.0
    }

    /// `[B, T, H]` → `[B, T, H]`, and in training the auxiliary loss (scalar, multiplied by
    /// `aux_loss_alpha`). With `needed` `[S]`, experts compute these positions only (see
    /// [`select_positions`]), `[1, S, H]`, but the auxiliary loss is still that of all positions.
    fn forward(
        &self,
        x_bth: &Tensor,
        packed: Option<&PackedRows>,
        needed: Option<&Tensor>,
        train: bool,
    ) -> (Tensor, Option<Tensor>) {
        let (batch, len, hidden) = x_bth.size3().expect("[B, T, H] by construction");
        let x_nh = x_bth.reshape([-1, hidden]);
        let logits_ne = self.gate_logits(&x_nh);
        let scores_ne = logits_ne.softmax(-1, Kind::Float);
        let (mut weights_nk, chosen_nk) = scores_ne.topk(self.experts_per_token, -1, true, false);
        if self.normalise {
            weights_nk = &weights_nk / (weights_nk.sum_dim_intlist(-1, true, Kind::Float) + 1e-20);
        }
        let (y_nh, shape) = match needed {
            None => (self.apply(&x_nh, &weights_nk, &chosen_nk, train), [batch, len, hidden]),
            Some(needed) => {
                let [x, weights, chosen] =
                    [&x_nh, &weights_nk, &chosen_nk].map(|all| all.index_select(0, needed));
                (self.apply(&x, &weights, &chosen, train), [1, -1, hidden])
            }
        };
        let aux_loss = self.has_aux_loss(train).then(|| {
            let experts = self.experts.len() as i64;
            match packed.filter(|_| self.load_balance == LoadBalance::PerRow) {
                Some(rows) => self.auxiliary_loss_of(rows, &scores_ne, &chosen_nk),
                None => {
                    let scores_bte = scores_ne.view([batch, len, experts]);
                    self.auxiliary_loss(&scores_bte, &chosen_nk.view([batch, -1]))
                }
            }
        });
        (y_nh.view(shape), aux_loss)
    }

    /// The sum of the shared experts and of the experts that were chosen for each token,
    /// `[N, H]` → `[N, H]`.
    fn apply(&self, x_nh: &Tensor, weights_nk: &Tensor, chosen_nk: &Tensor, train: bool) -> Tensor {
        let mut y_nh = self.route(x_nh, weights_nk, chosen_nk, train);
        for shared in &self.shared_experts {
            y_nh += shared.forward(x_nh, train);
        }
        y_nh
    }

    /// `[N, H]` → `[N, E]`, always in float32, even under autocast: rounding could change the
    /// experts that are chosen for a token.
    fn gate_logits(&self, x_nh: &Tensor) -> Tensor {
        let gate = || x_nh.to_kind(Kind::Float).linear(&self.gate, None::<Tensor>);
        vlm_torch::autocast(x_nh.device(), None, gate)
            .expect("autocast supports every device that a model can be on")
    }

    /// Applies to each token its experts, `[N, H]` → `[N, H]`. Tokens are grouped by expert, so
    /// that the cost depends only on the number of routed tokens. An expert without tokens still
    /// computes on an empty tensor: its gradient is zero and not missing, so that all ranks have
    /// the same gradients to average.
    fn route(&self, x_nh: &Tensor, weights_nk: &Tensor, chosen_nk: &Tensor, train: bool) -> Tensor {
        let chosen = chosen_nk.reshape([-1]);
        let order = chosen.argsort(0, false);
        // On a GPU, `bincount` would wait twice more for the smallest and the largest value.
        let counts = Tensor::zeros([self.experts.len() as i64], (Kind::Int64, chosen.device()))
            .scatter_add(0, &chosen, &chosen.ones_like());
        let counts = Vec::<i64>::try_from(counts).expect("a vector of counts by construction");
        let tokens = order.divide_scalar_mode(self.experts_per_token, "floor");
        let sorted = x_nh.index_select(0, &tokens);
        let pieces: Vec<Tensor> = sorted
            .split_with_sizes(counts, 0)
            .iter()
            .zip(&self.experts)
            .map(|(rows, expert)| pad_to_bucket(rows, |rows| expert.forward(rows, train)))
            .collect();
        let outputs = Tensor::cat(&pieces, 0);
        #[cfg(test)]
        let outputs = crate::reference_float16::cast(outputs);
        let weights = weights_nk.reshape([-1]).index_select(0, &order).unsqueeze(1);
        let weighted = outputs * weights.to_kind(x_nh.kind());
        x_nh.zeros_like().index_add(0, &tokens, &weighted)
    }

    /// The load-balancing loss: for each expert, the fraction of the tokens routed to it times its
    /// mean score, summed over the experts and scaled by their number. It is computed per row or
    /// over the whole batch, see [`LoadBalance`]. As in the reference, the fraction is relative to
    /// the K choices per token in the first case and to the tokens in the second, so that the loss
    /// over the batch is K times larger.
    fn auxiliary_loss(&self, scores_bte: &Tensor, chosen_bm: &Tensor) -> Tensor {
        let (batch, len, experts) = scores_bte.size3().expect("[B, T, E] by construction");
        if self.load_balance == LoadBalance::PerBatch && batch > 1 {
            let scores = scores_bte.reshape([1, batch * len, experts]);
            return self.auxiliary_loss(&scores, &chosen_bm.reshape([1, -1]));
        }
        let choices = match self.load_balance {
            LoadBalance::PerRow => chosen_bm.size()[1],
            LoadBalance::PerBatch => len,
        };
        let ones = Tensor::ones(chosen_bm.size(), (Kind::Float, scores_bte.device()));
        let load_be = Tensor::zeros([batch, experts], (Kind::Float, scores_bte.device()))
            .scatter_add(1, chosen_bm, &ones)
            / (choices as f64 / experts as f64);
        let mean_scores_be = scores_bte.mean_dim(1, false, Kind::Float);
        self.balance_loss(&load_be, &mean_scores_be)
    }

    /// The load-balancing loss per row, for packed rows of different lengths.
    fn auxiliary_loss_of(
        &self,
        rows: &PackedRows,
        scores_ne: &Tensor,
        chosen_nk: &Tensor,
    ) -> Tensor {
        let experts = self.experts.len() as f64;
        let lengths_r1 = rows.sums(&scores_ne.slice(1, 0, 1, 1).ones_like());
        let choices_ne = scores_ne.zeros_like().scatter_add(1, chosen_nk, &scores_ne.ones_like());
        let choices_r1 = &lengths_r1 * self.experts_per_token as f64;
        let load_re = rows.sums(&choices_ne) * experts / choices_r1;
        let mean_scores_re = rows.sums(scores_ne) / lengths_r1;
        self.balance_loss(&load_re, &mean_scores_re)
    }

    /// The mean over the rows, multiplied by `aux_loss_alpha`.
    fn balance_loss(&self, load_be: &Tensor, mean_scores_be: &Tensor) -> Tensor {
        let per_row = (load_be * mean_scores_be).sum_dim_intlist(1, false, Kind::Float);
        per_row.mean(Kind::Float) * self.aux_loss_alpha
    }
}

/// The shared experts, which process all tokens.
fn shared_experts(scope: &Scope, config: &LmConfig) -> Vec<SwiGlu> {
    let numbers_them = config.names().numbers_shared_experts;
    (0..config.num_shared_experts())
        .map(|index| match numbers_them {
            true => SwiGlu::new(&scope.sub(index), config),
            false => SwiGlu::new(scope, config),
        })
        .collect()
}

/// Calls `f`, which treats each row separately, on `rows` padded with rows of zeros to one of a few
/// sizes, and removes the padding from its result. On the CPU, oneDNN compiles each 16-bit matrix
/// product for its number of rows, which takes about 1 ms for a new number, and an expert's number
/// of tokens is new in almost every step.
fn pad_to_bucket(rows: &Tensor, f: impl Fn(&Tensor) -> Tensor) -> Tensor {
    const STEP: u64 = 64;
    let is_compiled = rows.device() == Device::Cpu
        && vlm_torch::autocast_kind(rows.device()).expect("autocast supports the CPU").is_some();
    let count = rows.size()[0];
    let filled = match count as u64 {
        few @ 1..STEP => few.next_power_of_two(),
        many => many.next_multiple_of(STEP),
    } as i64;
    if !is_compiled || filled == count {
        return f(rows);
    }
    f(&rows.constant_pad_nd([0, 0, 0, filled - count])).narrow(0, 0, count)
}

/// The feed-forward layer of a block.
#[derive(Debug)]
pub(crate) enum FeedForward {
    Dense(SwiGlu),
    Experts(MixtureOfExperts),
}

impl FeedForward {
    pub(crate) fn new(scope: &Scope, config: &LmConfig) -> Self {
        if config.use_moe {
            Self::Experts(MixtureOfExperts::new(scope, config))
        } else {
            Self::Dense(SwiGlu::new(scope, config))
        }
    }

    /// Whether [`Self::forward`] returns an auxiliary loss.
    pub(crate) fn has_aux_loss(&self, train: bool) -> bool {
        match self {
            Self::Dense(_) => false,
            Self::Experts(layer) => layer.has_aux_loss(train),
        }
    }

    /// The layer's input of hidden states `x` `[B, T, H]`: `norm` of them. A router needs float32,
    /// since rounding could change the experts that are chosen for a token.
    pub(crate) fn normed_input(&self, norm: &RmsNorm, x_bth: &Tensor) -> Tensor {
        match self {
            Self::Dense(_) => norm.forward_for_products(x_bth),
            Self::Experts(_) => norm.forward(x_bth),
        }
    }

    /// `[B, T, H]` → `[B, T, H]`, and the auxiliary loss, if there is one. With `needed` `[S]`, only
    /// the output at these positions (see [`select_positions`]), `[1, S, H]`.
    pub(crate) fn forward(
        &self,
        x_bth: &Tensor,
        packed: Option<&PackedRows>,
        needed: Option<&Tensor>,
        train: bool,
    ) -> (Tensor, Option<Tensor>) {
        match (self, needed) {
            (Self::Experts(layer), _) => layer.forward(x_bth, packed, needed, train),
            (Self::Dense(layer), None) => (layer.forward(x_bth, train), None),
            (Self::Dense(layer), Some(needed)) => {
                (layer.forward(&select_positions(x_bth, needed), train), None)
            }
        }
    }
}
