//! The proof, and what it says of each rank.

use std::fmt;
use std::ops::Range;

use crate::blocks::Blocks;
use crate::heads::HeadSlice;
use crate::nearest::{Nearest, legal_degrees};
use crate::{
    Degrees, LayoutError, LayoutSpec, MAX_KV_BLOCK, MAX_RANKS, ModelShape, QkvMode, ROW_GRANULE,
    Strategy, split,
};

/// A rank's index in a layout: `(dp_index · tpa + tpa_index) · kvp + kvp_index`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rank(pub usize);

impl fmt::Display for Rank {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A rank's place in attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct AttentionCoord {
    /// Which shard of the sequence.
    pub kvp: usize,
    /// Which slice of the heads.
    pub tpa: usize,
    /// Which of the groups that have sequences of their own.
    pub dp: usize,
}

/// A rank's place in the FFN.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FfnCoord {
    /// Which slice of the columns.
    pub tpf: usize,
    /// Which group of experts.
    pub ep: usize,
}

/// A way to cut a model over ranks that is known to be legal. Holding one is the proof.
///
/// Ranges of successive ranks that tile a whole (`out_heads`, `ffn_cols`, `shared_cols`,
/// `vocab_rows`) do so in rank order: each starts where the one before ended. Any of them may be
/// empty. Under `dp-ep`, attention is whole on every rank and tiles nothing.
///
/// A model without experts has empty ranges of them.
///
/// Methods panic if the rank is not one of the layout's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Layout {
    shape: ModelShape,
    spec: LayoutSpec,
}

impl Layout {
    /// Proves that `spec` is legal for a model of `shape`, or says why it is not.
    pub fn new(shape: &ModelShape, spec: LayoutSpec) -> Result<Self, LayoutError> {
        shape.validate()?;
        let LayoutSpec { degrees, kv_block, .. } = spec;
        let Degrees { kvp, tpa, dp, tpf, ep } = degrees;
        if [kvp, tpa, dp, tpf, ep].contains(&0) {
            return Err(LayoutError::ZeroDegree { degrees });
        }
        if degrees.attention_ranks().max(degrees.ffn_ranks()) > MAX_RANKS {
            return Err(LayoutError::TooManyRanks { what: degrees.to_string(), max: MAX_RANKS });
        }
        if !(1..=MAX_KV_BLOCK).contains(&kv_block) {
            return Err(LayoutError::KvBlock { kv_block, max: MAX_KV_BLOCK });
        }
        check_degrees(shape, degrees, spec.strategy)?;
        Ok(Self { shape: *shape, spec })
    }

    /// Every legal layout of exactly `ranks`, fewest sequence shards and then fewest groups of
    /// experts first. Empty where `ranks`, the block or the shape is not legal for any.
    pub fn candidates(
        shape: &ModelShape,
        ranks: usize,
        strategy: Strategy,
        kv_block: usize,
        qkv: QkvMode,
    ) -> Vec<Self> {
        let specs = legal_degrees(shape, strategy, ranks).into_iter().map(|degrees| LayoutSpec {
            degrees,
            strategy,
            kv_block,
            qkv,
        });
        specs.filter_map(|spec| Self::new(shape, spec).ok()).collect()
    }

    /// The shape of the model that this layout cuts.
    pub fn shape(&self) -> &ModelShape {
        &self.shape
    }

    /// What was asked for to get this layout.
    pub fn spec(&self) -> LayoutSpec {
        self.spec
    }

    /// How many ways each phase is cut.
    pub fn degrees(&self) -> Degrees {
        self.spec.degrees
    }

    /// The strategy.
    pub fn strategy(&self) -> Strategy {
        self.spec.strategy
    }

    /// Consecutive positions that one KVP index owns.
    pub fn kv_block(&self) -> usize {
        self.spec.kv_block
    }

    /// How the ranks of a KVP group come by Q, K and V.
    pub fn qkv(&self) -> QkvMode {
        self.spec.qkv
    }

    /// For example `helix kvp=2 tpa=1 tpf=2 ep=1 block=16 qkv=gather`.
    pub fn name(&self) -> String {
        self.spec.to_string()
    }

    /// The number of ranks.
    pub fn ranks(&self) -> usize {
        self.spec.degrees.attention_ranks()
    }

    /// Every rank, in order.
    pub fn all_ranks(&self) -> impl ExactSizeIterator<Item = Rank> + use<> {
        (0..self.ranks()).map(Rank)
    }

