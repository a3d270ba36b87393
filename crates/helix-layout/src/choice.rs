//! Which of the legal layouts of N ranks to run, when the user names only N.

use crate::{Layout, LayoutError, LayoutSpec, MAX_RANKS, ModelShape, QkvMode, Rank, Strategy};

/// Elements that one rank reads to decode one token of one sequence, by what they are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reads {
    /// W_q, W_k and W_v over all layers.
    pub qkv: u64,
    /// Output projections over all layers.
    pub out: u64,
    /// Gate, up and down projections over all layers.
    pub ffn: u64,
    /// Its rows of the LM head.
    pub head: u64,
    /// Keys and values of its heads and positions, over all layers.
    pub kv: u64,
}

impl Reads {
    /// What `rank` reads to decode one token after `context` others. Norms are left out.
    pub fn of(layout: &Layout, rank: Rank, context: usize) -> Self {
        let shape = layout.shape();
        let [layers, hidden] = [shape.layers, shape.hidden].map(|x| x as u64);
        let weights = |columns: usize| (layers * hidden).saturating_mul(columns as u64);
        let stored = layout.owned_before(layout.attention(rank).kvp, context) as u64;
        let kv_width = 2 * layout.kv_heads(rank).len() * shape.head_dim;
        Self {
            qkv: weights(layout.qkv_share(rank).iter().map(|rows| rows.len()).sum()),
            out: weights(layout.out_cols(rank).len()),
            ffn: weights(3 * layout.ffn_cols(rank).len()),
            head: hidden * layout.vocab_rows(rank).len() as u64,
            kv: (layers * kv_width as u64).saturating_mul(stored),
        }
    }
}

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
        let layers = (reads.qkv as f64) + (reads.out as f64) + (reads.ffn as f64);
        (layers * self.weight_bits + reads.head as f64 * self.head_bits) / 8.0
    }

    fn kv_bytes(&self, reads: &Reads) -> f64 {
        reads.kv as f64 * self.kv_bits / 8.0
    }
}

/// What the user fixed of a layout, when not its degrees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Preference {
    /// Ranks, exactly.
    pub ranks: usize,
    /// The strategy.
    pub strategy: Strategy,
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
/// sequence shards. It counts replicated weights for every rank that reads them, though ranks of
/// one process may share their memory. It is a rule about bytes, not a model of time.
pub fn choose(
    shape: &ModelShape,
    preference: &Preference,
    cost: &ReadCost,
) -> Result<Choice, LayoutError> {
    cost.validate()?;
    let &Preference { ranks, strategy, kv_block, qkv } = preference;
    if ranks == 0 {
        return Err(LayoutError::NoRanks { max: MAX_RANKS });
    }
    if ranks > MAX_RANKS {
        return Err(LayoutError::TooManyRanks { what: format!("{ranks} ranks"), max: MAX_RANKS });
    }
    let (kvp, tpa) = if strategy == Strategy::Tp { (1, ranks) } else { (ranks, 1) };
    let always_legal = LayoutSpec { kv_block, ..LayoutSpec::new(strategy, kvp, tpa) };
    Layout::new(shape, always_legal)?;

    let modes = QkvMode::ALL.into_iter().filter(|m| qkv.is_none_or(|fixed| fixed == *m));
    let mut scored: Vec<Score> = modes
        .flat_map(|mode| Layout::candidates(shape, ranks, strategy, kv_block, mode))
        // With nobody to gather from, the modes are one: keep the plain one unless told.
        .filter(|l| l.degrees().kvp > 1 || qkv.is_some() || l.qkv() == QkvMode::Replicate)
        .map(|layout| Score::new(layout, cost))
        .collect();
    scored.sort_by(Score::compare);
    Ok(Choice { layout: scored[0].layout, reason: reason(&scored, cost) })
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
        let bytes = layout.all_ranks().map(|rank| {
            let reads = Reads::of(&layout, rank, cost.context);
            (cost.weight_bytes(&reads), cost.kv_bytes(&reads))
        });
        let busiest = bytes.max_by(|a, b| (a.0 + a.1).total_cmp(&(b.0 + b.1)));
        let (weight_bytes, kv_bytes) = busiest.expect("a layout has a rank");
        let collectives = layout.shape().layers * layout.collectives_per_layer();
        let total = weight_bytes + kv_bytes + collectives as f64 * cost.collective_bytes;
        Self { layout, weight_bytes, kv_bytes, collectives, total }
    }

    fn compare(&self, other: &Self) -> std::cmp::Ordering {
        let kvp = |s: &Self| s.layout.degrees().kvp;
        (self.total.total_cmp(&other.total))
            .then(self.collectives.cmp(&other.collectives))
            .then(kvp(self).cmp(&kvp(other)))
    }

    fn reads_mb(&self) -> f64 {
        (self.weight_bytes + self.kv_bytes) / 1e6
    }
}

/// Why the first of `scored` won.
fn reason(scored: &[Score], cost: &ReadCost) -> String {
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
    text += &match scored.get(1) {
        None => "no other layout of as many ranks is legal.".to_owned(),
        Some(next) => format!(
            "next is {}: {:.1} MB ({:.1} + {:.1}), {} collectives.",
            next.layout,
            next.reads_mb(),
            next.weight_bytes / 1e6,
            next.kv_bytes / 1e6,
            next.collectives,
        ),
    };
    text += &format!(
        " Chosen by bytes read, each collective counted as {:.0} KB, not by measured time.",
        cost.collective_bytes / 1e3,
    );
    text
}

#[cfg(test)]
mod tests;
