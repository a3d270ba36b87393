//! Which of the legal layouts of N ranks to run, when the user names only N.

use crate::reads::experts_of_busiest_group;
use crate::{
    Degrees, Layout, LayoutError, LayoutSpec, MAX_RANKS, ModelShape, PartialDegrees, QkvMode,
    Reads, Strategy,
};
use std::time::Duration;

/// What reads cost, to choose a layout by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ReadCost {
    /// Bits per weight of the layers' matrices, scales included (5.0 for Q4_1).
    pub weight_bits: f64,
    /// Bits per weight of the LM head.
    pub head_bits: f64,
    /// Bits per element of the KV cache (16.0 for f16).
    pub kv_bits: f64,
    /// Positions of the sequence to choose for.
    pub context: usize,
    /// Bytes that a rank could have read in the time that one collective takes.
    pub collective_bytes: f64,
}

impl ReadCost {
    /// The price of a collective between threads of one process: some 4 us at 16 GB/s.
    pub const IN_PROCESS_COLLECTIVE_BYTES: f64 = 65536.0;

    /// The price of a collective over links of such a latency, at the same 16 GB/s.
    pub fn collective_bytes_over(latency: Duration) -> f64 {
        Self::IN_PROCESS_COLLECTIVE_BYTES + 16e9 * latency.as_secs_f64()
    }

    fn validate(&self) -> Result<(), LayoutError> {
        let rates = [
            ("a weight size in bits", self.weight_bits),
            ("an LM head weight size in bits", self.head_bits),
            ("a KV element size in bits", self.kv_bits),
        ];
        let wrong = rates.into_iter().find(|(_, v)| !(v.is_finite() && *v > 0.0));
        if let Some((name, value)) = wrong {
            return Err(LayoutError::ReadCost { name, value, least: "above 0" });
        }
        let value = self.collective_bytes;
        if !(value.is_finite() && value >= 0.0) {
            let name = "a collective's price in bytes";
            return Err(LayoutError::ReadCost { name, value, least: "of at least 0" });
        }
        Ok(())
    }

    fn weight_bytes(&self, reads: &Reads) -> f64 {
        let layers = reads.layer_weights() as f64 * self.weight_bits;
        (layers + reads.head as f64 * self.head_bits) / 8.0
    }

    fn kv_bytes(&self, reads: &Reads) -> f64 {
        reads.kv as f64 * self.kv_bits / 8.0
    }
}

/// What the user fixed of a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preference {
    /// Ranks, exactly.
    pub ranks: usize,
    /// The strategy.
    pub strategy: Strategy,
    /// Degrees; chosen where `None`.
    pub degrees: PartialDegrees,
    /// Consecutive positions that one rank owns.
    pub kv_block: usize,
    /// How ranks come by Q, K and V; chosen too where `None`.
    pub qkv: Option<QkvMode>,
}

/// A layout that was chosen, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The layout.
    pub layout: Layout,
    /// The rule, its numbers and the runner-up, as a sentence or two for the user.
    pub reason: String,
}

/// Chooses among the legal layouts of exactly `preference.ranks` ranks.
///
/// The rule: the rank that reads most to decode one token should read least, counting each
/// collective as `cost.collective_bytes` more. Ties go to fewer collectives, then to fewer
/// sequence shards, then to fewer groups of experts. It counts replicated weights for every rank
/// that reads them, though ranks of one process may share their memory. It is a rule about bytes,
/// not a model of time.
///
/// Experts. A token of one sequence reads `top_k` experts of each MoE layer. Cut by columns
/// (`tpf`), each rank reads its part of every one of them. Dealt to groups (`ep`), they fall
/// unevenly, and all ranks wait for the group that has most: of 8 of 256 experts the busiest of 8
/// groups has 2.6 on average, not 1. So an expert's columns are counted as often as that group
/// has experts, the mean over all sets of `top_k`, for each rank that has any. Columns therefore
/// win wherever they cut evenly; an expert that is only a few weight blocks wide does not, and then
/// groups win. Many sequences at once touch most experts and even the groups out, in favour of
/// `ep`; this rule is for one.
///
/// MLA's one latent per token is read once, for keys and values, by the rank that owns the
/// position. Every rank with heads reads the matrices that compress the hidden state; of the
/// per-head projections it reads those of [`Layout::q_share`], and W_UV of the heads that it keeps
/// (applied after the exchange).
///
/// `dp-ep` is a baseline, not a search: unless told otherwise it has the grid of
/// [`Strategy::complete`].
pub fn choose(
    shape: &ModelShape,
    preference: &Preference,
    cost: &ReadCost,
) -> Result<Choice, LayoutError> {
    cost.validate()?;
    let &Preference { ranks, strategy, degrees, kv_block, qkv } = preference;
    if ranks == 0 {
        return Err(LayoutError::NoRanks { max: MAX_RANKS });
    }
    if ranks > MAX_RANKS {
        return Err(LayoutError::TooManyRanks { what: format!("{ranks} ranks"), max: MAX_RANKS });
    }
    let always_legal = strategy.complete(strategy.anywhere(ranks), shape);
    let plain = LayoutSpec { degrees: always_legal, kv_block, ..LayoutSpec::new(strategy, 1, 1) };
    Layout::new(shape, plain)?;

    let allowed = match (strategy, degrees) {
        (Strategy::DpEp, PartialDegrees { tpf: None, ep: None, .. }) => {
            let Degrees { tpf, ep, .. } = always_legal;
            PartialDegrees { tpf: Some(tpf), ep: Some(ep), ..degrees }
        }
        _ => degrees,
    };
    let modes = QkvMode::ALL.into_iter().filter(|m| qkv.is_none_or(|fixed| fixed == *m));
    let mut scored: Vec<Score> = modes
        .flat_map(|mode| Layout::candidates(shape, ranks, strategy, kv_block, mode))
        .filter(|layout| allowed.allow(&layout.degrees()))
        // With nobody to gather from, the modes are one: keep the plain one unless told.
        .filter(|l| l.degrees().kvp > 1 || qkv.is_some() || l.qkv() == QkvMode::Replicate)
        .map(|layout| Score::new(layout, cost))
        .collect();
    if scored.is_empty() {
        return Err(refusal(shape, preference, plain));
    }
    scored.sort_by(Score::compare);
    Ok(Choice { layout: scored[0].layout, reason: reason(&scored, preference, cost) })
}

