//! Prints a plan as text or JSON: the counts, the estimates, and the rates behind them.

use serde_json::{Value, json};
use vlm_display::{Align, Table, count};

use super::cost::{NETWORK_SHARE, bytes_per_update, num_trained};
use super::estimates::Plan;
use super::shape::Tensor;

/// Time of one core for a row, in ms: decoding a 500×375 JPEG, preprocessing, chat template and
/// tokens. Measured with the Python reference on one core of a 2-core machine.
const ROW_MS: f64 = 0.9 + 4.0 + 0.44;
const DAY: f64 = 86_400.0;

/// The plan as text.
pub fn text(plan: &Plan) -> String {
    let Plan { load, device, time, memory, work, .. } = plan;
    let rate = plan.samples_per_sec();
    let secs = (plan.rows * plan.epochs) as f64 / rate;
    let lm: u64 = plan.tensors.iter().map(Tensor::numel).sum();
    let trained = num_trained(&plan.shape, &plan.freeze, &plan.tensors);
    let dtype = if load.is_bfloat16 { "bfloat16" } else { "float32" };
    let mut table = Table::new(&[Align::Left]);
    let mut add = |name: &str, value: String| table.push(&[&name, &value]);
    add(
        "parameters",
        format!(
            "{} language model and projector, {} vision encoder; {} trained",
            millions(lm),
            millions(plan.shape.num_vision_parameters()),
            millions(trained)
        ),
    );
    add(
        "operations",
        format!(
            "{:.3} T per micro-batch and rank: {:.0}% vision, {:.0}% language model forward, \
             {:.0}% backward",
            work.flops() / 1e12,
            percent(work.vision_flops, work.flops()),
            percent(work.lm_flops, work.flops()),
            percent(work.backward_flops, work.flops())
        ),
    );
    let launches = match time.launches > time.products + time.traffic {
        true => format!(", at least {:.2} to launch the kernels", time.launches * 1e3),
        false => String::new(),
    };
    add(
        "step",
        format!(
            "{:.2} ms: products {:.2} + memory {:.2}{launches}, + communication not overlapped \
             {:.2}",
            time.step() * 1e3,
            time.products * 1e3,
            time.traffic * 1e3,
            time.exposed * 1e3
        ),
    );
    add(
        "rate",
        format!(
            "{} samples/s; {} × {} in {}",
            short(rate),
            count(plan.rows, "row"),
            count(plan.epochs, "epoch"),
            duration(secs)
        ),
    );
    add(
        "network",
        format!(
            "{} sent per rank and update, {:.2} ms; {:.1}% of the step is not overlapped with the \
             backward pass",
            bytes(bytes_per_update(work.num_trained, load.gpus) as u64),
            time.communication * 1e3,
            percent(time.exposed, time.step())
        ),
    );
    add(
        "memory",
        format!(
            "{} per rank: weights {}, gradients {}, optimizer {}, activations {}; the device has {}",
            bytes(memory.total()),
            bytes(memory.weights + memory.half_weights),
            bytes(memory.gradients),
            bytes(memory.optimizer),
            bytes(memory.activations),
            bytes(device.memory_bytes as u64)
        ),
    );
    add(
        "checkpoint",
        format!(
            "{}: weights {}, optimizer {}",
            bytes(plan.checkpoint.total()),
            bytes(plan.checkpoint.model),
            bytes(plan.checkpoint.optimizer)
        ),
    );
    if !load.features_are_cached {
        add(
            "data",
            format!(
                "{:.1} cores to load images ({ROW_MS:.1} ms per row, measured with the Python \
                 reference; none with `cargo xtask vlm cache-features`)",
                rate * ROW_MS / 1e3
            ),
        );
    }
    add("based on", constants(plan));
    let load = format!(
        "{} × {}, {dtype}, {} of {} each",
        load.gpus,
        device.name,
        count(load.batch_size, "row"),
        count(load.seq_len, "token")
    );
    let warning = match memory.total() as f64 > device.memory_bytes {
        true => {
            "this does not fit into memory: lower --batch-size and raise --accumulation-steps\n"
        }
        false => "",
    };
    format!("{load}\n{table}{warning}")
}

