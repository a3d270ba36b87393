//! What a search varies: how a model is cut over ranks, pipeline stages included, and how it runs.

use helix_layout::{
    Degrees, LayoutError, LayoutSpec, MAX_RANKS, ModelShape, PartialDegrees, QkvMode, Strategy,
};
use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};
use std::fmt;

use crate::costs::{Choices, FfnReduce, MlaUp, Tokens, can_dispatch};

/// A way to run a model on some ranks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// How each stage's ranks cut its layers. Clusters run more combinations than
    /// [`helix_layout::Layout`] has: attention groups of several ranks under `helix`.
    pub spec: LayoutSpec,
    /// Pipeline stages, each with a run of the layers.
    pub pp: usize,
    /// What is chosen beside the layout.
    pub choices: Choices,
    /// Whether a request's all-to-all runs while the next one's attention does.
    pub hopb: bool,
}

/// Why a placement cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlacementError {
    /// A degree of zero.
    #[error("every degree is at least 1")]
    Zero,
    /// More stages than layers.
    #[error("pp={pp} is more stages than the model has layers: {layers}")]
    Stages {
        /// Stages.
        pp: usize,
        /// Layers.
        layers: usize,
    },
    /// Attention and FFN do not run on the ranks that the strategy says.
    #[error("{degrees} is no grid of {strategy}, which needs {rule}")]
    Grid {
        /// Degrees.
        degrees: Degrees,
        /// Strategy.
        strategy: Strategy,
        /// What it needs.
        rule: &'static str,
    },
    /// More slices of heads than KV heads, in a strategy that duplicates none.
    #[error(
        "tpa={tpa} is more than the model's {kv_heads} KV heads, and {strategy} duplicates none"
    )]
    KvHeads {
        /// Slices.
        tpa: usize,
        /// KV heads.
        kv_heads: usize,
        /// Strategy.
        strategy: Strategy,
    },
    /// Groups of experts of a model that has none.
    #[error("ep={ep} spreads experts, and this model is dense: use ep=1")]
    Dense {
        /// Groups.
        ep: usize,
    },
    /// More groups than experts.
    #[error("ep={ep} is more groups than a layer has experts: {experts}")]
    Experts {
        /// Groups.
        ep: usize,
        /// Experts of a layer.
        experts: usize,
    },
}

impl Placement {
    /// All ranks, of all stages.
    pub fn ranks(&self) -> usize {
        self.spec.degrees.attention_ranks().saturating_mul(self.pp)
    }

    /// What orders placements of one search, no two of which have the same: fewer ranks, the
    /// plainer strategy, nothing to hide, fewer stages, plain choices, fewer shards, fewer groups.
    pub(crate) fn simplicity(&self) -> impl Ord + use<> {
        let LayoutSpec { degrees, strategy, qkv, .. } = self.spec;
        let plainest_first = [Strategy::Tp, Strategy::DpEp, Strategy::Medha, Strategy::Helix];
        let Choices { mla_up, ffn_reduce, tokens, .. } = self.choices;
        (
            self.ranks(),
            plainest_first.into_iter().position(|plain| plain == strategy),
            self.hopb,
            self.pp,
            [
                qkv != QkvMode::Replicate,
                tokens != Tokens::Gathered,
                mla_up != MlaUp::After,
                ffn_reduce != FfnReduce::World,
            ],
            [degrees.kvp, degrees.dp, degrees.ep],
        )
    }

    /// Whether a model of `shape` can be run so.
    ///
    /// # Errors
    /// It cannot; the message says why.
    pub fn check(&self, shape: &ModelShape) -> Result<(), PlacementError> {
        let LayoutSpec { degrees, strategy, .. } = self.spec;
        let Degrees { kvp, tpa, dp, tpf, ep } = degrees;
        if [kvp, tpa, dp, tpf, ep, self.pp].contains(&0) {
            return Err(PlacementError::Zero);
        }
        if self.pp > shape.layers {
            return Err(PlacementError::Stages { pp: self.pp, layers: shape.layers });
        }
        match shape.moe.map(|moe| moe.experts) {
            None if ep > 1 => return Err(PlacementError::Dense { ep }),
            Some(experts) if ep > experts => return Err(PlacementError::Experts { ep, experts }),
            _ => {}
        }
        let (fits, rule) = fits(&degrees, strategy);
        if !fits {
            return Err(PlacementError::Grid { degrees, strategy, rule });
        }
        let kv_heads = shape.kv_heads;
        if tpa > kv_heads && strategy != Strategy::Tp {
            return Err(PlacementError::KvHeads { tpa, kv_heads, strategy });
        }
        Ok(())
    }
}

