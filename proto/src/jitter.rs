//! Random pauses, so that a fleet does not come back in step.
//!
//! A simulation seeds its thread ([`seed`]): from then on the pauses of that thread are the same in every run.

use std::cell::RefCell;
use std::ops::RangeInclusive;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

thread_local! {
    static SEEDED: RefCell<Option<StdRng>> = const { RefCell::new(None) };
}

/// From here on, what this thread draws depends on this number alone.
pub fn seed(number: u64) {
    SEEDED.with_borrow_mut(|rng| *rng = Some(StdRng::seed_from_u64(number)));
}

/// This long, times a factor between those two.
pub fn spread(pause: Duration, factor: RangeInclusive<f64>) -> Duration {
    let drawn = SEEDED.with_borrow_mut(|seeded| match seeded {
        Some(rng) => rng.random_range(factor),
        None => rand::rng().random_range(factor),
    });
    pause.mul_f64(drawn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_pauses_within_the_range() {
        let draw = || {
            seed(7);
            [(); 8].map(|()| spread(Duration::from_secs(1), 0.5..=1.0))
        };
        let first = draw();
        assert_eq!(first, draw());
        assert!(
            first
                .iter()
                .all(|p| (Duration::from_millis(500)..=Duration::from_secs(1)).contains(p))
        );
        assert!(first.iter().any(|p| *p != first[0]), "{first:?}");
    }
}
