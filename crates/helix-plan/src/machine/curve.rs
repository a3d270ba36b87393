//! Measured points, and what lies between and beyond them.

/// Points `(at, value)`, ascending.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Curve {
    points: Vec<Point>,
}

type Point = (f64, f64);

impl Curve {
    /// Points that were checked: as many of both, and ascending.
    pub(super) fn new(at: &[f64], values: impl IntoIterator<Item = f64>) -> Self {
        Self { points: at.iter().copied().zip(values).collect() }
    }

    /// Where the points are.
    pub(super) fn loads(&self) -> Vec<f64> {
        self.points.iter().map(|(at, _)| *at).collect()
    }

    /// Linear between points; beyond them as at the last on that side.
    pub(super) fn within(&self, at: f64) -> f64 {
        match self.segment(at) {
            Ok((from, to)) => line(from, to, at),
            Err((_, value)) => value,
        }
    }

    /// Linear between points; before the first as there, and past the last in proportion: what is
    /// bound by arithmetic, or by a link, grows as its load does.
    pub(super) fn growing(&self, at: f64) -> f64 {
        match self.segment(at) {
            Ok((from, to)) => line(from, to, at),
            Err((last, value)) => value * (at / last).max(1.0),
        }
    }

    /// The points around `at`, or the one that it is beyond.
    fn segment(&self, at: f64) -> Result<(Point, Point), Point> {
        let after = self.points.partition_point(|(point, _)| *point <= at);
        match after {
            0 => Err(self.points[0]),
            _ if after == self.points.len() => Err(self.points[after - 1]),
            _ => Ok((self.points[after - 1], self.points[after])),
        }
    }
}

fn line(from: Point, to: Point, at: f64) -> f64 {
    from.1 + (to.1 - from.1) * (at - from.0) / (to.0 - from.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_are_joined_by_lines() {
        let curve = Curve::new(&[1.0, 2.0, 4.0], [10.0, 20.0, 10.0]);
        for (at, within, growing) in [
            (0.5, 10.0, 10.0),
            (1.0, 10.0, 10.0),
            (1.5, 15.0, 15.0),
            (3.0, 15.0, 15.0),
            (4.0, 10.0, 10.0),
            (8.0, 10.0, 20.0),
        ] {
            assert_eq!((curve.within(at), curve.growing(at)), (within, growing), "{at}");
        }
        let one = Curve::new(&[2.0], [3.0]);
        assert_eq!((one.growing(1.0), one.growing(4.0)), (3.0, 6.0));
    }
}
