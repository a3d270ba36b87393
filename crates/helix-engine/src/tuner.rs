//! How many pieces HOP-B's `auto` makes of a batch: the number that a pipeline of them is done
//! soonest with, by what the links and attention were measured to take.
//!
//! A piece costs its attention and an overhead; its message leaves behind the one before, and is
//! there a latency later (LogGP without the gap between small messages). More pieces hide more of
//! the bytes and pay more overheads. The measurements are sums over all ranks, so that all decide
//! alike; they change no bits.

use crate::comms::Comms;
use crate::hopb::MAX_PIECES;
use helix_comm::{Comm, CommError, Counts};
use helix_layout::pieces;
use std::time::{Duration, Instant};

/// Numbers of pieces that are tried.
const CANDIDATES: [usize; 11] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, MAX_PIECES];
/// More pieces have to be worth so much of a layer's time; measurements are no better.
const WORTH: f64 = 0.02;
/// What another piece costs beside its message: the ends of a line of attention, where threads wait
/// for each other, and a merge's start.
const PIECE_SECONDS: f64 = 5e-6;
/// Links are measured by the fastest of so many all-to-alls, of one value and of many.
const PINGS: usize = 8;
const MANY: usize = 32 << 10;
/// Attention's speed is shared after steps 1, 2, 4, and so on, and at least this often.
const SHARE_EVERY: u64 = 64;

/// What steps are told apart by: reading the cache bounds decoding, arithmetic bounds prompts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Decode,
    Prompt,
}

/// What an exchange takes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Link {
    /// Of the processor, per message.
    overhead: f64,
    latency: f64,
    seconds_per_value: f64,
}

/// Measures and decides, on one rank as on all others.
pub(crate) struct Tuner {
    /// Values of the largest message of a KVP group.
    room: usize,
    link: Option<Link>,
    /// Seconds per unit of cost, by [`Kind`]; none before there was a step to measure.
    rates: [Option<f64>; 2],
    /// Of this rank since the last time that measurements were shared: seconds and cost, by
    /// [`Kind`].
    own: [[f64; 2]; 2],
    steps: u64,
}

/// Units of cost that count as one, so that sums of them stay exact enough in f32.
const COST: f64 = 1e6;

impl Tuner {
    pub(crate) fn new(room: usize) -> Tuner {
        Tuner { room, link: None, rates: [None; 2], own: [[0.0; 2]; 2], steps: 0 }
    }

    /// Before the first step: what the rank's links take. All ranks come here together.
    pub(crate) fn measure_links(&mut self, comms: &mut Comms) -> Result<(), CommError> {
        if self.link.is_some() {
            return Ok(());
        }
        let group = comms.kvp.uncounted();
        let members = group.size();
        let many = (self.room / members).min(MANY);
        let (mut one, mut long, mut overhead) = (f64::MAX, f64::MAX, f64::MAX);
        for _ in 0..PINGS {
            let (took, busy) = ping(group, 1.min(many))?;
            one = one.min(took);
            overhead = overhead.min(busy);
            long = long.min(ping(group, many)?.0);
        }
        let per_value = (long - one).max(0.0) / ((many.max(2) - 1) * (members - 1).max(1)) as f64;
        let mut found = [overhead, one, per_value * COST].map(|value| value as f32);
        let world = comms.world.uncounted();
        world.all_reduce(&mut found)?;
        let ranks = world.size() as f64;
        let [overhead, latency, per_value] = found.map(|value| f64::from(value) / ranks);
        self.link = Some(Link { overhead, latency, seconds_per_value: per_value / COST });
        Ok(())
    }

    /// After each step: what attention took on this rank.
    pub(crate) fn record(&mut self, kind: Kind, took: Duration, cost: u64) {
        let [seconds, costs] = &mut self.own[kind as usize];
        *seconds += took.as_secs_f64();
        *costs += cost as f64 / COST;
        self.steps += 1;
    }