    /// The rank at a place in attention.
    pub fn rank(&self, at: AttentionCoord) -> Rank {
        let Degrees { kvp, tpa, dp, .. } = self.spec.degrees;
        let inside = at.kvp < kvp && at.tpa < tpa && at.dp < dp;
        assert!(inside, "{at:?} is not a place in {self}");
        Rank((at.dp * tpa + at.tpa) * kvp + at.kvp)
    }

    /// Where `rank` stands in attention.
    pub fn attention(&self, rank: Rank) -> AttentionCoord {
        assert!(rank.0 < self.ranks(), "rank {rank} is not one of {self}");
        let Degrees { kvp, tpa, .. } = self.spec.degrees;
        let slice = rank.0 / kvp;
        AttentionCoord { kvp: rank.0 % kvp, tpa: slice % tpa, dp: slice / tpa }
    }

    /// Where `rank` stands in the FFN; nowhere, for a medha rank past the first sequence shard.
    pub fn ffn(&self, rank: Rank) -> Option<FfnCoord> {
        let tpf = self.spec.degrees.tpf;
        let index = self.dense_index(rank)?;
        Some(FfnCoord { tpf: index % tpf, ep: index / tpf })
    }

    /// The ranks that share `rank`'s slice of the heads, in order of their sequence shards.
    pub fn kvp_group(&self, rank: Rank) -> Range<usize> {
        let first = self.rank(AttentionCoord { kvp: 0, ..self.attention(rank) }).0;
        first..first + self.spec.degrees.kvp
    }

    /// Whether `rank` computes attention for the sequence in `slot`, and stores its KV: each
    /// attention group has its own slots, in turn. Always, where there is but one group.
    pub fn attends(&self, rank: Rank, slot: usize) -> bool {
        slot % self.spec.degrees.dp == self.attention(rank).dp
    }

    /// The query heads whose partial attention `rank` computes.
    ///
    /// Up to K slices they follow the KV heads, which are cut as evenly as they go. Past K, under
    /// `tp` alone, slices that have the same KV head part its queries; some may get none.
    pub fn q_heads(&self, rank: Rank) -> Range<usize> {
        self.heads(rank).q
    }

    /// The KV heads that `rank` stores, of the positions it owns: those that its query heads use.
    pub fn kv_heads(&self, rank: Rank) -> Range<usize> {
        self.heads(rank).kv
    }

    /// The query heads whose projection `rank` computes: all of its slice. But under
    /// [`QkvMode::Gather`] the ranks of a KVP group part MLA's, whose projection of a head is a
    /// product of several matrices, by whole heads; other models' rows are parted by
    /// [`Layout::qkv_share`].
    pub fn q_share(&self, rank: Rank) -> Range<usize> {
        let q = self.q_heads(rank);
        match (self.shape.mla, self.spec.qkv) {
            (None, _) | (_, QkvMode::Replicate) => q,
            (Some(_), QkvMode::Gather) => {
                let Degrees { kvp, .. } = self.spec.degrees;
                let part = split(q.len(), kvp, 1, self.attention(rank).kvp);
                q.start + part.start..q.start + part.end
            }
        }
    }

    /// The query heads whose merged output `rank` keeps; over all ranks they tile the model's.
    pub fn out_heads(&self, rank: Rank) -> Range<usize> {
        let q = self.q_heads(rank);
        let AttentionCoord { kvp, .. } = self.attention(rank);
        let part = match self.spec.strategy {
            Strategy::Medha if kvp == 0 => 0..q.len(),
            Strategy::Medha => q.len()..q.len(),
            Strategy::Helix | Strategy::Tp | Strategy::DpEp => {
                split(q.len(), self.spec.degrees.kvp, 1, kvp)
            }
        };
        q.start + part.start..q.start + part.end
    }

    /// The input columns of the output projection that `rank` holds: those of its `out_heads`,
    /// rounded out to whole weight blocks. Where two ranks overlap, each multiplies the columns
    /// of heads that are not its own by zeros.
    pub fn out_cols(&self, rank: Rank) -> Range<usize> {
        let ModelShape { q_heads, value_dim, out_block, .. } = self.shape;
        let heads = self.out_heads(rank);
        let (start, end) = (heads.start * value_dim, heads.end * value_dim);
        if heads.is_empty() {
            return start..start;
        }
        let rounded = end.next_multiple_of(out_block).min(q_heads * value_dim);
        start / out_block * out_block..rounded
    }

