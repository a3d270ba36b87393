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

/// A rank's index in a layout: `tpa_index · kvp + kvp_index`.
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
/// Ranges of successive ranks that tile a whole (`out_heads`, `ffn_cols`, `vocab_rows`) do so in
/// rank order: each starts where the one before ended. Any of them may be empty.
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
        let LayoutSpec { degrees, strategy, kv_block, .. } = spec;
        let Degrees { kvp, tpa, tpf, ep } = degrees;
        if [kvp, tpa, tpf, ep].contains(&0) {
            return Err(LayoutError::ZeroDegree { degrees });
        }
        if degrees.attention_ranks().max(degrees.ffn_ranks()) > MAX_RANKS {
            return Err(LayoutError::TooManyRanks { what: degrees.to_string(), max: MAX_RANKS });
        }
        if !(1..=MAX_KV_BLOCK).contains(&kv_block) {
            return Err(LayoutError::KvBlock { kv_block, max: MAX_KV_BLOCK });
        }
        let nearest = || Nearest::to(degrees, strategy, shape);
        if ep != 1 {
            return Err(LayoutError::Dense { ep, nearest: nearest() });
        }
        let (fits, rule) = match strategy {
            Strategy::Helix => (tpf == kvp * tpa, "the same ranks in both"),
            Strategy::Tp => (kvp == 1 && tpf == tpa, "kvp=1 and tpf=tpa"),
            Strategy::Medha => (tpf == tpa, "tpf=tpa"),
        };
        if !fits {
            return Err(LayoutError::Grid { degrees, strategy, rule, nearest: nearest() });
        }
        if tpa > shape.kv_heads && strategy != Strategy::Tp {
            let (kv_heads, ranks) = (shape.kv_heads, degrees.attention_ranks());
            return Err(LayoutError::KvHeads {
                tpa,
                kv_heads,
                ranks,
                strategy,
                nearest: nearest(),
            });
        }
        Ok(Self { shape: *shape, spec })
    }

    /// Every legal layout of exactly `ranks`, fewest sequence shards first. Empty where `ranks`,
    /// the block or the shape is not legal for any.
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
        let Degrees { kvp, tpa, .. } = self.spec.degrees;
        assert!(at.kvp < kvp && at.tpa < tpa, "{at:?} is not a place in {self}");
        Rank(at.tpa * kvp + at.kvp)
    }

    /// Where `rank` stands in attention.
    pub fn attention(&self, rank: Rank) -> AttentionCoord {
        assert!(rank.0 < self.ranks(), "rank {rank} is not one of {self}");
        let kvp = self.spec.degrees.kvp;
        AttentionCoord { kvp: rank.0 % kvp, tpa: rank.0 / kvp }
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

    /// The query heads whose merged output `rank` keeps; over all ranks they tile the model's.
    pub fn out_heads(&self, rank: Rank) -> Range<usize> {
        let q = self.q_heads(rank);
        let AttentionCoord { kvp, .. } = self.attention(rank);
        let part = match self.spec.strategy {
            Strategy::Medha if kvp == 0 => 0..q.len(),
            Strategy::Medha => q.len()..q.len(),
            Strategy::Helix | Strategy::Tp => split(q.len(), self.spec.degrees.kvp, 1, kvp),
        };
        q.start + part.start..q.start + part.end
    }

    /// The input columns of the output projection that `rank` holds: those of its `out_heads`,
    /// rounded out to whole weight blocks. Where two ranks overlap, each multiplies the columns
    /// of heads that are not its own by zeros.
    pub fn out_cols(&self, rank: Rank) -> Range<usize> {
        let ModelShape { q_heads, head_dim, out_block, .. } = self.shape;
        let heads = self.out_heads(rank);
        let (start, end) = (heads.start * head_dim, heads.end * head_dim);
        if heads.is_empty() {
            return start..start;
        }
        let rounded = end.next_multiple_of(out_block).min(q_heads * head_dim);
        start / out_block * out_block..rounded
    }

    /// The rows of W_q, W_k and W_v that `rank` multiplies, as row ranges of the whole matrices.
    ///
    /// With [`QkvMode::Replicate`] its whole slice. With [`QkvMode::Gather`] one run of the
    /// slice's rows laid end to end as `[q; k; v]`, cut in [`ROW_GRANULE`] rows, so that the
    /// shares of a KVP group in rank order are that whole. Each range may be empty.
    pub fn qkv_share(&self, rank: Rank) -> [Range<usize>; 3] {
        let HeadSlice { q, kv } = self.heads(rank);
        let rows =
            [q, kv.clone(), kv].map(|h| h.start * self.shape.head_dim..h.end * self.shape.head_dim);
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

    /// The FFN columns that `rank` holds, in whole weight blocks.
    pub fn ffn_cols(&self, rank: Rank) -> Range<usize> {
        let ModelShape { ffn, ffn_block, .. } = self.shape;
        let tpf = self.spec.degrees.tpf;
        match self.ffn(rank) {
            Some(at) => split(ffn, tpf, ffn_block, at.tpf),
            None => self.nothing_after(rank, |first| self.ffn_cols(first)),
        }
    }

    /// The rows of the LM head that `rank` holds, [`ROW_GRANULE`] at a time.
    pub fn vocab_rows(&self, rank: Rank) -> Range<usize> {
        match self.dense_index(rank) {
            Some(index) => split(self.shape.vocab, self.dense_ranks(), ROW_GRANULE, index),
            None => self.nothing_after(rank, |first| self.vocab_rows(first)),
        }
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

    /// Collectives that each layer costs: the all-to-all and gather inside a KVP group, and the
    /// two all-reduces over every rank.
    pub fn collectives_per_layer(&self) -> usize {
        let in_group = match self.spec.qkv {
            _ if self.spec.degrees.kvp == 1 => 0,
            QkvMode::Replicate => 1,
            QkvMode::Gather => 2,
        };
        in_group + if self.ranks() > 1 { 2 } else { 0 }
    }

    fn blocks(&self) -> Blocks {
        Blocks { shards: self.spec.degrees.kvp, block: self.spec.kv_block }
    }

    fn heads(&self, rank: Rank) -> HeadSlice {
        HeadSlice::of(&self.shape, self.spec.degrees.tpa, self.attention(rank).tpa)
    }

    /// How many ranks cut the matrices that are dense: all of them, or medha's fixed group.
    fn dense_ranks(&self) -> usize {
        self.spec.degrees.ffn_ranks()
    }

    /// Which of the `dense_ranks` `rank` is.
    fn dense_index(&self, rank: Rank) -> Option<usize> {
        let at = self.attention(rank);
        match self.spec.strategy {
            Strategy::Helix | Strategy::Tp => Some(rank.0),
            Strategy::Medha => (at.kvp == 0).then_some(at.tpa),
        }
    }

    /// An empty range at the end of what the first rank of `rank`'s KVP group has: all still tile.
    fn nothing_after(&self, rank: Rank, range: impl Fn(Rank) -> Range<usize>) -> Range<usize> {
        let end = range(Rank(self.kvp_group(rank).start)).end;
        end..end
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.spec.fmt(f)
    }
}

#[cfg(test)]
mod tests;
