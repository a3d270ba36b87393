//! The engine's models and steps as the planner sees them.

use crate::commands::plan::inputs;
use crate::failure::Outcome;
use helix_engine::{EngineOptions, FfnReduce, HopB, MlaUp};
use helix_kernels::kv::KvType;
use helix_plan::costs::{self, Choices};
use helix_plan::{Decode, Exchange, Model};

/// `model` with its weights as they are held, and ranks that send f32, as the engine's do.
pub fn model(model: &helix_model::Model, kv_type: KvType) -> Outcome<Model> {
    inputs::of_file(model, kv_type.name(), size_of::<f32>() as f64)
}

/// A step that decodes one token of each of `batch` sequences that see `context` positions.
pub fn decode(options: &EngineOptions, (batch, context): (usize, usize)) -> Decode {
    let (exchange, pieces) = match options.hopb {
        HopB::Off => (Exchange::Whole, 1),
        HopB::Pieces(pieces) => (Exchange::Pieces, pieces),
        HopB::Auto => (Exchange::Hopb, 1),
    };
    let choices = Choices {
        pieces,
        slices: options.reduce_slices,
        mla_up: match options.mla_up {
            MlaUp::Before => costs::MlaUp::Before,
            MlaUp::After | MlaUp::Auto => costs::MlaUp::After,
        },
        ffn_reduce: match options.ffn_reduce {
            FfnReduce::World => costs::FfnReduce::World,
            FfnReduce::Grid => costs::FfnReduce::Grid,
        },
        ..Choices::default()
    };
    Decode { batch, context, threads: options.threads_per_rank, choices, exchange }
}
