//! What a user asks for: degrees, strategy, block size, QKV mode, and their spelling.

use std::fmt;
use std::str::FromStr;

use crate::{DEFAULT_KV_BLOCK, ModelShape};

/// How many ways each phase of a layer is cut. Not yet known to fit any model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Degrees {
    /// Shards of the KV sequence.
    pub kvp: usize,
    /// Slices of the attention heads.
    pub tpa: usize,
    /// Attention groups, each with sequences of its own; 1 but under `dp-ep`.
    pub dp: usize,
    /// Slices of an expert's columns; for a dense model, of the FFN's.
    pub tpf: usize,
    /// Groups of experts; 1 for a dense model.
    pub ep: usize,
}

impl Degrees {
    /// Ranks of the attention phase, or `usize::MAX` where they overflow.
    pub fn attention_ranks(&self) -> usize {
        self.kvp.saturating_mul(self.tpa).saturating_mul(self.dp)
    }

    /// Ranks of the FFN phase, or `usize::MAX` where they overflow.
    pub fn ffn_ranks(&self) -> usize {
        self.tpf.saturating_mul(self.ep)
    }
}

/// Attention's degrees, then the FFN's; `dp` only where it is not 1.
impl fmt::Display for Degrees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { kvp, tpa, dp, tpf, ep } = self;
        write!(f, "kvp={kvp} tpa={tpa} ")?;
        if *dp != 1 {
            write!(f, "dp={dp} ")?;
        }
        write!(f, "tpf={tpf} ep={ep}")
    }
}

/// Degrees as far as somebody named them; [`Strategy::complete`] finds the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PartialDegrees {
    /// Shards of the KV sequence.
    pub kvp: Option<usize>,
    /// Slices of the attention heads.
    pub tpa: Option<usize>,
    /// Attention groups.
    pub dp: Option<usize>,
    /// Slices of an expert's columns.
    pub tpf: Option<usize>,
    /// Groups of experts.
    pub ep: Option<usize>,
}

impl PartialDegrees {
    /// Whether `degrees` are as named, wherever something is named.
    pub fn allow(&self, degrees: &Degrees) -> bool {
        let pairs = [
            (self.kvp, degrees.kvp),
            (self.tpa, degrees.tpa),
            (self.dp, degrees.dp),
            (self.tpf, degrees.tpf),
            (self.ep, degrees.ep),
        ];
        pairs.into_iter().all(|(named, is)| named.is_none_or(|named| named == is))
    }
}

/// All of them named.
impl From<Degrees> for PartialDegrees {
    fn from(degrees: Degrees) -> Self {
        let Degrees { kvp, tpa, dp, tpf, ep } = degrees;
        Self { kvp: Some(kvp), tpa: Some(tpa), dp: Some(dp), tpf: Some(tpf), ep: Some(ep) }
    }
}

/// Which method decides what the ranks of attention do in the FFN, and what past K KV heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// `kvp·tpa = tpf·ep` ranks, `tpa` at most K: nothing is duplicated.
    Helix,
    /// Tensor parallelism alone (`kvp = 1`, `tpa = tpf`): past K, KV heads are duplicated.
    Tp,
    /// `kvp·tpa` ranks in attention; output projection, FFN (`tpf·ep = tpa`) and LM head only on
    /// the `tpa` ranks that hold the first shard of the sequence.
    Medha,
    /// Data-parallel attention: each of `dp` ranks holds all of attention and the KV of its own
    /// sequences. In the FFN all ranks share all tokens' experts, `tpf·ep = dp`.
    DpEp,
}

impl Strategy {
    /// Every strategy, in the order in which help texts list them.
    pub const ALL: [Self; 4] = [Self::Helix, Self::Tp, Self::Medha, Self::DpEp];

    /// The degrees of a dense model under this strategy, given those of attention's only group.
    pub fn degrees(self, kvp: usize, tpa: usize) -> Degrees {
        let named = PartialDegrees { kvp: Some(kvp), tpa: Some(tpa), ..Default::default() };
        self.complete_with(named, FfnKind::Dense)
    }

