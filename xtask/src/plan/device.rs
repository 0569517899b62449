//! What a plan knows of devices: figures of data sheets, and what share of them is assumed.

use anyhow::Result;

use crate::workspace::usage_error;

/// One device. Rates a second.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// As `--gpu` names it.
    pub name: String,
    /// Operations of dense matrix products with float32 sums.
    pub bfloat16_flops: f64,
    /// The same in float32 (TensorFloat-32 is not used).
    pub float32_flops: f64,
    /// Bytes of its memory.
    pub memory_bytes_per_sec: f64,
    /// Size of its memory in bytes.
    pub memory_bytes: f64,
    /// Bytes to another device of the same machine, one direction.
    pub link_bytes_per_sec: f64,
    /// Share of the matrix-product rate that is reached.
    pub flops_share: f64,
    /// Share of the memory rate that is reached.
    pub memory_share: f64,
    /// Seconds to start one kernel; what a step cannot fall below.
    pub launch_secs: f64,
    /// Where the rates come from.
    pub source: &'static str,
}

const GIB: f64 = (1_u64 << 30) as f64;

/// Assumed, not measured: what matrix products of 512 to 768 columns reach of the rate that data
/// sheets give for large ones.
const GPU_FLOPS_SHARE: f64 = 0.35;
/// Assumed: streaming kernels reach about this.
const MEMORY_SHARE: f64 = 0.75;
/// Assumed: from the host's call to the next, eager PyTorch kernels.
const GPU_LAUNCH_SECS: f64 = 6e-6;

/// Name, bfloat16 and float32 TFLOP/s, memory GB/s and GiB, link GB/s, source.
type Row = (&'static str, f64, f64, f64, f64, f64, &'static str);

const GPUS: [Row; 7] = [
    ("b200", 2250.0, 75.0, 8000.0, 180.0, 900.0, "NVIDIA DGX B200 data sheet, dense; NVLink 5"),
    ("h200", 989.0, 67.0, 4800.0, 141.0, 450.0, "NVIDIA H200 SXM data sheet, dense; NVLink 4"),
    ("h100", 989.0, 67.0, 3350.0, 80.0, 450.0, "NVIDIA H100 SXM data sheet, dense; NVLink 4"),
    ("a100", 312.0, 19.5, 2039.0, 80.0, 300.0, "NVIDIA A100 80 GB SXM data sheet; NVLink 3"),
    ("l40s", 362.0, 91.6, 864.0, 48.0, 32.0, "NVIDIA L40S data sheet, dense; PCIe 4.0 x16"),
    ("4090", 165.2, 82.6, 1008.0, 24.0, 32.0, "NVIDIA Ada whitepaper, dense; PCIe 4.0 x16"),
    ("3090", 71.0, 35.6, 936.0, 24.0, 32.0, "NVIDIA Ampere GA102 whitepaper; PCIe 4.0 x16"),
];

impl Device {
    /// The device of that name. `cpu` has no data sheet here: its rate must be given.
    /// # Errors
    /// An unknown name, `cpu` without a rate.
    pub fn find(name: &str, gflops: Option<f64>, memory_gbytes: Option<f64>) -> Result<Self> {
        let mut device = match name {
            "cpu" => Self::cpu(gflops)?,
            _ => Self::gpu(name)?,
        };
        if let Some(gflops) = gflops {
            device.bfloat16_flops = gflops * 1e9;
            device.float32_flops = gflops * 1e9;
            device.flops_share = 1.0;
            device.source = "--gflops, as given";
        }
        if let Some(gbytes) = memory_gbytes {
            device.memory_bytes_per_sec = gbytes * 1e9;
            device.memory_share = 1.0;
        }
        Ok(device)
    }

    fn gpu(name: &str) -> Result<Self> {
        let wanted = name.to_ascii_lowercase();
        let known = || GPUS.map(|row| row.0).join(", ");
        let row = GPUS
            .iter()
            .find(|row| row.0 == wanted)
            .ok_or_else(|| usage_error(format!("--gpu {name}: known are {} and cpu", known())))?;
        Ok(Self {
            name: row.0.to_owned(),
            bfloat16_flops: row.1 * 1e12,
            float32_flops: row.2 * 1e12,
            memory_bytes_per_sec: row.3 * 1e9,
            memory_bytes: row.4 * GIB,
            link_bytes_per_sec: row.5 * 1e9,
            flops_share: GPU_FLOPS_SHARE,
            memory_share: MEMORY_SHARE,
            launch_secs: GPU_LAUNCH_SECS,
            source: row.6,
        })
    }

    fn cpu(gflops: Option<f64>) -> Result<Self> {
        let Some(gflops) = gflops else {
            return Err(usage_error(
                "--gpu cpu needs --gflops: what matrix products reach here (a CPU's data sheet does \
                 not say); a finished run gives it with --from-run OUT_DIR",
            ));
        };
        Ok(Self {
            name: "cpu".to_owned(),
            bfloat16_flops: gflops * 1e9,
            float32_flops: gflops * 1e9,
            // One channel of DDR4-3200 a core pair; assumed where --memory-gbytes is not given.
            memory_bytes_per_sec: 25.6e9,
            memory_bytes: memory_of_this_machine(),
            // Processes of one machine copy through memory.
            link_bytes_per_sec: 5e9,
            flops_share: 1.0,
            memory_share: MEMORY_SHARE,
            launch_secs: 0.0,
            source: "--gflops, as given; memory rate assumed",
        })
    }

    /// Matrix-product rate that is reckoned with.
    pub fn reached_flops(&self, is_bfloat16: bool) -> f64 {
        let peak = if is_bfloat16 { self.bfloat16_flops } else { self.float32_flops };
        peak * self.flops_share
    }

    /// Memory rate that is reckoned with.
    pub fn reached_memory(&self) -> f64 {
        self.memory_bytes_per_sec * self.memory_share
    }
}

fn memory_of_this_machine() -> f64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let kib = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    let kib = kib.and_then(|rest| rest.trim().trim_end_matches("kB").trim().parse::<f64>().ok());
    kib.map_or(16.0 * GIB, |kib| kib * 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::UsageError;

    #[test]
    fn devices_are_found_by_name_and_unknown_ones_listed() {
        assert_eq!(Device::find("H100", None, None).unwrap().name, "h100");
        for (name, said) in [("h1000", "h100, a100"), ("cpu", "--gflops")] {
            let error = Device::find(name, None, None).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(said), "{error}");
        }
        let cpu = Device::find("cpu", Some(140.0), Some(10.0)).unwrap();
        assert_eq!((cpu.reached_flops(false), cpu.reached_memory()), (140e9, 10e9));
    }
}
