//! What rank 0 knows of the clocks of ranks that are processes: by round trips.
//!
//! A rank's clock counts from an instant of its own. Rank 0 asks for it and takes the answer for the
//! middle of the round trip, which is wrong by half of it at most (Cristian's algorithm); the
//! shortest of several counts. Clocks drift, so what lies between two such looks is interpolated.

use crate::EngineError;
use crate::protocol::{Command, Time};
use helix_comm::World;
use std::time::{Duration, Instant};

/// Round trips of one look.
const TRIPS: usize = 32;

/// The shortest round trip between rank 0 and each of the other ranks. For rank 0, when the others
/// [`follow`](crate::follow).
///
/// # Errors
/// Ranks lost each other.
pub fn round_trips(world: &dyn World, patience: Duration) -> Result<Vec<Duration>, EngineError> {
    let looks = (1..world.size()).map(|rank| Ok(look(world, rank, patience)?.trip));
    looks.collect()
}

/// Another rank's clock as it was at some time of rank 0's.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// In the middle of the round trip.
    at: Instant,
    /// What the other clock showed.
    nanos: u64,
    trip: Duration,
}

/// From another rank's clock to this one's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ClockFit {
    first: Look,
    last: Look,
}

fn look(world: &dyn World, rank: usize, patience: Duration) -> Result<Look, EngineError> {
    let lost = |source| EngineError::World { rank: 0, source };
    let (mut command, mut reply) = (Vec::new(), Vec::new());
    Command::Clock.write(&mut command);
    let mut best: Option<Look> = None;
    for _ in 0..TRIPS {
        let sent = Instant::now();
        world.tell(&mut std::iter::once(rank), &command, patience).map_err(lost)?;
        world.reply_of(rank, &mut reply, patience).map_err(lost)?;
        let trip = sent.elapsed();
        let Time(nanos) = Time::read(&reply).ok_or(EngineError::Protocol { rank })?;
        if best.is_none_or(|best| trip < best.trip) {
            best = Some(Look { at: sent + trip / 2, nanos, trip });
        }
    }
    Ok(best.expect("there was a round trip"))
}

impl ClockFit {
    /// A first look at the clock of `rank`.
    pub(crate) fn new(
        world: &dyn World,
        rank: usize,
        patience: Duration,
    ) -> Result<ClockFit, EngineError> {
        let first = look(world, rank, patience)?;
        Ok(ClockFit { first, last: first })
    }

    /// Looks again.
    pub(crate) fn renew(
        &mut self,
        world: &dyn World,
        rank: usize,
        patience: Duration,
    ) -> Result<(), EngineError> {
        self.last = look(world, rank, patience)?;
        Ok(())
    }

    /// By how much [`ClockFit::here`] is wrong at most, if clocks drift evenly.
    pub(crate) fn uncertainty(&self) -> Duration {
        self.first.trip.max(self.last.trip) / 2
    }

    /// When the other clock showed `nanos`, on this one.
    pub(crate) fn here(&self, nanos: u64) -> Instant {
        let ClockFit { first, last } = self;
        let passed = (last.nanos - first.nanos) as f64;
        let speed =
            if passed > 0.0 { (last.at - first.at).as_nanos() as f64 / passed } else { 1.0 };
        let since = Duration::from_nanos(nanos.abs_diff(first.nanos)).mul_f64(speed);
        match nanos >= first.nanos {
            true => first.at + since,
            false => first.at.checked_sub(since).unwrap_or(first.at),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clocks_that_started_elsewhere_and_run_at_another_speed_are_read() {
        let at = Instant::now() + Duration::from_secs(10);
        let look = |ms: u64, nanos: u64| Look {
            at: at + Duration::from_millis(ms),
            nanos,
            trip: Duration::from_micros(ms),
        };
        // 1000 ms here are 1001 ms there.
        let fit = ClockFit { first: look(2, 7_000_000), last: look(1002, 1_008_000_000) };
        let near = |nanos, ms: f64| {
            let expected = at + Duration::from_secs_f64(ms / 1e3);
            let here = fit.here(nanos);
            let off = expected.max(here) - expected.min(here);
            assert!(off < Duration::from_nanos(10), "{nanos}: off by {off:?}");
        };
        near(7_000_000, 2.0);
        near(1_008_000_000, 1002.0);
        near(507_500_000, 502.0);
        near(1_008_000_000 + 1_001_000, 1003.0);
        near(7_000_000 - 1_001_000, 1.0);
        assert_eq!(fit.uncertainty(), Duration::from_micros(501));
        let once = ClockFit { first: look(0, 5), last: look(0, 5) };
        assert_eq!(once.here(1005), at + Duration::from_nanos(1000));
    }
}