/// Why no layout has the degrees that were named: what is wrong with one that has them, and is
/// otherwise like `plain`.
fn refusal(shape: &ModelShape, preference: &Preference, plain: LayoutSpec) -> LayoutError {
    let &Preference { ranks, strategy, degrees: named, .. } = preference;
    let anywhere = strategy.anywhere(ranks);
    let degrees = PartialDegrees {
        kvp: named.kvp.or(anywhere.kvp),
        tpa: named.tpa.or(anywhere.tpa),
        dp: named.dp.or(anywhere.dp),
        ..named
    };
    let degrees = strategy.complete(degrees, shape);
    match Layout::new(shape, LayoutSpec { degrees, ..plain }) {
        Err(error) => error,
        Ok(_) => LayoutError::RankCount { degrees, ranks },
    }
}

/// A candidate and what its busiest rank reads per decoded token.
struct Score {
    layout: Layout,
    weight_bytes: f64,
    kv_bytes: f64,
    collectives: usize,
    /// Bytes read and bytes that the collectives count for.
    total: f64,
}

impl Score {
    fn new(layout: Layout, cost: &ReadCost) -> Self {
        let ep = layout.degrees().ep;
        let busiest = layout.shape().moe.map_or(0.0, |moe| experts_of_busiest_group(&moe, ep));
        let bytes = layout.all_ranks().map(|rank| {
            let reads = Reads::with_experts(&layout, rank, cost.context, busiest);
            (cost.weight_bytes(&reads), cost.kv_bytes(&reads))
        });
        let busiest = bytes.max_by(|a, b| (a.0 + a.1).total_cmp(&(b.0 + b.1)));
        let (weight_bytes, kv_bytes) = busiest.expect("a layout has a rank");
        let collectives = layout.shape().layers * layout.collectives_per_layer();
        let total = weight_bytes + kv_bytes + collectives as f64 * cost.collective_bytes;
        Self { layout, weight_bytes, kv_bytes, collectives, total }
    }

    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        let [kvp, ep]: [fn(&Self) -> usize; 2] =
            [|s| s.layout.degrees().kvp, |s| s.layout.degrees().ep];
        (self.total.total_cmp(&other.total))
            .then(self.collectives.cmp(&other.collectives))
            .then(kvp(self).cmp(&kvp(other)))
            .then(ep(self).cmp(&ep(other)))
    }

    fn reads_mb(&self) -> f64 {
        (self.weight_bytes + self.kv_bytes) / 1e6
    }
}

/// Why the first of `scored` won.
fn reason(scored: &[Score], preference: &Preference, cost: &ReadCost) -> String {
    let best = &scored[0];
    let mut text = format!(
        "{}: its busiest rank reads {:.1} MB per decoded token at context {} \
         ({:.1} MB weights, {:.1} MB KV), with {} collectives; ",
        best.layout,
        best.reads_mb(),
        cost.context,
        best.weight_bytes / 1e6,
        best.kv_bytes / 1e6,
        best.collectives,
    );
    text += &match (scored.get(1), best.layout.strategy()) {
        (None, Strategy::DpEp) => "that is how dp-ep cuts unless told otherwise.".to_owned(),
        (None, _) if preference.degrees == PartialDegrees::default() => {
            "no other layout of as many ranks is legal.".to_owned()
        }
        (None, _) => "no other layout of as many ranks has the degrees asked for.".to_owned(),
        (Some(next), _) => format!(
            "next is {}: {:.1} MB ({:.1} + {:.1}), {} collectives.",
            next.layout,
            next.reads_mb(),
            next.weight_bytes / 1e6,
            next.kv_bytes / 1e6,
            next.collectives,
        ),
    };
    if let Some(moe) = best.layout.shape().moe {
        let ep = best.layout.degrees().ep;
        text += &format!(
            " Of a token's {} experts per layer the busiest of {ep} groups has {:.1} on average.",
            moe.top_k,
            experts_of_busiest_group(&moe, ep),
        );
    }
    text += &format!(
        " Chosen by bytes read, each collective counted as {:.0} KB, not by measured time.",
        cost.collective_bytes / 1e3,
    );
    text
}

#[cfg(test)]
pub(crate) mod tests;