fn fits(degrees: &Degrees, strategy: Strategy) -> (bool, &'static str) {
    let &Degrees { kvp, tpa, dp, tpf, ep } = degrees;
    let same = degrees.attention_ranks() == degrees.ffn_ranks();
    match strategy {
        Strategy::Helix => (same, "kvp·tpa·dp = tpf·ep"),
        Strategy::Tp => (kvp == 1 && dp == 1 && tpf == tpa && ep == 1, "kvp=1, tpf=tpa, ep=1"),
        Strategy::Medha => (dp == 1 && degrees.ffn_ranks() == tpa, "tpf·ep = tpa"),
        Strategy::DpEp => (kvp == 1 && tpa == 1 && same, "kvp=1, tpa=1, tpf·ep = dp"),
    }
}

/// As [`LayoutSpec`], with stages and HOP-B, and with choices that are not the usual ones.
impl fmt::Display for Placement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let LayoutSpec { degrees, strategy, qkv, .. } = self.spec;
        write!(f, "{strategy} {degrees}")?;
        if self.pp > 1 {
            write!(f, " pp={}", self.pp)?;
        }
        if degrees.kvp > 1 {
            write!(f, " qkv={qkv} hopb={}", if self.hopb { "on" } else { "off" })?;
        }
        let Choices { mla_up, ffn_reduce, tokens, .. } = self.choices;
        if mla_up == MlaUp::Before {
            write!(f, " mla-up={mla_up}")?;
        }
        if ffn_reduce == FfnReduce::Grid {
            write!(f, " ffn-reduce={ffn_reduce}")?;
        }
        if tokens == Tokens::Dispatched {
            write!(f, " tokens={tokens}")?;
        }
        Ok(())
    }
}

impl Serialize for Placement {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let LayoutSpec { degrees, strategy, kv_block, qkv } = self.spec;
        let Degrees { kvp, tpa, dp, tpf, ep } = degrees;
        let mut out = serializer.serialize_struct("Placement", 14)?;
        out.serialize_field("strategy", &strategy.to_string())?;
        out.serialize_field("ranks", &self.ranks())?;
        out.serialize_field("kvp", &kvp)?;
        out.serialize_field("tpa", &tpa)?;
        out.serialize_field("tpf", &tpf)?;
        out.serialize_field("ep", &ep)?;
        out.serialize_field("pp", &self.pp)?;
        out.serialize_field("dp", &dp)?;
        out.serialize_field("kv_block", &kv_block)?;
        out.serialize_field("qkv", &qkv.to_string())?;
        out.serialize_field("hopb", &self.hopb)?;
        out.serialize_field("ffn_reduce", &self.choices.ffn_reduce.to_string())?;
        out.serialize_field("tokens", &self.choices.tokens.to_string())?;
        out.serialize_field("mla_up", &self.choices.mla_up.to_string())?;
        out.end()
    }
}

/// Which placements are tried.
#[derive(Clone, Debug)]
pub struct Space {
    /// Numbers of ranks.
    pub ranks: Vec<usize>,
    /// Methods.
    pub strategies: Vec<Strategy>,
    /// Degrees that are fixed.
    pub fixed: Fixed,
    /// Positions of a KV block.
    pub kv_block: usize,
    /// Of ranks that need the same Q, K and V; each mode where it is left open.
    pub qkv: Option<QkvMode>,
    /// With HOP-B or without; both where it is left open.
    pub hopb: Option<bool>,
    /// What every placement has in common beside its layout.
    pub choices: Choices,
    /// When latents become values; both where it is left open.
    pub mla_up: Option<MlaUp>,
}

/// Degrees that somebody fixed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the degrees'")]
pub struct Fixed {
    pub kvp: Option<usize>,
    pub tpa: Option<usize>,
    pub dp: Option<usize>,
    pub tpf: Option<usize>,
    pub ep: Option<usize>,
    pub pp: Option<usize>,
}

