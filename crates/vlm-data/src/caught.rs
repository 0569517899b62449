//! Turns the panics of decoders on damaged input into errors. Decoders of other crates should not
//! panic, but some do.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::ordered_map::panic_message;

thread_local! {
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether a panic of this thread becomes an error about the file or row that is read. A panic hook
/// should then report nothing.
pub fn is_panic_caught() -> bool {
    DEPTH.get() > 0
}

/// The result of `read`, or the message of its panic.
pub(crate) fn caught<T>(read: impl FnOnce() -> T) -> Result<T, String> {
    DEPTH.set(DEPTH.get() + 1);
    let result = catch_unwind(AssertUnwindSafe(read));
    DEPTH.set(DEPTH.get() - 1);
    result.map_err(|panic| panic_message(panic.as_ref()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_message_and_is_known_while_it_is_raised() {
        let nested = caught(|| (is_panic_caught(), caught(|| panic!("index 7"))));
        assert_eq!(nested, Ok((true, Err::<(), _>("index 7".to_owned()))));
        assert!(!is_panic_caught());
    }
}
