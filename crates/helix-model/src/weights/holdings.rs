//! What one rank's matrices take in memory, by what they are.

use helix_kernels::Format;
use helix_layout::{Layout, Rank};

use super::shards::{Shard, head_shard, layer_shards};
use crate::{Model, ModelError};

/// Bytes of the matrices that one rank holds: as they are on disk, or as they are quantised at
/// load. In memory they are a few per cent more, for padding and scales.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holdings {
    /// Projections of attention, in and out, but for `values`.
    pub attention: u64,
    /// The projections that turn latents to values, of all query heads of the rank.
    pub values: u64,
    /// FFNs of layers without experts.
    pub dense_ffn: u64,
    /// Routers.
    pub routers: u64,
    /// Experts that every token goes through.
    pub shared_experts: u64,
    /// Routed experts, whether or not a token goes to them.
    pub experts: u64,
    /// The rank's rows of the LM head.
    pub head: u64,
}

/// What matrices of one kind take in one format, in all layers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeldIn {
    /// What GGUF calls them: `attn_q`, `ffn_down_exps`; `output` is the LM head.
    pub kind: String,
    /// That they are held in.
    pub format: Format,
    /// Weights.
    pub elements: u64,
    /// Bytes.
    pub bytes: u64,
}

impl HeldIn {
    /// What `rank` holds, kind by kind and format by format. Errors as [`Holdings::of`].
    pub fn all(model: &Model, layout: &Layout, rank: Rank) -> Result<Vec<HeldIn>, ModelError> {
        let mut all: Vec<HeldIn> = Vec::new();
        let mut add = |kind: &str, shard: &Shard| {
            let format = model.packed_format(&shard.name, &shard.tensor(model)?);
            let (elements, bytes) = (shard.rows.len() * shard.cols.len(), held(model, shard)?);
            let same = |one: &&mut HeldIn| one.kind == kind && one.format == format;
            match all.iter_mut().find(same) {
                Some(one) => {
                    one.elements += elements as u64;
                    one.bytes += bytes;
                }
                None => all.push(HeldIn {
                    kind: kind.to_owned(),
                    format,
                    elements: elements as u64,
                    bytes,
                }),
            }
            Ok::<(), ModelError>(())
        };
        add("output", &head_shard(model, layout, rank))?;
        for layer in 0..model.config.layers {
            for shard in layer_shards(model, layout, rank, layer) {
                add(kind(&shard), &shard)?;
            }
        }
        Ok(all)
    }
}

impl Holdings {
    /// What `rank` holds. Errors: a tensor that the layout needs is not there.
    pub fn of(model: &Model, layout: &Layout, rank: Rank) -> Result<Holdings, ModelError> {
        let head = held(model, &head_shard(model, layout, rank))?;
        let mut sum = Holdings { head, ..Holdings::default() };
        for layer in 0..model.config.layers {
            for shard in layer_shards(model, layout, rank, layer) {
                *sum.place(&shard) += held(model, &shard)?;
            }
        }
        Ok(sum)
    }

    /// All of them.
    pub fn total(&self) -> u64 {
        let Holdings { attention, values, dense_ffn, routers, shared_experts, experts, head } =
            *self;
        attention + values + dense_ffn + routers + shared_experts + experts + head
    }

    fn place(&mut self, shard: &Shard) -> &mut u64 {
        match kind(shard) {
            "attn_v_b" => &mut self.values,
            "ffn_gate" | "ffn_up" | "ffn_down" => &mut self.dense_ffn,
            "ffn_gate_inp" => &mut self.routers,
            "ffn_gate_exps" | "ffn_up_exps" | "ffn_down_exps" => &mut self.experts,
            "ffn_gate_shexp" | "ffn_up_shexp" | "ffn_down_shexp" => &mut self.shared_experts,
            _ => &mut self.attention,
        }
    }
}

/// What GGUF calls a layer's matrix.
fn kind(shard: &Shard) -> &str {
    let name = shard.name.trim_end_matches(".weight");
    name.rsplit_once('.').map_or(name, |(_, kind)| kind)
}

/// Bytes of a shard in the format that it is held in.
fn held(model: &Model, shard: &Shard) -> Result<u64, ModelError> {
    let tensor = shard.tensor(model)?;
    let format = model.packed_format(&shard.name, &tensor);
    if format == tensor.format {
        return shard.bytes(model);
    }
    let blocks = shard.cols.len().div_ceil(format.block_len());
    Ok((shard.rows.len() * blocks * format.block_bytes()) as u64)
}
