//! The devices that a plan supports: figures from data sheets, and assumed efficiencies.

use anyhow::Result;

use vlm_shapes::GpuPeak;

use crate::workspace::usage_error;

/// A device. Rates are per second.
#[derive(Debug, Clone, PartialEq)]
pub struct Device {
    /// Its name in `--gpu`.
    pub name: String,
    /// Peak rate of dense bfloat16 matrix products that accumulate in float32, in operations.
    pub bfloat16_flops: f64,
    /// Peak rate of float32 matrix products, without TensorFloat-32, in operations.
    pub float32_flops: f64,
    /// Peak rate of its memory in bytes.
    pub memory_bytes_per_sec: f64,
    /// Size of its memory in bytes.
    pub memory_bytes: f64,
    /// Rate of the link to another device of the same machine, in one direction, in bytes.
    pub link_bytes_per_sec: f64,
    /// Fraction of the peak rate that matrix products reach.
    pub flops_share: f64,
    /// Fraction of the peak rate that memory traffic reaches.
    pub memory_share: f64,
    /// Time to launch a kernel, in seconds.
    pub launch_secs: f64,
    /// Source of the rates.
    pub source: &'static str,
}

const GIB: f64 = (1_u64 << 30) as f64;

/// Fraction of the data sheet's rate that matrix products with 512 to 768 columns reach. Assumed,
/// not measured.
const GPU_FLOPS_SHARE: f64 = 0.35;
/// Fraction of the data sheet's memory rate that streaming kernels reach. Assumed.
const MEMORY_SHARE: f64 = 0.75;
/// Time between two kernel launches of eager PyTorch, in seconds. Assumed.
const GPU_LAUNCH_SECS: f64 = 6e-6;

/// Name, memory GB/s, memory GiB, link GB/s, source. [`GpuPeak`] has the rates of products.
type Row = (&'static str, f64, f64, f64, &'static str);

const GPUS: [Row; 7] = [
    ("b200", 8000.0, 180.0, 900.0, "NVIDIA DGX B200 data sheet, dense; NVLink 5"),
    ("h200", 4800.0, 141.0, 450.0, "NVIDIA H200 SXM data sheet, dense; NVLink 4"),
    ("h100", 3350.0, 80.0, 450.0, "NVIDIA H100 SXM data sheet, dense; NVLink 4"),
    ("a100", 2039.0, 80.0, 300.0, "NVIDIA A100 80 GB SXM data sheet; NVLink 3"),
    ("l40s", 864.0, 48.0, 32.0, "NVIDIA L40S data sheet, dense; PCIe 4.0 x16"),
    ("4090", 1008.0, 24.0, 32.0, "NVIDIA Ada whitepaper, dense; PCIe 4.0 x16"),
    ("3090", 936.0, 24.0, 32.0, "NVIDIA Ampere GA102 whitepaper; PCIe 4.0 x16"),
];

impl Device {
    /// The device `name`. A measured `gflops` or `memory_gbytes` replaces the rate of the data
    /// sheet; `cpu` needs `gflops`.
    ///
    /// # Errors
    /// An unknown name; `cpu` without `gflops`.
    pub fn find(name: &str, gflops: Option<f64>, memory_gbytes: Option<f64>) -> Result<Self> {
        let mut device = match name {
            "cpu" => Self::cpu(gflops)?,
            _ => Self::gpu(name)?,
        };
        if let Some(gflops) = gflops {
            device.bfloat16_flops = gflops * 1e9;
            device.float32_flops = gflops * 1e9;
            device.flops_share = 1.0;
            device.source = "--gflops";
        }
        if let Some(gbytes) = memory_gbytes {
            device.memory_bytes_per_sec = gbytes * 1e9;
            device.memory_share = 1.0;
        }
        Ok(device)
    }

    /// The device with this marketing name, such as `NVIDIA H100 80GB HBM3`, if it is known.
    pub fn of_product(name: &str) -> Option<Self> {
        let words = name.to_ascii_lowercase();
        let row = GPUS.iter().find(|row| words.contains(row.0))?;
        Self::gpu(row.0).ok()
    }

    fn gpu(name: &str) -> Result<Self> {
        let wanted = name.to_ascii_lowercase();
        let known = || GPUS.map(|row| row.0).join(", ");
        let row = GPUS.iter().find(|row| row.0 == wanted);
        let peak = GpuPeak::ALL.into_iter().find(|gpu| gpu.name.eq_ignore_ascii_case(&wanted));
        let (row, peak) = row.zip(peak).ok_or_else(|| {
            usage_error(format!("--gpu {name} is unknown; expected {} or cpu", known()))
        })?;
        Ok(Self {
            name: row.0.to_owned(),
            bfloat16_flops: peak.half,
            float32_flops: peak.float32,
            memory_bytes_per_sec: row.1 * 1e9,
            memory_bytes: row.2 * GIB,
            link_bytes_per_sec: row.3 * 1e9,
            flops_share: GPU_FLOPS_SHARE,
            memory_share: MEMORY_SHARE,
            launch_secs: GPU_LAUNCH_SECS,
            source: row.4,
        })
    }

    fn cpu(gflops: Option<f64>) -> Result<Self> {
        let Some(gflops) = gflops else {
            return Err(usage_error(
                "--gpu cpu needs --gflops, the measured rate of matrix products; --from-run \
                 OUT_DIR prints it for a finished run",
            ));
        };
        Ok(Self {
            name: "cpu".to_owned(),
            bfloat16_flops: gflops * 1e9,
            float32_flops: gflops * 1e9,
            // One channel of DDR4-3200 per two cores; assumed unless --memory-gbytes is given.
            memory_bytes_per_sec: 25.6e9,
            memory_bytes: memory_of_this_machine(),
            // Processes on one machine copy through memory. Assumed.
            link_bytes_per_sec: 5e9,
            flops_share: 1.0,
            memory_share: MEMORY_SHARE,
            launch_secs: 0.0,
            source: "--gflops; memory rate assumed",
        })
    }

    /// Expected rate of matrix products in operations per second.
    pub fn reached_flops(&self, is_bfloat16: bool) -> f64 {
        let peak = if is_bfloat16 { self.bfloat16_flops } else { self.float32_flops };
        peak * self.flops_share
    }

    /// Expected rate of memory traffic in bytes per second.
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
    fn devices_are_found_by_name_and_unknown_names_are_refused() {
        assert_eq!(Device::find("H100", None, None).unwrap().name, "h100");
        for (name, said) in [("h1000", "h100, a100"), ("cpu", "--gflops")] {
            let error = Device::find(name, None, None).unwrap_err();
            assert!(error.is::<UsageError>() && error.to_string().contains(said), "{error}");
        }
        let cpu = Device::find("cpu", Some(140.0), Some(10.0)).unwrap();
        assert_eq!((cpu.reached_flops(false), cpu.reached_memory()), (140e9, 10e9));
    }
}
