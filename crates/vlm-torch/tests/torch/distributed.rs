use std::net::TcpListener;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use vlm_torch::{
    GroupOptions, ProcessGroup, Reducer, ReducerOptions, Store, checkpoint, set_grad_none,
};

use crate::values;

const RANKS: usize = 2;

fn options(port: u16, rank: usize, timeout: Duration) -> GroupOptions {
    GroupOptions {
        master_addr: "127.0.0.1".to_owned(),
        master_port: port,
        rank,
        world_size: RANKS,
        is_server: rank == 0,
        timeout,
        is_on_one_machine: true,
        // With a prefix of its own, the group is separate from that of another process.
        prefix: format!("{}/{port}", std::process::id()),
    }
}

/// A free port below those that the system assigns, so that no other process gets it meanwhile.
fn free_port() -> u16 {
    static NUM_DRAWN: AtomicU32 = AtomicU32::new(0);
    loop {
        let step = NUM_DRAWN.fetch_add(1, Ordering::Relaxed);
        let port =
            10_000 + (std::process::id().wrapping_mul(61).wrapping_add(step) % 10_000) as u16;
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

/// Runs `run` in one thread per rank; each connects to the group as a process would.
fn on_two_ranks<T: Send + 'static>(run: fn(&ProcessGroup) -> T) -> Vec<T> {
    let port = free_port();
    let start = |rank| {
        thread::spawn(move || {
            let options = options(port, rank, Duration::from_secs(20));
            let group = ProcessGroup::connect(&options).unwrap();
            // A rank must not end before the other one has connected.
            group.barrier().unwrap();
            run(&group)
        })
    };
    let ranks: Vec<_> = (0..RANKS).map(start).collect();
    ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
}

#[test]
fn sums_and_broadcasts_reach_every_rank() {
    let found = on_two_ranks(|group| {
        let rank = group.rank() as f32;
        let mut sum = Tensor::from_slice(&[rank, 10.0]).to_kind(Kind::BFloat16);
        group.all_reduce_sum(&mut sum).unwrap();
        let weights = [
            Tensor::from_slice(&[rank]).set_requires_grad(true),
            Tensor::from_slice(&[rank + 5.0]),
        ];
        group.broadcast(&weights, 1).unwrap();
        group.barrier().unwrap();
        (values(&sum), values(&weights[0].detach()), values(&weights[1]))
    });
    assert_eq!(found, vec![(vec![1.0, 20.0], vec![1.0], vec![6.0]); RANKS]);
}

#[test]
fn bytes_of_any_length_are_gathered_and_broadcast() {
    let found = on_two_ranks(|group| {
        let own = vec![7u8; 3 * group.rank()];
        let gathered = group.all_gather_bytes(&own).unwrap();
        let own: &[u8] = if group.rank() == 1 { b"one" } else { b"" };
        let broadcast = group.broadcast_bytes(own, 1).unwrap();
        let empty = group.broadcast_bytes(b"", 0).unwrap();
        (gathered, broadcast, empty)
    });
    let expected = (vec![vec![], vec![7; 3]], b"one".to_vec(), vec![]);
    assert_eq!(found, vec![expected; RANKS]);
}

#[test]
fn values_in_the_store_are_read_by_the_other_rank() {
    let found = on_two_ranks(|group| {
        let store = Store::connect(group.options(), Duration::from_secs(20)).unwrap();
        assert_eq!(store.get("a key that is not set").unwrap(), None);
        let own = format!("rank/{}", group.rank());
        store.set(&own, &[group.rank() as u8, 0, 9]).unwrap();
        // The next read of the same client returns the value.
        assert!(store.get(&own).unwrap().is_some());
        group.barrier().unwrap();
        let other = store.get(&format!("rank/{}", 1 - group.rank())).unwrap();
        group.barrier().unwrap();
        other
    });
    assert_eq!(found, [Some(vec![1, 0, 9]), Some(vec![0, 0, 9])]);
}

#[test]
fn the_end_of_a_rank_is_an_error_that_names_the_reporting_rank() {
    let errors = on_two_ranks(|group| {
        if group.rank() == 1 {
            return None;
        }
        let begin = Instant::now();
        let error = group.all_reduce_sum(&mut Tensor::from_slice(&[1f32])).unwrap_err().to_string();
        Some((error, begin.elapsed()))
    });
    let (error, waited) = errors[0].clone().unwrap();
    assert!(error.starts_with("rank 0 of 2: all_reduce_sum: "), "{error}");
    assert!(waited < Duration::from_secs(10), "{waited:?}");
}

#[test]
fn a_rank_that_does_not_connect_is_an_error_after_the_timeout() {
    let port = free_port();
    let error = ProcessGroup::connect(&options(port, 0, Duration::from_millis(500)))
        .unwrap_err()
        .to_string();
    assert!(error.starts_with("rank 0 of 2: connect: "), "{error}");
    let error = ProcessGroup::connect(&options(port, 2, Duration::ZERO)).unwrap_err().to_string();
    assert_eq!(error, "connect to the process group: rank is 2; expected less than 2");
}

/// The parameters of two layers, and one that is not used.
fn params() -> Vec<(String, Tensor)> {
    // The values are not random, because all threads share libtorch's generator.
    let weight = |phase: f64| {
        let angles = Tensor::arange(64, (Kind::Float, Device::Cpu)) * 0.7 + phase;
        angles.sin().reshape([8, 8]).set_requires_grad(true)
    };
    [("first", 0.0), ("second", 1.0), ("unused", 2.0)]
        .map(|(name, phase)| (name.to_owned(), weight(phase)))
        .into()
}

fn loss(params: &[(String, Tensor)], seed: usize) -> Tensor {
    let x =
        Tensor::arange(8, (Kind::Float, Device::Cpu)).reshape([1, 8]) * (seed as f64 + 1.0) / 8.0;
    let first = params[0].1.shallow_clone();
    let hidden =
        checkpoint(&[&x], &[&params[0].1], move |inputs| inputs[0].matmul(&first).tanh()).unwrap();
    hidden.matmul(&params[1].1).square().mean(Kind::Float)
}

fn gradients(params: &[(String, Tensor)]) -> Vec<Vec<f64>> {
    params[..2].iter().map(|(_, param)| values(&param.grad())).collect()
}

#[test]
fn reduced_gradients_are_the_average_over_ranks_and_accumulated_steps() {
    let found = on_two_ranks(|group| {
        let params = params();
        let options = ReducerOptions {
            first_bucket_bytes: 64,
            bucket_bytes: 256,
            find_unused_parameters: true,
        };
        let reducer = Reducer::new(group, &params, &options).unwrap();
        let tensors: Vec<_> = params.iter().map(|(_, param)| param.shallow_clone()).collect();
        let mut found = Vec::new();
        // The buckets are rebuilt after the first step, so one step does not test everything.
        for _ in 0..3 {
            set_grad_none(&tensors).unwrap();
            loss(&params, group.rank()).backward();
            reducer.prepare_forward().unwrap();
            let loss = loss(&params, group.rank() + 2);
            reducer.prepare_backward(&loss).unwrap();
            loss.backward();
            found.push(gradients(&params));
        }
        let bytes: usize = params.iter().map(|(_, p)| p.numel() * 4).sum();
        // Each parameter has 64 numbers, so a bucket of 256 bytes has only one of them.
        assert_eq!(reducer.bucket_bytes().unwrap(), (bytes as u64, 3));
        let times = reducer.times().unwrap();
        assert!(times.communication > Duration::ZERO && times.hidden <= times.communication);
        found
    });
    let params = params();
    for seed in 0..4 {
        (loss(&params, seed) / RANKS as f64).backward();
    }
    let expected = gradients(&params);
    for step in found.iter().flatten() {
        assert_eq!(step.len(), expected.len());
        for (a, b) in step.iter().flatten().zip(expected.iter().flatten()) {
            // Four float32 numbers of order one are added in two orders.
            assert!((a - b).abs() <= 1e-6, "{a} instead of {b}");
        }
    }
}

#[test]
fn frozen_parameters_are_refused_by_name() {
    let errors = on_two_ranks(|group| {
        let frozen = [("frozen".to_owned(), Tensor::from_slice(&[1f32]))];
        Reducer::new(group, &frozen, &ReducerOptions::default()).unwrap_err().to_string()
    });
    assert_eq!(errors[0], "Reducer::new: parameter \"frozen\" does not require a gradient");
}

#[test]
fn a_missing_nccl_plugin_is_an_error_that_says_how_to_build_it() {
    // If the plugin is installed, or VLM_NCCL_PLUGIN is set, the error is NCCL's.
    vlm_torch::load_cuda().unwrap();
    let errors = on_two_ranks(|group| {
        if tch::Cuda::is_available() {
            return None;
        }
        Some(group.add_nccl(0).unwrap_err().to_string())
    });
    for error in errors.into_iter().flatten() {
        // "undefined symbol" is the error of a plugin without libtorch_cuda.so.
        let reasons = ["cargo xtask setup", "no GPUs found", "undefined symbol"];
        assert!(reasons.iter().any(|reason| error.contains(reason)), "{error}");
    }
}