    /// The degrees that follow from those that were named, for a model of `shape`. They need not
    /// be legal.
    ///
    /// What attention lacks is 1. The FFN has as many ranks as its strategy gives it: with neither
    /// `tpf` nor `ep` they cut columns (`ep = 1`), but under `dp-ep` they hold whole experts
    /// (`tpf = 1`), if the model has any. With one of them, the other is what is left.
    pub fn complete(self, named: PartialDegrees, shape: &ModelShape) -> Degrees {
        self.complete_with(named, FfnKind::of(shape))
    }

    fn complete_with(self, named: PartialDegrees, ffn: FfnKind) -> Degrees {
        let [kvp, tpa, dp] = [named.kvp, named.tpa, named.dp].map(|named| named.unwrap_or(1));
        let attention = Degrees { kvp, tpa, dp, tpf: 1, ep: 1 };
        let ranks = match self {
            Self::Helix | Self::Tp | Self::DpEp => attention.attention_ranks(),
            Self::Medha => tpa,
        };
        let left = |degree| ranks.checked_div(degree).unwrap_or(1).max(1);
        let (tpf, ep) = match (named.tpf, named.ep, ffn) {
            (Some(tpf), Some(ep), _) => (tpf, ep),
            (Some(tpf), None, FfnKind::Dense) => (tpf, 1),
            (Some(tpf), None, FfnKind::Experts) => (tpf, left(tpf)),
            (None, Some(ep), _) => (left(ep), ep),
            (None, None, FfnKind::Experts) if self == Self::DpEp => (1, ranks),
            (None, None, _) => (ranks, 1),
        };
        Degrees { tpf, ep, ..attention }
    }

    /// Degrees that are legal over `ranks` for any model.
    pub(crate) fn anywhere(self, ranks: usize) -> PartialDegrees {
        let (ranks, none) = (Some(ranks), PartialDegrees::default());
        match self {
            Self::Helix | Self::Medha => PartialDegrees { kvp: ranks, ..none },
            Self::Tp => PartialDegrees { tpa: ranks, ..none },
            Self::DpEp => PartialDegrees { dp: ranks, ..none },
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Helix => "helix",
            Self::Tp => "tp",
            Self::Medha => "medha",
            Self::DpEp => "dp-ep",
        }
    }
}

/// What the FFN's degrees cut.
#[derive(Clone, Copy)]
enum FfnKind {
    Dense,
    Experts,
}

impl FfnKind {
    fn of(shape: &ModelShape) -> Self {
        if shape.moe.is_some() { Self::Experts } else { Self::Dense }
    }
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Strategy {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.into_iter().find(|s| s.name() == text);
        found.ok_or_else(|| ParseError::new("strategy", text, "helix, tp, medha or dp-ep"))
    }
}

/// How the ranks of a KVP group, which all need the same Q, K and V, come by them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum QkvMode {
    /// Each computes all of its slice: no communication, repeated weight reads.
    Replicate,
    /// Each computes a share of the rows and gathers the others': one more collective per layer.
    Gather,
}

impl QkvMode {
    /// Both modes, in the order in which help texts list them.
    pub const ALL: [Self; 2] = [Self::Replicate, Self::Gather];

    fn name(self) -> &'static str {
        match self {
            Self::Replicate => "replicate",
            Self::Gather => "gather",
        }
    }
}

impl fmt::Display for QkvMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for QkvMode {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let found = Self::ALL.into_iter().find(|m| m.name() == text);
        found.ok_or_else(|| ParseError::new("QKV mode", text, "replicate or gather"))
    }
}

/// Everything that, with a model's shape, decides a layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct LayoutSpec {
    /// How many ways each phase is cut.
    pub degrees: Degrees,
    /// What the ranks of attention do in the FFN, and past K KV heads.
    pub strategy: Strategy,
    /// Consecutive positions that one rank owns before the next one's turn.
    pub kv_block: usize,
    /// How ranks that need the same Q, K and V come by them.
    pub qkv: QkvMode,
}

impl LayoutSpec {
    /// A dense model's spec with default blocks and replicated QKV.
    pub fn new(strategy: Strategy, kvp: usize, tpa: usize) -> Self {
        let degrees = strategy.degrees(kvp, tpa);
        Self { degrees, strategy, kv_block: DEFAULT_KV_BLOCK, qkv: QkvMode::Replicate }
    }
}

