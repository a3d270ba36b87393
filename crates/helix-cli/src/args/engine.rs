//! How a model is run: threads, precision, formats, and choices that change no result.

use super::{TransportArgs, at_least};
use clap::{Args, ValueEnum};
use helix_engine::{FfnReduce, HopB, MAX_PIECES, MAX_SLICES, MlaUp};
use helix_kernels::kv::KvType;
use helix_kernels::{Format, Precision};

/// Threads, precision and formats: what an engine is sized by.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Engine")]
pub struct EngineArgs {
    /// Threads of each rank [default: the processor's, divided by the ranks]
    #[arg(short, long, visible_alias = "threads-per-rank", value_name = "N", value_parser = at_least(1))]
    pub threads: Option<usize>,
    /// Bind each thread to a processor of its own
    #[arg(long)]
    pub pin: bool,
    /// Element type of the KV cache: f32, f16, bf16 or q8_0 [default: f16, or f32 if --precise]
    #[arg(long, value_name = "TYPE")]
    kv_type: Option<KvType>,
    /// Compute with f32 activations and f32 KV, for comparisons with references; otherwise
    /// activations are quantised to 8 bits against quantised weights, as llama.cpp does
    #[arg(long)]
    precise: bool,
    /// Format of matrices in memory: as-is, or quantised at load to q8_0 or q4_k. Those that are
    /// quantised on disk, routers and the embedding stay as they are; rows that are not whole
    /// blocks of 256 take q8_0 for q4_k
    #[arg(long, value_name = "FORMAT", default_value = "as-is")]
    pub weights: Weights,
    /// Where latent attention (MLA) turns latents to values: before the all-to-all, which then
    /// carries a value per head instead of a latent; or after it, where each rank reads the
    /// matrices of the heads that it keeps only. Both are exact; auto is after between threads, and
    /// whichever the planner predicts to take less over links [default: auto]
    #[arg(long, value_name = "WHEN")]
    pub mla_up: Option<MlaUpArg>,
    /// How experts' results are added up: in one all-reduce over all ranks (world), or as in the
    /// paper in each group of tpf ranks and then across the ep groups (grid) [default: world]
    #[arg(long, value_name = "HOW")]
    pub ffn_reduce: Option<FfnReduceArg>,
    /// HOP-B: off exchanges attention's outputs in one all-to-all per layer; N cuts the batch into
    /// up to N pieces, each in flight while the next ones compute; auto chooses their number by how
    /// long links and attention are measured to take. Changes no result
    #[arg(long, value_name = "off|N|auto", default_value = "auto", value_parser = hopb)]
    pub hopb: HopB,
    /// Sums over ranks: off adds up the out-projection, and a dense FFN, in one all-reduce each per
    /// layer; N cuts their columns into up to N slices, each in flight while the next ones are
    /// computed. Changes no result
    #[arg(long, value_name = "off|N", default_value = "off", value_parser = slices)]
    pub reduce_slices: usize,
    #[command(flatten)]
    pub transport: TransportArgs,
}

/// Parses `--hopb`.
fn hopb(text: &str) -> Result<HopB, String> {
    match text {
        "off" => Ok(HopB::Off),
        "auto" => Ok(HopB::Auto),
        number => match number.parse() {
            Ok(pieces @ 1..=MAX_PIECES) => Ok(HopB::Pieces(pieces)),
            _ => Err(format!("off, auto, or a number of pieces from 1 to {MAX_PIECES}")),
        },
    }
}

/// Parses `--reduce-slices`.
fn slices(text: &str) -> Result<usize, String> {
    match (text, text.parse()) {
        ("off", _) => Ok(1),
        (_, Ok(slices @ 1..=MAX_SLICES)) => Ok(slices),
        _ => Err(format!("off, or a number of slices from 1 to {MAX_SLICES}")),
    }
}

/// The format that matrices are held in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Weights {
    /// That of the file
    AsIs,
    /// 8 bits, blocks of 32
    #[value(name = "q8_0")]
    Q8_0,
    /// 4.5 bits, blocks of 256
    #[value(name = "q4_k")]
    Q4K,
}

impl Weights {
    /// What to quantise to, if at all.
    pub fn format(self) -> Option<Format> {
        match self {
            Weights::AsIs => None,
            Weights::Q8_0 => Some(Format::Q8_0),
            Weights::Q4K => Some(Format::Q4K),
        }
    }

    /// The flag's value.
    pub fn name(self) -> &'static str {
        match self {
            Weights::AsIs => "as-is",
            Weights::Q8_0 => "q8_0",
            Weights::Q4K => "q4_k",
        }
    }
}

/// When MLA's latents become values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MlaUpArg {
    /// Before the all-to-all
    Before,
    /// After the merge
    After,
    /// Whichever costs less
    Auto,
}

/// How experts' results are added up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum FfnReduceArg {
    /// One all-reduce
    World,
    /// Two stages
    Grid,
}

impl EngineArgs {
    /// These flags with `--precise`, whether or not it was given.
    pub fn made_precise(&self) -> EngineArgs {
        EngineArgs { precise: true, ..self.clone() }
    }

    /// These flags with another `-t`, or none.
    pub fn with_threads(&self, threads: Option<usize>) -> EngineArgs {
        EngineArgs { threads, ..self.clone() }
    }

    /// What activations are multiplied as.
    pub fn precision(&self) -> Precision {
        if self.precise { Precision::Precise } else { Precision::Fast }
    }

    /// The KV cache's element type.
    pub fn kv_type(&self) -> KvType {
        self.kv_type.unwrap_or(if self.precise { KvType::F32 } else { KvType::F16 })
    }

    /// When latents become values.
    pub fn mla_up(&self) -> MlaUp {
        match self.mla_up {
            Some(MlaUpArg::Before) => MlaUp::Before,
            Some(MlaUpArg::After) => MlaUp::After,
            Some(MlaUpArg::Auto) | None => MlaUp::Auto,
        }
    }

    /// How experts' results are added up.
    pub fn ffn_reduce(&self) -> FfnReduce {
        match self.ffn_reduce {
            Some(FfnReduceArg::Grid) => FfnReduce::Grid,
            Some(FfnReduceArg::World) | None => FfnReduce::World,
        }
    }
}
