//! Draws training samples in background threads while the model trains, in a fixed order.

use std::ops::ControlFlow;
use std::thread;

use vlm_data::OrderedMap;

/// Calls `make(0)` to `make(count - 1)` on `num_threads` threads, and `consume` with the results in
/// order on the calling thread. Only a few results are made ahead. `consume` may end the loop.
///
/// # Errors
/// The first error of `make` or `consume`; nothing is consumed after it.
pub(super) fn draw_ahead<T: Send, E: Send>(
    count: usize,
    num_threads: usize,
    make: impl Fn(usize) -> Result<T, E> + Sync,
    mut consume: impl FnMut(usize, T) -> Result<ControlFlow<()>, E>,
) -> Result<(), E> {
    const AHEAD_PER_THREAD: usize = 4;
    let ahead = AHEAD_PER_THREAD * num_threads.max(1);
    thread::scope(|scope| {
        let mut drawn = OrderedMap::start_scoped(scope, num_threads, &make);
        (0..count.min(ahead)).for_each(|index| drawn.submit(index));
        let mut index = 0;
        while let Some(made) = drawn.wait_next() {
            if index + ahead < count {
                drawn.submit(index + ahead);
            }
            if consume(index, made?)?.is_break() {
                break;
            }
            index += 1;
        }
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_in_order_for_any_number_of_threads() {
        for num_threads in [1, 2, 3] {
            let mut seen = Vec::new();
            let make = |index: usize| Ok::<_, ()>(index * index);
            let collect = |index, square| {
                seen.push((index, square));
                Ok(ControlFlow::Continue(()))
            };
            draw_ahead(20, num_threads, make, collect).unwrap();
            assert_eq!(seen, (0..20).map(|index| (index, index * index)).collect::<Vec<_>>());
        }
    }

    #[test]
    fn first_error_ends_the_loop() {
        let make = |index: usize| if index == 5 { Err("five") } else { Ok(index) };
        let mut last = None;
        let ended = draw_ahead(1000, 2, make, |index, _| {
            last = Some(index);
            Ok(ControlFlow::Continue(()))
        });
        assert_eq!((ended, last), (Err("five"), Some(4)));
    }
}