impl Fixed {
    fn allow(&self, degrees: &Degrees, pp: usize) -> bool {
        let &Degrees { kvp, tpa, dp, tpf, ep } = degrees;
        let pairs = [
            (self.kvp, kvp),
            (self.tpa, tpa),
            (self.dp, dp),
            (self.tpf, tpf),
            (self.ep, ep),
            (self.pp, pp),
        ];
        pairs.into_iter().all(|(fixed, is)| fixed.is_none_or(|fixed| fixed == is))
    }

    /// What attention's degrees or the FFN's are more ranks than, whatever the others are.
    fn too_many(&self) -> Option<LayoutError> {
        let stages = ("pp", self.pp);
        let attention = [("kvp", self.kvp), ("tpa", self.tpa), ("dp", self.dp), stages];
        let ffn = [("tpf", self.tpf), ("ep", self.ep), stages];
        [&attention[..], &ffn].into_iter().find_map(|degrees| {
            let fixed = degrees.iter().filter_map(|&(name, degree)| Some((name, degree?)));
            let ranks = fixed.clone().fold(1, |ranks: usize, (_, of)| ranks.saturating_mul(of));
            let names: Vec<String> = fixed.map(|(name, of)| format!("{name}={of}")).collect();
            let (what, max) = (names.join(" "), MAX_RANKS);
            (ranks > max).then_some(LayoutError::TooManyRanks { what, max })
        })
    }
}

impl Space {
    /// Everything over `ranks`.
    pub fn new(ranks: Vec<usize>) -> Space {
        Space {
            ranks,
            strategies: Strategy::ALL.to_vec(),
            fixed: Fixed::default(),
            kv_block: helix_layout::DEFAULT_KV_BLOCK,
            qkv: None,
            hopb: None,
            choices: Choices::default(),
            mla_up: None,
        }
    }

    /// Every legal placement of a model of `shape`, by number of ranks.
    pub fn placements(&self, shape: &ModelShape) -> Vec<Placement> {
        let mut all = Vec::new();
        for &ranks in &self.ranks {
            for pp in divisors(ranks).filter(|&pp| pp <= shape.layers) {
                for &strategy in &self.strategies {
                    for degrees in grids(shape, strategy, ranks / pp) {
                        if self.fixed.allow(&degrees, pp) {
                            self.variants(shape, strategy, degrees, pp, &mut all);
                        }
                    }
                }
            }
        }
        all
    }

    /// Why there is no legal placement: what is wrong with what was fixed, strategy by strategy.
    pub fn refusal(&self, shape: &ModelShape) -> String {
        if let Some(error) = self.fixed.too_many() {
            return error.to_string();
        }
        let Fixed { kvp, tpa, dp, tpf, ep, pp } = self.fixed;
        let pp = pp.unwrap_or(1);
        let reasons = self.strategies.iter().map(|&strategy| {
            let mut named = PartialDegrees { kvp, tpa, dp, tpf, ep };
            let rest = self.open_degree(strategy, &mut named, pp);
            let degrees = strategy.complete(named, shape);
            let spec = LayoutSpec { degrees, ..LayoutSpec::new(strategy, 1, 1) };
            let placement = Placement { spec, pp, choices: self.choices, hopb: false };
            match placement.check(shape) {
                Err(error) => format!("{strategy}: {error}"),
                Ok(()) => format!(
                    "{strategy}: {degrees} pp={pp} is {} ranks, and {rest}",
                    placement.ranks()
                ),
            }
        });
        reasons.collect::<Vec<_>>().join("; ")
    }

    /// Names the degree that takes up the ranks that others leave; says of which number of ranks.
    fn open_degree(&self, strategy: Strategy, named: &mut PartialDegrees, pp: usize) -> String {
        let most = self.ranks.iter().copied().max().unwrap_or(1);
        let taken = [named.kvp, named.tpa, named.dp, Some(pp)];
        let taken = taken.into_iter().flatten().fold(1, usize::saturating_mul);
        let open = match strategy {
            Strategy::Helix | Strategy::Medha if named.kvp.is_none() => &mut named.kvp,
            Strategy::DpEp if named.dp.is_none() => &mut named.dp,
            _ => &mut named.tpa,
        };
        if open.is_none() {
            *open = Some((most / taken.max(1)).max(1));
        }
        match self.ranks.as_slice() {
            [one] => format!("{one} were asked for"),
            several => format!("{} to {most} were asked for", several.first().unwrap_or(&1)),
        }
    }

