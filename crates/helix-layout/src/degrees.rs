//! What a user asks for: degrees, strategy, block size, QKV mode, and their spelling.

use std::fmt;
use std::str::FromStr;

use crate::DEFAULT_KV_BLOCK;

/// How many ways each phase of a layer is cut. Not yet known to fit any model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Degrees {
    /// Shards of the KV sequence.
    pub kvp: usize,
    /// Slices of the attention heads.
    pub tpa: usize,
    /// Slices of the FFN's columns.
    pub tpf: usize,
    /// Groups of experts; 1 for a dense model.
    pub ep: usize,
}

impl Degrees {
    /// Ranks of the attention phase, or `usize::MAX` where they overflow.
    pub fn attention_ranks(&self) -> usize {
        self.kvp.saturating_mul(self.tpa)
    }

    /// Ranks of the FFN phase, or `usize::MAX` where they overflow.
    pub fn ffn_ranks(&self) -> usize {
        self.tpf.saturating_mul(self.ep)
    }
}

impl fmt::Display for Degrees {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kvp={} tpa={} tpf={} ep={}", self.kvp, self.tpa, self.tpf, self.ep)
    }
}

/// Which method decides what the ranks of attention do in the FFN, and what past K KV heads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Strategy {
    /// `kvp·tpa = tpf·ep` ranks, `tpa` at most K: nothing is duplicated.
    Helix,
    /// Tensor parallelism alone (`kvp = 1`, `tpa = tpf`): past K, KV heads are duplicated.
    Tp,
    /// `kvp·tpa` ranks in attention; output projection, FFN and LM head only on the `tpa` ranks
    /// that hold the first shard of the sequence.
    Medha,
}

impl Strategy {
    /// Every strategy, in the order in which help texts list them.
    pub const ALL: [Self; 3] = [Self::Helix, Self::Tp, Self::Medha];

    /// The degrees of a dense model under this strategy, given those of attention.
    pub fn degrees(self, kvp: usize, tpa: usize) -> Degrees {
        let tpf = match self {
            Self::Helix | Self::Tp => kvp.saturating_mul(tpa),
            Self::Medha => tpa,
        };
        Degrees { kvp, tpa, tpf, ep: 1 }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Helix => "helix",
            Self::Tp => "tp",
            Self::Medha => "medha",
        }
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
        found.ok_or_else(|| ParseError::new("strategy", text, "helix, tp or medha"))
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

/// Reads what `Display` writes, so that the name of a layout is enough to make it again: a
/// strategy, then any of `kvp`, `tpa`, `tpf`, `ep`, `block` and `qkv`, in any order. Without them
/// `kvp` and `tpa` are 1, the FFN's degrees follow attention's, and the rest is as in
/// [`LayoutSpec::new`].
impl FromStr for LayoutSpec {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let mut words = text.split_whitespace();
        let strategy: Strategy = words.next().unwrap_or_default().parse()?;
        let [mut kvp, mut tpa, mut tpf, mut ep, mut block] = [None; 5];
        let mut qkv = QkvMode::Replicate;
        for word in words {
            let unknown = || ParseError::new("layout word", word, WORDS);
            let (key, value) = word.split_once('=').ok_or_else(unknown)?;
            let size = match key {
                "kvp" => &mut kvp,
                "tpa" => &mut tpa,
                "tpf" => &mut tpf,
                "ep" => &mut ep,
                "block" => &mut block,
                "qkv" => {
                    qkv = value.parse()?;
                    continue;
                }
                _ => return Err(unknown()),
            };
            *size = Some(value.parse().map_err(|_| unknown())?);
        }
        let plain = Self::new(strategy, kvp.unwrap_or(1), tpa.unwrap_or(1));
        let Degrees { tpf: same, .. } = plain.degrees;
        let degrees = Degrees { tpf: tpf.unwrap_or(same), ep: ep.unwrap_or(1), ..plain.degrees };
        Ok(Self { degrees, kv_block: block.unwrap_or(DEFAULT_KV_BLOCK), qkv, ..plain })
    }
}

const WORDS: &str = "kvp=N, tpa=N, tpf=N, ep=N, block=N or qkv=MODE";

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
        assert_eq!(error, "strategy \"Helix\" is unknown; choose helix, tp or medha");
        let error = "".parse::<QkvMode>().unwrap_err().to_string();
        assert_eq!(error, "QKV mode \"\" is unknown; choose replicate or gather");
    }

    #[test]
    fn a_layout_is_made_again_from_its_name() {
        let spec = LayoutSpec {
            degrees: Degrees { kvp: 4, tpa: 2, tpf: 3, ep: 5 },
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

        let refusal = |text: &str| text.parse::<LayoutSpec>().unwrap_err().to_string();
        assert_eq!(refusal(" "), "strategy \"\" is unknown; choose helix, tp or medha");
        for word in ["kvp=-1", "kvp", "pp=2", "block="] {
            let choices = "kvp=N, tpa=N, tpf=N, ep=N, block=N or qkv=MODE";
            let message = format!("layout word {word:?} is unknown; choose {choices}");
            assert_eq!(refusal(&format!("helix {word}")), message);
        }
    }
}
