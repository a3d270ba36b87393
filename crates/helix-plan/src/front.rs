//! What nothing else is better than in both of two things.

/// Points of which none has both coordinates at least as large as another's. Of points that are
/// equal in both the one of the least value stays, so that the order of adding decides nothing.
#[derive(Clone, Debug, PartialEq)]
pub struct Front<T> {
    /// Ascending in `x`, so descending in `y`.
    points: Vec<(f64, f64, T)>,
}

impl<T> Default for Front<T> {
    fn default() -> Self {
        Front { points: Vec::new() }
    }
}

impl<T: Copy + PartialOrd> Front<T> {
    /// Adds a point unless one of the front is better, or as good and no greater in value; drops
    /// those that it beats.
    pub fn add(&mut self, x: f64, y: f64, value: T) {
        let at = self.points.partition_point(|(other, ..)| *other < x);
        // The next one to the right has the largest y of all that have at least this x.
        if let Some(&(next_x, next_y, next)) = self.points.get(at) {
            let equal = next_x == x && next_y == y;
            if next_y >= y && !(equal && value < next) {
                return;
            }
        }
        let same = usize::from(self.points.get(at).is_some_and(|(other, ..)| *other == x));
        let beaten = self.points[..at].iter().rev().take_while(|(_, other, _)| *other <= y).count();
        self.points.splice(at - beaten..at + same, [(x, y, value)]);
    }

    /// Adds all points of another.
    pub fn merge(&mut self, other: &Front<T>) {
        other.points.iter().for_each(|&(x, y, value)| self.add(x, y, value));
    }

    /// Ascending in the first, descending in the second.
    pub fn points(&self) -> impl ExactSizeIterator<Item = (f64, f64, T)> + '_ {
        self.points.iter().copied()
    }

    /// The point with the largest `x`.
    pub fn largest_x(&self) -> Option<(f64, f64, T)> {
        self.points.last().copied()
    }

    /// The point with the largest `y` of those whose `x` is at least `least`.
    pub fn best_y(&self, least: f64) -> Option<(f64, f64, T)> {
        let at = self.points.partition_point(|(x, ..)| *x < least);
        self.points.get(at).copied()
    }

    /// The point with the largest `x` of those whose `y` is at least `least`.
    pub fn best_x(&self, least: f64) -> Option<(f64, f64, T)> {
        let end = self.points.partition_point(|(_, y, _)| *y >= least);
        end.checked_sub(1).map(|at| self.points[at])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn nothing_on_it_is_beaten_and_nothing_off_it_beats(
            points in prop::collection::vec((0u8..20, 0u8..20), 0..60)
        ) {
            let mut front = Front::default();
            for (index, &(x, y)) in points.iter().enumerate() {
                front.add(x.into(), y.into(), index);
            }
            let all: Vec<(f64, f64)> =
                points.iter().map(|&(x, y)| (x.into(), y.into())).collect();
            let beats = |a: (f64, f64), b: (f64, f64)| a.0 >= b.0 && a.1 >= b.1 && a != b;
            let mut expected: Vec<_> =
                all.iter().copied().filter(|&p| !all.iter().any(|&q| beats(q, p))).collect();
            expected.sort_by(|a, b| a.0.total_cmp(&b.0));
            expected.dedup();
            let found: Vec<_> = front.points().map(|(x, y, _)| (x, y)).collect();
            prop_assert_eq!(&found, &expected);
            for least in 0..20 {
                let least = f64::from(least);
                let y = all.iter().filter(|p| p.0 >= least).map(|p| p.1).fold(-1.0, f64::max);
                prop_assert_eq!(front.best_y(least).map_or(-1.0, |p| p.1), y);
                let x = all.iter().filter(|p| p.1 >= least).map(|p| p.0).fold(-1.0, f64::max);
                prop_assert_eq!(front.best_x(least).map_or(-1.0, |p| p.0), x);
            }
            // Another order, and in two parts: the same points, each with its least value.
            let mut parts = [Front::default(), Front::default()];
            for (index, &(x, y)) in points.iter().enumerate().rev() {
                parts[index % 2].add(x.into(), y.into(), index);
            }
            let [mut merged, odd] = parts;
            merged.merge(&odd);
            prop_assert_eq!(&merged, &front);
            for (x, y, value) in front.points() {
                prop_assert_eq!(Some(value), all.iter().position(|&point| point == (x, y)));
            }
        }
    }
}