impl fmt::Display for LayoutSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { degrees, strategy, kv_block, qkv } = self;
        write!(f, "{strategy} {degrees} block={kv_block} qkv={qkv}")
    }
}

impl LayoutSpec {
    /// Reads what `Display` writes, so that the name of a layout is enough to make it again: a
    /// strategy, then any of `kvp`, `tpa`, `dp`, `tpf`, `ep`, `block` and `qkv`, in any order.
    /// Degrees that are not there follow from the others and `shape` as in
    /// [`Strategy::complete`]; the rest is as in [`LayoutSpec::new`].
    pub fn read(text: &str, shape: &ModelShape) -> Result<Self, ParseError> {
        Self::read_with(text, FfnKind::of(shape))
    }

    fn read_with(text: &str, ffn: FfnKind) -> Result<Self, ParseError> {
        let mut words = text.split_whitespace();
        let strategy: Strategy = words.next().unwrap_or_default().parse()?;
        let mut named = PartialDegrees::default();
        let mut block = None;
        let mut qkv = QkvMode::Replicate;
        for word in words {
            let unknown = || ParseError::new("layout word", word, WORDS);
            let (key, value) = word.split_once('=').ok_or_else(unknown)?;
            let size = match key {
                "kvp" => &mut named.kvp,
                "tpa" => &mut named.tpa,
                "dp" => &mut named.dp,
                "tpf" => &mut named.tpf,
                "ep" => &mut named.ep,
                "block" => &mut block,
                "qkv" => {
                    qkv = value.parse()?;
                    continue;
                }
                _ => return Err(unknown()),
            };
            *size = Some(value.parse().map_err(|_| unknown())?);
        }
        let degrees = strategy.complete_with(named, ffn);
        Ok(Self { degrees, strategy, kv_block: block.unwrap_or(DEFAULT_KV_BLOCK), qkv })
    }
}

/// As [`LayoutSpec::read`], for a dense model.
impl FromStr for LayoutSpec {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Self::read_with(text, FfnKind::Dense)
    }
}

const WORDS: &str = "kvp=N, tpa=N, dp=N, tpf=N, ep=N, block=N or qkv=MODE";

/// A word that names none of the choices.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what} {given:?} is unknown; choose {choices}")]
pub struct ParseError {
    what: &'static str,
    given: String,
    choices: &'static str,
}

