use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Device, Kind};
use vlm_torch::{autocast, autocast_kind};

use crate::random;

/// The dtype of a product of two float32 matrices under the current autocast state.
fn matmul_kind() -> Kind {
    random(&[4, 4]).matmul(&random(&[4, 4])).kind()
}

#[test]
fn products_are_bfloat16_inside_and_float32_outside() {
    assert_eq!(autocast(Device::Cpu, Some(Kind::BFloat16), matmul_kind).unwrap(), Kind::BFloat16);
    assert_eq!(matmul_kind(), Kind::Float);
}

#[test]
fn nested_scopes_restore_the_outer_state() {
    assert_eq!(autocast_kind(Device::Cpu).unwrap(), None);
    autocast(Device::Cpu, Some(Kind::BFloat16), || {
        assert_eq!(autocast_kind(Device::Cpu).unwrap(), Some(Kind::BFloat16));
        assert_eq!(autocast(Device::Cpu, None, matmul_kind).unwrap(), Kind::Float);
        assert_eq!(autocast(Device::Cpu, Some(Kind::Half), matmul_kind).unwrap(), Kind::Half);
        assert_eq!(matmul_kind(), Kind::BFloat16);
    })
    .unwrap();
}

#[test]
fn the_state_is_restored_after_a_panic() {
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        autocast(Device::Cpu, Some(Kind::BFloat16), || panic!("inside the scope"))
    }));
    assert!(panicked.is_err());
    assert_eq!(matmul_kind(), Kind::Float);
}

#[test]
fn unsupported_kinds_and_devices_are_refused() {
    let error = autocast(Device::Cpu, Some(Kind::Int64), || ()).unwrap_err().to_string();
    assert_eq!(error, "autocast: kind Int64; expected BFloat16 or Half");
    assert!(autocast(Device::Mps, None, || ()).is_err());
}