    /// The ways to run one grid that differ.
    fn variants(
        &self,
        shape: &ModelShape,
        strategy: Strategy,
        degrees: Degrees,
        pp: usize,
        all: &mut Vec<Placement>,
    ) {
        let shards = degrees.kvp > 1;
        if strategy == Strategy::DpEp && can_dispatch(shape, &degrees) {
            let spec =
                LayoutSpec { degrees, kv_block: self.kv_block, ..LayoutSpec::new(strategy, 1, 1) };
            let choices = Choices { tokens: Tokens::Dispatched, ..self.choices };
            all.push(Placement { spec, pp, choices, hopb: false });
        }
        // Medha exposes its communication; without shards there is nothing to hide.
        let hides = shards && strategy != Strategy::Medha;
        let latent = shape.mla.is_some() && shards;
        let grid = degrees.tpf > 1 && degrees.ep > 1 && strategy != Strategy::Medha;
        let differ = shards || self.qkv.is_some();
        for qkv in open(QkvMode::ALL, differ, self.qkv, QkvMode::Replicate) {
            let spec = LayoutSpec { degrees, strategy, kv_block: self.kv_block, qkv };
            for hopb in open([true, false], hides, self.hopb, false) {
                let (ups, reduces) = (MlaUp::ALL, FfnReduce::ALL);
                for mla_up in open(ups, latent, self.mla_up, MlaUp::After) {
                    for ffn_reduce in open(reduces, grid, None, FfnReduce::World) {
                        let choices = Choices { mla_up, ffn_reduce, ..self.choices };
                        all.push(Placement { spec, pp, choices, hopb });
                    }
                }
            }
        }
    }
}

/// What a choice may be: the plain one where they do not `differ`, or else what is fixed, or all.
fn open<T: Copy + PartialEq>(
    all: [T; 2],
    differ: bool,
    fixed: Option<T>,
    plain: T,
) -> impl Iterator<Item = T> {
    let only = if differ { fixed } else { Some(plain) };
    all.into_iter().filter(move |&one| only.is_none_or(|only| one == only))
}

/// Every grid of a strategy over the ranks of one stage.
fn grids(shape: &ModelShape, strategy: Strategy, ranks: usize) -> Vec<Degrees> {
    let experts = shape.moe.map_or(1, |moe| moe.experts);
    let mut all = Vec::new();
    let attention = divisors(ranks)
        .flat_map(|dp| divisors(ranks / dp).map(move |tpa| (dp, tpa, ranks / dp / tpa)));
    for (dp, tpa, kvp) in attention {
        let legal = match strategy {
            Strategy::Helix => tpa <= shape.kv_heads,
            Strategy::Tp => dp == 1 && kvp == 1,
            Strategy::Medha => dp == 1 && tpa <= shape.kv_heads,
            Strategy::DpEp => tpa == 1 && kvp == 1,
        };
        if !legal {
            continue;
        }
        let parts = if strategy == Strategy::Medha { tpa } else { ranks };
        for ep in divisors(parts) {
            if ep > experts || (ep > 1 && strategy == Strategy::Tp) {
                continue;
            }
            all.push(Degrees { kvp, tpa, dp, tpf: parts / ep, ep });
        }
    }
    all
}

