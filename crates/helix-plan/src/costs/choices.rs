//! What is chosen beside the layout.

use std::fmt;

/// Choices that change what lines cost, beside the layout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choices {
    /// When latents become values.
    pub mla_up: MlaUp,
    /// How the FFN's results come together.
    pub ffn_reduce: FfnReduce,
    /// How tokens of attention groups come to experts.
    pub tokens: Tokens,
    /// How much of the output projection a rank reads.
    pub formulas: Formulas,
    /// Pieces that the all-to-all of a batch goes in, as far as there are units to cut between;
    /// where a search is to choose them, 1.
    pub pieces: usize,
    /// Slices that sums of the out-projection and of dense FFNs over ranks go in.
    pub slices: usize,
}

/// When latent attention's up-projection W_UV is applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MlaUp {
    /// To a shard's partial outputs: `value` numbers per head go over the link.
    Before,
    /// To the merged outputs of the heads that a rank keeps: fewer weights, wider messages.
    After,
}

impl MlaUp {
    /// Both.
    pub const ALL: [MlaUp; 2] = [MlaUp::After, MlaUp::Before];
}

impl fmt::Display for MlaUp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            MlaUp::Before => "before",
            MlaUp::After => "after",
        })
    }
}

/// How the FFN's results come together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FfnReduce {
    /// One all-reduce over all ranks.
    World,
    /// One in the expert group, one across groups.
    Grid,
}

impl FfnReduce {
    /// Both.
    pub const ALL: [FfnReduce; 2] = [FfnReduce::World, FfnReduce::Grid];
}

impl fmt::Display for FfnReduce {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            FfnReduce::World => "world",
            FfnReduce::Grid => "grid",
        })
    }
}

/// How tokens of attention groups come to experts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Tokens {
    /// Every rank gets every group's rows, and results are summed over all ranks: the engine.
    Gathered,
    /// Each goes to the ranks of its experts, and comes back: DeepSeek's all-to-alls. Shared
    /// experts are whole on every rank. Where each group is one rank with whole experts.
    Dispatched,
}

impl fmt::Display for Tokens {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Tokens::Gathered => "gathered",
            Tokens::Dispatched => "dispatched",
        })
    }
}

/// Which formulas.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Formulas {
    /// The paper's appendix A: the output projection is cut by TPA alone.
    PaperAppendix,
    /// The paper's text, and what the engine does: it is cut over all ranks.
    Corrected,
}

impl Default for Choices {
    fn default() -> Choices {
        Choices {
            mla_up: MlaUp::After,
            ffn_reduce: FfnReduce::World,
            tokens: Tokens::Gathered,
            formulas: Formulas::Corrected,
            pieces: 1,
            slices: 1,
        }
    }
}