impl ParseError {
    fn new(what: &'static str, given: &str, choices: &'static str) -> Self {
        Self { what, given: given.to_owned(), choices }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip_and_others_are_refused_with_the_choices() {
        for strategy in Strategy::ALL {
            assert_eq!(strategy.to_string().parse(), Ok(strategy));
        }
        for mode in QkvMode::ALL {
            assert_eq!(mode.to_string().parse(), Ok(mode));
        }
        let error = "Helix".parse::<Strategy>().unwrap_err().to_string();
        assert_eq!(error, "strategy \"Helix\" is unknown; choose helix, tp, medha or dp-ep");
        let error = "".parse::<QkvMode>().unwrap_err().to_string();
        assert_eq!(error, "QKV mode \"\" is unknown; choose replicate or gather");
    }

    #[test]
    fn a_layout_is_made_again_from_its_name() {
        let spec = LayoutSpec {
            degrees: Degrees { kvp: 4, tpa: 2, dp: 1, tpf: 3, ep: 5 },
            strategy: Strategy::Medha,
            kv_block: 32,
            qkv: QkvMode::Gather,
        };
        let name = "medha kvp=4 tpa=2 tpf=3 ep=5 block=32 qkv=gather";
        assert_eq!(spec.to_string(), name);
        assert_eq!(name.parse(), Ok(spec));
        assert_eq!("helix".parse(), Ok(LayoutSpec::new(Strategy::Helix, 1, 1)));
        assert_eq!("tp tpa=4".parse(), Ok(LayoutSpec::new(Strategy::Tp, 1, 4)));
        assert_eq!("helix tpa=2 kvp=4".parse(), Ok(LayoutSpec::new(Strategy::Helix, 4, 2)));

        let degrees = Degrees { kvp: 1, tpa: 1, dp: 6, tpf: 2, ep: 3 };
        let spec = LayoutSpec { degrees, ..LayoutSpec::new(Strategy::DpEp, 1, 1) };
        let name = "dp-ep kvp=1 tpa=1 dp=6 tpf=2 ep=3 block=16 qkv=replicate";
        assert_eq!(spec.to_string(), name);
        assert_eq!(name.parse(), Ok(spec));
        for shape in [DENSE, MOE] {
            assert_eq!(LayoutSpec::read(name, &shape), Ok(spec));
        }

        let refusal = |text: &str| text.parse::<LayoutSpec>().unwrap_err().to_string();
        assert_eq!(refusal(" "), "strategy \"\" is unknown; choose helix, tp, medha or dp-ep");
        for word in ["kvp=-1", "kvp", "pp=2", "block="] {
            let choices = "kvp=N, tpa=N, dp=N, tpf=N, ep=N, block=N or qkv=MODE";
            let message = format!("layout word {word:?} is unknown; choose {choices}");
            assert_eq!(refusal(&format!("helix {word}")), message);
        }
    }

    const DENSE: ModelShape = ModelShape {
        layers: 2,
        hidden: 64,
        q_heads: 4,
        kv_heads: 4,
        head_dim: 16,
        value_dim: 16,
        ffn: 64,
        vocab: 100,
        out_block: 1,
        ffn_block: 1,
        mla: None,
        moe: None,
    };

    const MOE: ModelShape = ModelShape {
        moe: Some(crate::MoeShape {
            layers: 2,
            experts: 8,
            top_k: 2,
            ffn: 32,
            block: 1,
            shared_ffn: 0,
            shared_block: 1,
        }),
        ..DENSE
    };

    #[test]
    fn degrees_that_nobody_named_follow_from_the_others_and_the_model() {
        // (what is named, tpf and ep of a dense model, tpf and ep of one with experts)
        let cases = [
            ("helix kvp=4 tpa=2", (8, 1), (8, 1)),
            ("helix kvp=4 tpa=2 ep=4", (2, 4), (2, 4)),
            ("helix kvp=4 tpa=2 ep=3", (2, 3), (2, 3)),
            ("helix kvp=4 tpa=2 ep=16", (1, 16), (1, 16)),
            ("helix kvp=4 tpa=2 tpf=4", (4, 1), (4, 2)),
            ("helix kvp=4 tpa=2 tpf=4 ep=1", (4, 1), (4, 1)),
            ("helix ep=0", (1, 0), (1, 0)),
            ("tp tpa=6", (6, 1), (6, 1)),
            ("medha kvp=4 tpa=2", (2, 1), (2, 1)),
            ("medha kvp=4 tpa=2 ep=2", (1, 2), (1, 2)),
            ("dp-ep dp=8", (8, 1), (1, 8)),
            ("dp-ep dp=8 tpf=2", (2, 1), (2, 4)),
            ("dp-ep dp=8 ep=2", (4, 2), (4, 2)),
        ];
        for (text, dense, experts) in cases {
            for (shape, (tpf, ep)) in [(&DENSE, dense), (&MOE, experts)] {
                let found = LayoutSpec::read(text, shape).unwrap().degrees;
                assert_eq!((found.tpf, found.ep), (tpf, ep), "{text}");
            }
            let plain: LayoutSpec = text.parse().unwrap();
            assert_eq!((plain.degrees.tpf, plain.degrees.ep), dense, "{text}");
        }
    }

    #[test]
    fn what_is_named_allows_nothing_else() {
        let degrees = Degrees { kvp: 2, tpa: 3, dp: 4, tpf: 5, ep: 6 };
        assert!(PartialDegrees::default().allow(&degrees));
        assert!(PartialDegrees::from(degrees).allow(&degrees));
        let others = [
            Degrees { kvp: 1, ..degrees },
            Degrees { tpa: 1, ..degrees },
            Degrees { dp: 1, ..degrees },
            Degrees { tpf: 1, ..degrees },
            Degrees { ep: 1, ..degrees },
        ];
        for other in others {
            assert!(!PartialDegrees::from(degrees).allow(&other));
        }
    }
}