fn divisors(n: usize) -> impl Iterator<Item = usize> + Clone {
    (1..=n).filter(move |d| n.is_multiple_of(*d))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Formats, Model};
    use helix_layout::Layout;
    use std::collections::{BTreeSet, HashSet};

    #[test]
    fn every_layout_of_the_engine_is_tried_and_every_placement_is_legal() {
        for name in ["llama-3.1-8b", "deepseek-r1", "mixtral-8x22b"] {
            let shape = Model::named(name, Formats::default()).unwrap().shape;
            let space = Space::new((1..=12).collect());
            let placements = space.placements(&shape);
            for placement in &placements {
                assert_eq!(placement.check(&shape), Ok(()), "{placement}");
            }
            let tried: HashSet<LayoutSpec> =
                placements.iter().filter(|p| p.pp == 1).map(|p| p.spec).collect();
            for ranks in 1..=12 {
                for strategy in Strategy::ALL {
                    for qkv in QkvMode::ALL {
                        for layout in Layout::candidates(&shape, ranks, strategy, 16, qkv) {
                            // Groups without an expert would only idle.
                            let experts = shape.moe.map_or(1, |moe| moe.experts);
                            if layout.degrees().ep > experts {
                                continue;
                            }
                            let plain = layout.degrees().kvp == 1 && qkv == QkvMode::Gather;
                            assert!(plain || tried.contains(&layout.spec()), "{name}: {layout}");
                        }
                    }
                }
            }
            let different: HashSet<String> = placements.iter().map(|p| format!("{p:?}")).collect();
            assert_eq!(different.len(), placements.len(), "{name}: no placement twice");
            let ordered: BTreeSet<_> = placements.iter().map(Placement::simplicity).collect();
            assert_eq!(ordered.len(), placements.len(), "{name}: no two as simple");
        }
    }

    #[test]
    fn what_is_fixed_stays() {
        let shape = Model::named("llama-3.1-405b", Formats::default()).unwrap().shape;
        let fixed = Fixed { kvp: Some(8), tpa: Some(8), ..Fixed::default() };
        let space = Space { fixed, hopb: Some(true), ..Space::new(vec![64]) };
        let found = space.placements(&shape);
        assert!(found.iter().all(|p| p.spec.degrees.kvp == 8 && p.ranks() == 64));
        assert!(found.iter().any(|p| p.spec.strategy == Strategy::Helix && p.hopb));
    }

    #[test]
    fn what_leaves_nothing_to_try_says_why() {
        let shape = Model::named("llama-3.1-8b", Formats::default()).unwrap().shape;
        let refusal = |fixed, strategy| {
            let space = Space { fixed, strategies: vec![strategy], ..Space::new(vec![8]) };
            assert!(space.placements(&shape).is_empty());
            space.refusal(&shape)
        };
        let three = refusal(Fixed { kvp: Some(3), ..Fixed::default() }, Strategy::Helix);
        assert_eq!(three, "helix: kvp=3 tpa=2 tpf=6 ep=1 pp=1 is 6 ranks, and 8 were asked for");
        let heads = refusal(Fixed { tpa: Some(16), ..Fixed::default() }, Strategy::Helix);
        assert!(heads.contains("tpa=16 is more than the model's 8 KV heads"), "{heads}");
        let experts = refusal(Fixed { ep: Some(2), ..Fixed::default() }, Strategy::Tp);
        assert!(experts.contains("ep=2 spreads experts, and this model is dense"), "{experts}");
        // No degree is invented that nobody named.
        let far = Fixed { kvp: Some(1 << 40), tpa: Some(1 << 40), ..Fixed::default() };
        let far = refusal(far, Strategy::Helix);
        let named =
            "kvp=1099511627776 tpa=1099511627776 is more than a layout may have: 1024 ranks";
        assert_eq!(far, named);
        let far = Fixed { tpf: Some(usize::MAX), pp: Some(2), ..Fixed::default() };
        let far = refusal(far, Strategy::Medha);
        assert!(far.starts_with("tpf=18446744073709551615 pp=2 is more than"), "{far}");
    }

    #[test]
    fn illegal_placements_say_why() {
        let shape = Model::named("llama-3.1-8b", Formats::default()).unwrap().shape;
        let refusal = |spec: &str, pp| {
            let spec = spec.parse().unwrap();
            let placement = Placement { spec, pp, choices: Choices::default(), hopb: false };
            placement.check(&shape).unwrap_err().to_string()
        };
        assert!(refusal("helix kvp=2 tpa=16", 1).contains("8 KV heads"));
        assert!(refusal("tp tpa=4 tpf=2 ep=2", 1).contains("this model is dense"));
        assert!(refusal("helix tpa=2", 33).contains("33 is more stages than"));
        assert!(refusal("helix tpa=2 tpf=1", 1).contains("kvp·tpa·dp = tpf·ep"));
    }
}
