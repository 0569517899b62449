use std::time::{Duration, Instant};

use tch::{Device, Kind, Tensor};
use vlm_torch::{Profiler, span};

/// Waits without giving up the processor.
fn work(time: Duration) {
    let started = Instant::now();
    while started.elapsed() < time {
        std::hint::spin_loop();
    }
}

#[test]
fn a_trace_has_operators_and_spans_whose_times_do_not_include_inner_ones() {
    let folder = tempfile::tempdir().unwrap();
    let trace = folder.path().join("trace.json");
    drop(span("before the recording"));
    let profiler = Profiler::start(Device::Cpu).unwrap();
    assert!(Profiler::start(Device::Cpu).is_err());
    let started = Instant::now();
    {
        let _outer = span("outer part");
        work(Duration::from_millis(5));
        let _inner = span("inner part");
        work(Duration::from_millis(20));
        let x = Tensor::ones([64, 64], (Kind::Float, Device::Cpu)).set_requires_grad(true);
        x.matmul(&x).sum(Kind::Float).backward();
    }
    let whole = started.elapsed();
    let times = profiler.finish(&trace).unwrap();
    let names: Vec<_> = times.iter().map(|time| time.name).collect();
    assert_eq!(names, ["inner part", "outer part"]);
    let [inner, outer] = [times[0].own, times[1].own];
    assert!(inner >= Duration::from_millis(20) && outer >= Duration::from_millis(5));
    assert!(inner + outer <= whole, "{inner:?} {outer:?} {whole:?}");

    let text = std::fs::read_to_string(&trace).unwrap();
    for name in ["inner part", "outer part", "aten::mm", "aten::sum", "MmBackward0"] {
        assert!(text.contains(name), "{name} is not in the trace");
    }
    assert!(!text.contains("before the recording"));
    // A dropped profiler ends the recording, too.
    drop(Profiler::start(Device::Cpu).unwrap());
    drop(Profiler::start(Device::Cpu).unwrap());
}
