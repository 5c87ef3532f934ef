//! A mean that follows what is measured, and is not thrown off by one odd measurement.

/// A measurement this many times above or below the mean counts as just that far off.
const CLIP: f64 = 4.0;
/// The weight of a new measurement once many have been seen.
const FOLLOW: f64 = 0.05;
/// Measurements that the starting value is worth.
const START: f64 = 2.0;

/// An exponentially weighted mean of a positive quantity.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ewma {
    mean: f64,
    seen: u32,
}

impl Ewma {
    /// Begins at a guess.
    pub fn new(start: f64) -> Ewma {
        Ewma { mean: start, seen: 0 }
    }

    /// The mean.
    pub fn mean(self) -> f64 {
        self.mean
    }

    /// How often it was measured.
    pub fn seen(self) -> u32 {
        self.seen
    }

    /// Takes in a measurement; what is not positive and finite is left out.
    ///
    /// The first ones weigh more than later ones, so a wrong start is soon forgotten: within
    /// a dozen measurements even one that is a hundred times off.
    pub fn add(&mut self, value: f64) {
        if !value.is_finite() || value <= 0.0 {
            return;
        }
        // Clipping before there is a mean worth trusting would hold on to a wrong start.
        let clip = CLIP * (1.0 + 8.0 / (1.0 + f64::from(self.seen)));
        let value = value.clamp(self.mean / clip, self.mean * clip);
        let weight = (1.0 / (f64::from(self.seen) + START)).max(FOLLOW);
        self.mean += weight * (value - self.mean);
        self.seen = self.seen.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_start_is_soon_forgotten() {
        for start in [0.01, 1.0, 100.0] {
            let mut mean = Ewma::new(start);
            (0..60).for_each(|_| mean.add(1.0));
            assert!((0.5..2.0).contains(&mean.mean()), "from {start}: {}", mean.mean());
        }
    }

    #[test]
    fn one_odd_measurement_moves_it_little() {
        let mut mean = Ewma::new(1.0);
        (0..100).for_each(|_| mean.add(1.0));
        mean.add(1e9);
        assert!(mean.mean() < 1.25, "{}", mean.mean());
        mean.add(1e-9);
        assert!(mean.mean() > 1.0, "{}", mean.mean());
    }

    #[test]
    fn it_follows_a_change() {
        let mut mean = Ewma::new(1.0);
        (0..100).for_each(|_| mean.add(1.0));
        (0..60).for_each(|_| mean.add(3.0));
        assert!(mean.mean() > 2.8, "{}", mean.mean());
    }

    #[test]
    fn what_cannot_be_is_left_out() {
        let mut mean = Ewma::new(1.0);
        [f64::NAN, f64::INFINITY, 0.0, -1.0].into_iter().for_each(|v| mean.add(v));
        assert_eq!((mean.mean(), mean.seen()), (1.0, 0));
    }
}