    /// The rows of W_q, W_k and W_v that `rank` multiplies, as row ranges of the whole matrices.
    ///
    /// With [`QkvMode::Replicate`] its whole slice. With [`QkvMode::Gather`] one run of the
    /// slice's rows laid end to end as `[q; k; v]`, cut in [`ROW_GRANULE`] rows, so that the
    /// shares of a KVP group in rank order are that whole. Each range may be empty.
    ///
    /// MLA: the rows that make the heads of `q_share` from the (compressed) hidden state; all rows
    /// that make the latent, which every rank computes; and none.
    pub fn qkv_share(&self, rank: Rank) -> [Range<usize>; 3] {
        let HeadSlice { q, kv } = self.heads(rank);
        let of = |h: &Range<usize>, width: usize| h.start * width..h.end * width;
        let ModelShape { head_dim, value_dim, .. } = self.shape;
        if self.shape.mla.is_some() {
            return [of(&self.q_share(rank), self.shape.q_dim()), of(&kv, head_dim), 0..0];
        }
        let rows = [of(&q, head_dim), of(&kv, head_dim), of(&kv, value_dim)];
        let share = match self.spec.qkv {
            QkvMode::Replicate => return rows,
            QkvMode::Gather => {
                let total = rows.iter().map(|r| r.len()).sum();
                let Degrees { kvp, .. } = self.spec.degrees;
                split(total, kvp, ROW_GRANULE, self.attention(rank).kvp)
            }
        };
        let mut offset = 0;
        rows.map(|rows| {
            let within = |row: usize| rows.start + row.saturating_sub(offset).min(rows.len());
            let cut = within(share.start)..within(share.end);
            offset += rows.len();
            cut
        })
    }

    /// The columns of dense layers' FFN that `rank` holds, in whole weight blocks: cut over all
    /// ranks of the FFN, whatever its grid.
    pub fn ffn_cols(&self, rank: Rank) -> Range<usize> {
        self.dense(rank, self.shape.ffn, self.shape.ffn_block)
    }

    /// The columns of the shared experts that `rank` holds, cut like those of a dense FFN.
    pub fn shared_cols(&self, rank: Rank) -> Range<usize> {
        let moe = self.shape.moe;
        moe.map_or(0..0, |moe| self.dense(rank, moe.shared_ffn, moe.shared_block))
    }

    /// The rows of the LM head that `rank` holds, [`ROW_GRANULE`] at a time.
    pub fn vocab_rows(&self, rank: Rank) -> Range<usize> {
        self.dense(rank, self.shape.vocab, ROW_GRANULE)
    }

    /// The routed experts of `rank`'s group. Groups need not be even; past one expert per group
    /// the last ones have none.
    pub fn experts(&self, rank: Rank) -> Range<usize> {
        match (self.shape.moe, self.ffn(rank)) {
            (Some(moe), Some(at)) => split(moe.experts, self.spec.degrees.ep, 1, at.ep),
            _ => 0..0,
        }
    }

    /// The columns that `rank` holds of each of its `experts`, in whole weight blocks.
    pub fn expert_cols(&self, rank: Rank) -> Range<usize> {
        match (self.shape.moe, self.ffn(rank)) {
            (Some(moe), Some(at)) => split(moe.ffn, self.spec.degrees.tpf, moe.block, at.tpf),
            _ => 0..0,
        }
    }

    /// The ranks that part the same experts' columns, `rank` among them, in the columns' order.
    /// Nobody for a rank outside the FFN.
    pub fn expert_group(&self, rank: Rank) -> impl ExactSizeIterator<Item = Rank> + use<> {
        let tpf = self.spec.degrees.tpf;
        let first = self.ffn(rank).map(|at| at.ep * tpf);
        self.dense_members(first.map_or(0..0, |first| first..first + tpf), 1)
    }

    /// The ranks that hold the same columns of other experts, `rank` among them, one of each group
    /// in their order. Nobody for a rank outside the FFN.
    pub fn ep_peers(&self, rank: Rank) -> impl ExactSizeIterator<Item = Rank> + use<> {
        let Degrees { tpf, ep, .. } = self.spec.degrees;
        let tpf_index = self.ffn(rank).map(|at| at.tpf);
        self.dense_members(tpf_index.map_or(0..0, |index| index..index + tpf * ep), tpf)
    }

    /// The KVP index that stores `position`.
    pub fn owner(&self, position: usize) -> usize {
        self.blocks().owner(position)
    }

