//! What is measured of one run of a program.

/// One run of a program.
pub struct Run {
    /// Duration of each measured step, in seconds.
    pub step_secs: Vec<f64>,
    /// Peak resident memory of the process.
    pub peak_bytes: u64,
    /// Operations that each measured step needs, if the program counts them.
    pub flops: Option<Vec<f64>>,
    /// Rate of matrix products, if the program measures it.
    pub matrix_rate: Option<f64>,
}
