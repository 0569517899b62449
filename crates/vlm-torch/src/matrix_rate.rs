//! Measures how fast a device multiplies matrices.

use std::time::{Duration, Instant};

use tch::{Cuda, Device, Kind, Tensor};

use crate::{Error, Result, linear};

/// Number of products on a GPU, whose speed other programs on the machine disturb less.
const NUM_ON_GPU: usize = 20;

/// The largest rate, in operations per second, that matrix products of `kind` reach on `device`.
/// Each of `products` is `[n, a, b]`, a product of `[n, a]` and `[a, b]` with `2 n a b` operations,
/// computed as the model's linear layers compute it. On a CPU the measurement takes about `duration`,
/// or longer if a single product takes longer than its part of it. `None` without products, or if a product takes
/// no measurable time.
///
/// It uses the threads that libtorch uses for arithmetic and draws no random numbers.
///
/// # Errors
/// A size below 1; a device that is out of memory or does not support the type.
pub fn matrix_rate(
    device: Device,
    kind: Kind,
    products: &[[i64; 3]],
    duration: Duration,
) -> Result<Option<f64>> {
    let each = duration / products.len().max(1) as u32;
    let rates = products.iter().map(|&product| rate_of(device, kind, product, each));
    let rates = rates.collect::<Result<Vec<_>>>()?;
    Ok(rates.into_iter().flatten().reduce(f64::max))
}

/// The rate of the fastest of several equal products within `duration`. The fastest, because other
/// programs on the machine can only make a product slower.
fn rate_of(
    device: Device,
    kind: Kind,
    [rows, inner, columns]: [i64; 3],
    duration: Duration,
) -> Result<Option<f64>> {
    const OPERATION: &str = "matrix_rate";
    let torch = |error: tch::TchError| Error::tch(OPERATION, &error);
    if rows < 1 || inner < 1 || columns < 1 {
        let found = format!("[{rows}, {inner}, {columns}]; every size must be at least 1");
        return Err(Error::argument(OPERATION, found));
    }
    let matrix = |rows: i64, columns: i64| {
        let values = Tensor::f_linspace(-1.0, 1.0, rows * columns, (Kind::Float, device))?;
        values.f_to_kind(kind)?.f_view([rows, columns])
    };
    let (input, weight) = (matrix(rows, inner), matrix(columns, inner));
    let (input, weight) = (input.map_err(torch)?, weight.map_err(torch)?);
    let product = || -> Result<Duration> {
        let started = Instant::now();
        let _output = tch::no_grad(|| linear(&input, &weight, None))?;
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
        Ok(started.elapsed())
    };
    // The first product starts threads and allocates memory.
    product()?;
    let started = Instant::now();
    let mut shortest = product()?;
    let mut count = 1;
    while match device {
        Device::Cuda(_) => count < NUM_ON_GPU,
        _ => started.elapsed() < duration,
    } {
        shortest = shortest.min(product()?);
        count += 1;
    }
    let operations = 2.0 * rows as f64 * inner as f64 * columns as f64;
    Ok((!shortest.is_zero()).then(|| operations / shortest.as_secs_f64()))
}
