use std::panic::{AssertUnwindSafe, catch_unwind};

use tch::{Device, Kind};
use vlm_torch::{autocast, is_autocast};

use crate::random;

/// The dtype in which a product of two f32 matrices comes out here and now.
fn matmul_kind() -> Kind {
    random(&[4, 4]).matmul(&random(&[4, 4])).kind()
}

#[test]
fn products_are_bf16_inside_and_f32_outside() {
    assert_eq!(autocast(Device::Cpu, Some(Kind::BFloat16), matmul_kind).unwrap(), Kind::BFloat16);
    assert_eq!(matmul_kind(), Kind::Float);
}

#[test]
fn nested_scopes_restore_the_outer_one() {
    assert!(!is_autocast(Device::Cpu).unwrap());
    autocast(Device::Cpu, Some(Kind::BFloat16), || {
        assert!(is_autocast(Device::Cpu).unwrap());
        assert_eq!(autocast(Device::Cpu, None, matmul_kind).unwrap(), Kind::Float);
        assert_eq!(autocast(Device::Cpu, Some(Kind::Half), matmul_kind).unwrap(), Kind::Half);
        assert_eq!(matmul_kind(), Kind::BFloat16);
    })
    .unwrap();
}

#[test]
fn panic_inside_restores_the_state() {
    let panicked = catch_unwind(AssertUnwindSafe(|| {
        autocast(Device::Cpu, Some(Kind::BFloat16), || panic!("inside the scope"))
    }));
    assert!(panicked.is_err());
    assert_eq!(matmul_kind(), Kind::Float);
}

#[test]
fn other_kinds_and_devices_are_refused() {
    let error = autocast(Device::Cpu, Some(Kind::Int64), || ()).unwrap_err().to_string();
    assert_eq!(error, "autocast: kind Int64; expected BFloat16 or Half");
    assert!(autocast(Device::Mps, None, || ()).is_err());
}