    /// Now and then, on all ranks after the same step: what it took on all.
    pub(crate) fn share(&mut self, comms: &mut Comms) -> Result<(), CommError> {
        if !(self.steps.is_power_of_two() || self.steps.is_multiple_of(SHARE_EVERY)) {
            return Ok(());
        }
        let [[a, b], [c, d]] = std::mem::take(&mut self.own);
        let mut sums = [a, b, c, d].map(|sum| sum as f32);
        comms.world.uncounted().all_reduce(&mut sums)?;
        for (rate, sums) in self.rates.iter_mut().zip(sums.as_chunks::<2>().0) {
            if sums[1] > 0.0 {
                *rate = Some(f64::from(sums[0]) / f64::from(sums[1]));
            }
        }
        Ok(())
    }

    /// The best number of pieces for units of such costs, whose outputs are `values` values that
    /// leave a rank; `ends` is scratch.
    pub(crate) fn pieces(
        &self,
        kind: Kind,
        costs: &[u64],
        values: usize,
        ends: &mut Vec<usize>,
    ) -> usize {
        let (Some(link), Some(rate)) = (self.link, self.rates[kind as usize]) else { return 1 };
        let mut best = (1, f64::MAX);
        for pieces in CANDIDATES {
            if pieces > costs.len() {
                break;
            }
            pieces::cut(ends, costs, pieces);
            let time = link.pipeline(costs, ends, rate / COST, values);
            if time < best.1 * (1.0 - WORTH) {
                best = (pieces, time);
            }
        }
        best.0
    }
}

impl Link {
    /// Seconds from the start of a layer's attention until the last piece is there.
    fn pipeline(&self, costs: &[u64], ends: &[usize], rate: f64, values: usize) -> f64 {
        let total: u64 = costs.iter().sum();
        let (mut now, mut left, mut landed, mut start) = (0f64, 0f64, 0f64, 0);
        for &end in ends {
            let cost: u64 = costs[start..end].iter().sum();
            now += cost as f64 * rate + PIECE_SECONDS + self.overhead;
            let share = cost as f64 / total.max(1) as f64;
            left = left.max(now) + share * values as f64 * self.seconds_per_value;
            landed = left + self.latency;
            start = end;
        }
        landed
    }
}

/// An all-to-all of `values` for each member: how long it takes, and how long its start does.
fn ping(group: &mut impl Comm, values: usize) -> Result<(f64, f64), CommError> {
    let counts = vec![values; group.size()];
    let counts = Counts { send: &counts, recv: &counts };
    let before = Instant::now();
    let pending = group.start_all_to_all(counts, |message| message.fill(0.0))?;
    let started = before.elapsed();
    group.finish(pending, |_| ())?;
    Ok((before.elapsed().as_secs_f64(), started.as_secs_f64()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Attention takes 1 us per unit of cost.
    fn tuner(latency: f64, seconds_per_value: f64) -> Tuner {
        let link = Link { overhead: 1e-6, latency, seconds_per_value };
        Tuner { link: Some(link), rates: [Some(1e-6 * COST); 2], ..Tuner::new(0) }
    }

    fn pieces(tuner: &Tuner, costs: &[u64], values: usize) -> usize {
        tuner.pieces(Kind::Decode, costs, values, &mut Vec::new())
    }

    #[test]
    fn pieces_are_worth_it_where_bytes_take_long() {
        // Eight requests of 2 ms, and 1.2 ms of bytes each: the paper's figure 3.
        let slow = tuner(0.0, 1e-6);
        assert_eq!(pieces(&slow, &[2000; 8], 9600), 8);
        let link = slow.link.unwrap();
        let time = |ends: &[usize]| link.pipeline(&[2000; 8], ends, 1e-6, 9600);
        assert!((time(&[8]) - 25.6e-3).abs() < 1e-4, "{}", time(&[8]));
        assert!((time(&[1, 2, 3, 4, 5, 6, 7, 8]) - 17.2e-3).abs() < 1e-4);
        // Bytes that take no time leave a latency, which more pieces hide no more of.
        assert_eq!(pieces(&tuner(200e-6, 0.0), &[2000; 8], 9600), 1);
        assert_eq!(pieces(&tuner(1e-6, 1e-12), &[20; 8], 9600), 1);
        // One request and one KV head can't be cut; nothing is known before the first step.
        assert_eq!(pieces(&slow, &[2000], 9600), 1);
        assert_eq!(pieces(&Tuner::new(0), &[2000; 8], 9600), 1);
    }
}