    /// How many of the positions `0..len` KVP index `kvp` stores: its local length, and the local
    /// index of position `len` if it owns that.
    pub fn owned_before(&self, kvp: usize, len: usize) -> usize {
        assert!(kvp < self.spec.degrees.kvp, "kvp index {kvp} is not one of {self}");
        self.blocks().owned_before(kvp, len)
    }

    /// The position at local index `local` of KVP index `kvp`: the inverse of `owned_before`.
    pub fn position(&self, kvp: usize, local: usize) -> usize {
        assert!(kvp < self.spec.degrees.kvp, "kvp index {kvp} is not one of {self}");
        self.blocks().position(kvp, local).expect("a position that is stored has a number")
    }

    fn blocks(&self) -> Blocks {
        Blocks { shards: self.spec.degrees.kvp, block: self.spec.kv_block }
    }

    fn heads(&self, rank: Rank) -> HeadSlice {
        HeadSlice::of(&self.shape, self.spec.degrees.tpa, self.attention(rank).tpa)
    }

    /// Which of the FFN's ranks `rank` is, counted through groups of experts and then columns.
    fn dense_index(&self, rank: Rank) -> Option<usize> {
        let at = self.attention(rank);
        match self.spec.strategy {
            Strategy::Helix | Strategy::Tp | Strategy::DpEp => Some(rank.0),
            Strategy::Medha => (at.kvp == 0).then_some(at.tpa),
        }
    }

    /// The ranks whose `dense_index` is every `step`th of `indices`.
    fn dense_members(
        &self,
        indices: Range<usize>,
        step: usize,
    ) -> impl ExactSizeIterator<Item = Rank> + use<> {
        let stride = match self.spec.strategy {
            Strategy::Helix | Strategy::Tp | Strategy::DpEp => 1,
            Strategy::Medha => self.spec.degrees.kvp,
        };
        indices.step_by(step).map(move |index| Rank(index * stride))
    }

    /// `rank`'s run of something that all ranks of the FFN cut alike. A rank outside it has
    /// nothing, at the end of what the first of its KVP group has: so all still tile.
    fn dense(&self, rank: Rank, total: usize, granule: usize) -> Range<usize> {
        let parts = self.spec.degrees.ffn_ranks();
        match self.dense_index(rank) {
            Some(index) => split(total, parts, granule, index),
            None => {
                let end = self.dense(Rank(self.kvp_group(rank).start), total, granule).end;
                end..end
            }
        }
    }
}

/// Whether `degrees`, each at least 1, are the strategy's and fit the model's heads and experts.
fn check_degrees(
    shape: &ModelShape,
    degrees: Degrees,
    strategy: Strategy,
) -> Result<(), LayoutError> {
    let Degrees { kvp, tpa, dp, tpf, ep } = degrees;
    let nearest = || Nearest::to(degrees, strategy, shape);
    if ep != 1 && shape.moe.is_none() {
        return Err(LayoutError::Dense { ep, nearest: nearest() });
    }
    if dp != 1 && strategy != Strategy::DpEp {
        return Err(LayoutError::DataParallel { dp, strategy, nearest: nearest() });
    }
    let same = degrees.attention_ranks() == degrees.ffn_ranks();
    let (fits, rule) = match (strategy, shape.moe) {
        (Strategy::Helix, _) => (same, "the same ranks in both"),
        (Strategy::Tp, None) => (kvp == 1 && tpf == tpa, "kvp=1 and tpf=tpa"),
        (Strategy::Tp, Some(_)) => (kvp == 1 && tpf == tpa && ep == 1, "kvp=1, tpf=tpa and ep=1"),
        (Strategy::Medha, None) => (tpf == tpa, "tpf=tpa"),
        (Strategy::Medha, Some(_)) => (tpf * ep == tpa, "tpf·ep=tpa"),
        (Strategy::DpEp, _) => {
            (kvp == 1 && tpa == 1 && same, "kvp=1 and tpa=1, and the same ranks in both")
        }
    };
    if !fits {
        return Err(LayoutError::Grid { degrees, strategy, rule, nearest: nearest() });
    }
    let (kv_heads, ranks) = (shape.kv_heads, degrees.attention_ranks());
    if tpa > kv_heads && strategy != Strategy::Tp {
        return Err(LayoutError::KvHeads { tpa, kv_heads, ranks, strategy, nearest: nearest() });
    }
    Ok(())
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(f)
    }
}

#[cfg(test)]
mod tests;