/// The rates and assumptions behind the estimates.
fn constants(plan: &Plan) -> String {
    let device = &plan.device;
    let flops = if plan.load.is_bfloat16 { device.bfloat16_flops } else { device.float32_flops };
    let mut text = format!(
        "{} TFLOP/s × {:.2} and {} GB/s × {:.2} ({}; the factors are assumed, not \
         measured)",
        short(flops / 1e12),
        device.flops_share,
        short(device.memory_bytes_per_sec / 1e9),
        device.memory_share,
        device.source,
    );
    if device.launch_secs > 0.0 {
        text += &format!(
            "; {:.0} kernels × {:.0} µs (counted; assumed)",
            plan.work.kernels,
            device.launch_secs * 1e6
        );
    }
    if plan.load.gpus > 1 {
        text += &format!(
            "; {:.0} GB/s between devices (data sheet), {:.0} between machines of {} \
             (--network-gbits), × {NETWORK_SHARE} (assumed)",
            device.link_bytes_per_sec / 1e9,
            plan.load.network_bytes_per_sec / 1e9,
            plan.load.gpus_per_node,
        );
    }
    text
}

/// The plan as a JSON object.
pub fn json(plan: &Plan) -> Value {
    let Plan { load, time, memory, work, .. } = plan;
    json!({
        "lm_parameters": plan.tensors.iter().map(Tensor::numel).sum::<u64>(),
        "vision_parameters": plan.shape.num_vision_parameters(),
        "trainable_parameters": num_trained(&plan.shape, &plan.freeze, &plan.tensors),
        "flops_per_step_and_rank": work.flops(),
        "step_ms": time.step() * 1e3,
        "samples_per_sec": plan.samples_per_sec(),
        "communication_ms": time.communication * 1e3,
        "communication_share": time.exposed / time.step(),
        "gradient_bytes_per_update": work.num_trained * 4.0,
        "sent_bytes_per_update_and_rank": bytes_per_update(work.num_trained, load.gpus),
        "memory_bytes": {
            "weights": memory.weights + memory.half_weights,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "activations": memory.activations,
            "total": memory.total(),
        },
        "checkpoint_bytes": {
            "model.safetensors": plan.checkpoint.model,
            "optimizer.safetensors": plan.checkpoint.optimizer,
        },
        "days": (plan.rows * plan.epochs) as f64 / plan.samples_per_sec() / DAY,
        "rests_on": constants(plan),
    })
}

fn percent(part: f64, whole: f64) -> f64 {
    100.0 * part / whole
}

fn millions(count: u64) -> String {
    format!("{:.3} M", count as f64 / 1e6)
}

/// The number with three significant digits, or rounded to an integer if it has more.
fn short(value: f64) -> String {
    let decimals = (2.0 - value.abs().max(1e-9).log10().floor()).clamp(0.0, 6.0) as usize;
    format!("{value:.decimals$}")
}

/// A size in the largest binary unit that is not larger than it.
pub fn bytes(count: u64) -> String {
    let units = [(30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(bits, _)| count >> bits > 0) {
        Some((bits, unit)) => format!("{:.2} {unit}", count as f64 / (1_u64 << bits) as f64),
        None => format!("{count} B"),
    }
}

fn duration(secs: f64) -> String {
    match secs {
        _ if secs >= 2.0 * DAY => format!("{:.1} days", secs / DAY),
        _ if secs >= 7200.0 => format!("{:.1} hours ({:.2} days)", secs / 3600.0, secs / DAY),
        _ if secs >= 120.0 => format!("{:.1} minutes", secs / 60.0),
        _ => format!("{secs:.1} s"),
    }
}
