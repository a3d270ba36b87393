//! How engines are told to run a placement with the cache that was planned, and what they can't be
//! told.
//!
//! Flags and limits are those that vLLM 0.33.0 and SGLang 0.5.23 define and check, as their packages of
//! November 2026 have them, and TensorRT-LLM's as its "Helix Parallelism" and its blog 21 document
//! them.

mod cache;

use helix_layout::{Degrees, Layout, LayoutError, LayoutSpec, ModelShape, QkvMode, Strategy};
use std::fmt;

use crate::costs::Tokens;
use crate::{Chosen, Model};
use cache::Held;

/// Who is to run it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names are the engines'")]
pub enum Engine {
    Helix,
    Vllm,
    Sglang,
    TensorRtLlm,
}

impl fmt::Display for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Engine::Helix => "helix",
            Engine::Vllm => "vLLM",
            Engine::Sglang => "SGLang",
            Engine::TensorRtLlm => "TensorRT-LLM",
        })
    }
}

/// What an engine is told.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launch {
    /// The command, or the configuration; its model is called MODEL.
    pub text: String,
    /// What the engine does otherwise than the plan, without another layout.
    pub notes: Vec<String>,
}

/// Why an engine can't be told.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum LaunchError {
    /// Its own layouts have no such one.
    #[error("helix can't run this layout: {0}")]
    Layout(#[from] LayoutError),
    /// A limit of the engine.
    #[error("{engine} can't express {placement}: {why}")]
    Limit {
        /// Whose.
        engine: Engine,
        /// What was asked for.
        placement: String,
        /// Why, and what it can do.
        why: String,
    },
}

/// How `engine` is told to run a configuration of `model`, of sequences of `context` positions.
///
/// # Errors
/// It can't be; the message says why.
pub fn launch(
    engine: Engine,
    chosen: &Chosen,
    model: &Model,
    context: usize,
) -> Result<Launch, LaunchError> {
    let (shape, placement) = (&model.shape, chosen.row.placement);
    let limit = match engine {
        Engine::Helix => {
            Layout::new(shape, placement.spec)?;
            helix_limit(chosen)
        }
        _ => foreign_limit(chosen, shape).or_else(|| match engine {
            Engine::Vllm => vllm_limit(chosen, shape),
            Engine::Sglang => sglang_limit(chosen, shape),
            _ => tensorrt_limit(chosen),
        }),
    };
    let held = limit.map_or_else(|| Held::of(engine, chosen, model, context), Err);
    let held = held.map_err(|why| {
        let placement = placement.to_string();
        LaunchError::Limit { engine, placement, why }
    })?;
    let text = match engine {
        Engine::Helix => helix_text(chosen, shape, &held),
        Engine::Vllm => vllm_text(chosen, shape, &held),
        Engine::Sglang => sglang_text(chosen, &held),
        Engine::TensorRtLlm => tensorrt_text(chosen, shape, &held),
    };
    let mut notes = notes(engine, chosen, shape);
    notes.extend(cache::notes(engine, &held, chosen, model));
    Ok(Launch { text, notes })
}

fn helix_limit(chosen: &Chosen) -> Option<String> {
    let placement = &chosen.row.placement;
    if placement.pp > 1 {
        return Some(format!("pp={}, and it has no pipeline stages", placement.pp));
    }
    let dispatched = placement.choices.tokens == Tokens::Dispatched;
    dispatched.then(|| "tokens=dispatched, and its ranks gather all tokens".to_owned())
}

/// What none of the others does.
fn foreign_limit(chosen: &Chosen, shape: &ModelShape) -> Option<String> {
    let placement = &chosen.row.placement;
    let LayoutSpec { degrees, strategy, .. } = placement.spec;
    let Degrees { kvp, tpa, tpf, .. } = degrees;
    if strategy == Strategy::Medha && kvp > 1 {
        return Some(
            "its FFN uses the ranks of attention, all of them; take --strategy helix".into(),
        );
    }
    let pieces = chosen.row.hopb_pieces.unwrap_or(1);
    if kvp > 1 && pieces > 1 {
        return Some(format!("it has no HOP-B, here {pieces} pieces; plan with --hopb off"));
    }
    if !shape.q_heads.is_multiple_of(tpa) {
        return Some(format!("tpa={tpa} does not divide {} query heads", shape.q_heads));
    }
    let widths = [Some(("the FFN's", shape.ffn)), shape.moe.map(|moe| ("an expert's", moe.ffn))];
    let uneven = widths.into_iter().flatten().find(|(_, width)| !width.is_multiple_of(tpf));
    uneven.map(|(whose, width)| format!("tpf={tpf} does not divide {whose} width of {width}"))
}

/// Positions in a block of vLLM's cache, or what divides them.
const VLLM_BLOCK: usize = 16;

fn vllm_limit(chosen: &Chosen, shape: &ModelShape) -> Option<String> {
    let Degrees { kvp, tpa, dp, ep, .. } = chosen.row.placement.spec.degrees;
    let (tp, kv_heads) = (kvp * tpa, shape.kv_heads);
    if kvp > 1 && kvp * kv_heads > tp {
        return Some(format!(
            "its decode context parallelism shards what TP copies, at most tp / {kv_heads} KV heads \
             ways, and tp={tp} is to have {kvp}; give --tpa {kv_heads}"
        ));
    }
    if kvp > 1 && shape.mla.is_none() && !shape.group().is_multiple_of(kvp) {
        return Some(format!(
            "kvp={kvp} does not divide the {} query heads of each KV head",
            shape.group()
        ));
    }
    let block = chosen.row.placement.spec.kv_block;
    if kvp > 1 && !VLLM_BLOCK.is_multiple_of(block) {
        return Some(format!(
            "it deals positions in runs that divide its cache's blocks of {VLLM_BLOCK}; give \
             --kv-block {VLLM_BLOCK} instead of {block}"
        ));
    }
    if !kv_heads.is_multiple_of(tp) && !tp.is_multiple_of(kv_heads) {
        return Some(format!("of tp={tp} and {kv_heads} KV heads neither divides the other"));
    }
    if !shape.q_heads.is_multiple_of(tp) {
        return Some(format!("tp={tp} does not divide {} query heads", shape.q_heads));
    }
    if dp > 1 && shape.moe.is_none() {
        return Some(format!("dp={dp}, and each of its groups has the whole of a dense FFN"));
    }
    let ranks = tp * dp;
    let mixed = ep > 1 && ep < ranks;
    mixed.then(|| {
        format!("ep={ep}: its experts are on 1 or on all {ranks} ranks; give --ep 1 or {ranks}")
    })
}

fn sglang_limit(chosen: &Chosen, shape: &ModelShape) -> Option<String> {
    let Degrees { kvp, tpa, .. } = chosen.row.placement.spec.degrees;
    if kvp > 1 && shape.mla.is_none() {
        return Some(format!(
            "kvp={kvp}, and its models with decode context parallelism are MLA's, but for Qwen3.5"
        ));
    }
    let tp = kvp * tpa;
    let uneven = !shape.q_heads.is_multiple_of(tp);
    uneven.then(|| format!("tp={tp} does not divide {} query heads", shape.q_heads))
}

fn tensorrt_limit(chosen: &Chosen) -> Option<String> {
    let Degrees { tpa, dp, .. } = chosen.row.placement.spec.degrees;
    (dp > 1 && tpa > 1).then(|| {
        format!("tpa={tpa} and dp={dp}: its attention is cut by heads or by sequences, not both")
    })
}

fn helix_text(chosen: &Chosen, shape: &ModelShape, held: &Held) -> String {
    let placement = &chosen.row.placement;
    let LayoutSpec { degrees, strategy, kv_block, qkv } = placement.spec;
    let Degrees { kvp, tpa, dp, tpf, ep } = degrees;
    let &Held { kv, context, sequences, weights } = held;
    let mut text = format!(
        "helix serve MODEL --parallel {sequences} --context {context} --kv-type {kv} --weights \
         {weights} --strategy {strategy} --kvp {kvp} --tpa {tpa}"
    );
    if dp > 1 {
        text += &format!(" --dp {dp}");
    }
    text += &format!(" --tpf {tpf} --ep {ep} --kv-block {kv_block} --qkv {qkv}");
    text += if placement.hopb && kvp > 1 { " --hopb auto" } else { " --hopb off" };
    if shape.mla.is_some() {
        text += &format!(" --mla-up {}", placement.choices.mla_up);
    }
    if shape.moe.is_some() {
        text += &format!(" --ffn-reduce {}", placement.choices.ffn_reduce);
    }
    text
}

fn vllm_text(chosen: &Chosen, shape: &ModelShape, held: &Held) -> String {
    let placement = &chosen.row.placement;
    let LayoutSpec { degrees: Degrees { kvp, tpa, dp, ep, .. }, kv_block, qkv, .. } =
        placement.spec;
    let mut text = format!("vllm serve MODEL --tensor-parallel-size {}", kvp * tpa);
    add(&mut text, "--decode-context-parallel-size", kvp);
    if kvp > 1 {
        text += &format!(" --dcp-comm-backend a2a --cp-kv-cache-interleave-size {kv_block}");
        if shape.mla.is_some() && qkv == QkvMode::Replicate {
            text += " --dcp-q-replicate";
        }
    }
    add(&mut text, "--pipeline-parallel-size", placement.pp);
    add(&mut text, "--data-parallel-size", dp);
    if ep > 1 {
        text += " --enable-expert-parallel";
    }
    let Held { kv, context, sequences, .. } = held;
    text + &format!(" --kv-cache-dtype {kv} --max-model-len {context} --max-num-seqs {sequences}")
}

fn sglang_text(chosen: &Chosen, held: &Held) -> String {
    let placement = &chosen.row.placement;
    let Degrees { kvp, dp, ep, .. } = placement.spec.degrees;
    let ranks = placement.spec.degrees.attention_ranks();
    let mut text = format!("python3 -m sglang.launch_server --model-path MODEL --tp-size {ranks}");
    add(&mut text, "--dcp-size", kvp);
    if kvp > 1 {
        text += " --dcp-comm-backend a2a";
        text += match placement.spec.qkv {
            QkvMode::Replicate => " --dcp-replicate-q-proj",
            QkvMode::Gather => " --no-dcp-replicate-q-proj",
        };
    }
    add(&mut text, "--pp-size", placement.pp);
    add(&mut text, "--ep-size", ep);
    add(&mut text, "--attn-dp-size", dp);
    let Held { kv, context, sequences, .. } = held;
    text + &format!(
        " --kv-cache-dtype {kv} --context-length {context} --max-running-requests {sequences}"
    )
}

/// A degree, unless it is the default.
fn add(text: &mut String, flag: &str, size: usize) {
    if size > 1 {
        *text += &format!(" {flag} {size}");
    }
}

/// For `trtllm-serve MODEL --config FILE`.
fn tensorrt_text(chosen: &Chosen, shape: &ModelShape, held: &Held) -> String {
    let placement = &chosen.row.placement;
    let Degrees { kvp, tpa, dp, tpf, ep } = placement.spec.degrees;
    let mut text = format!("tensor_parallel_size: {}", tpa * dp);
    if placement.pp > 1 {
        text += &format!("\npipeline_parallel_size: {}", placement.pp);
    }
    if dp > 1 {
        text += "\nenable_attention_dp: true";
    }
    if shape.moe.is_some() {
        text += &format!("\nmoe_tensor_parallel_size: {tpf}\nmoe_expert_parallel_size: {ep}");
    }
    let Held { kv, context, sequences, .. } = held;
    text += &format!("\nmax_seq_len: {context}\nmax_batch_size: {sequences}");
    let block = placement.spec.kv_block;
    if kvp > 1 {
        text += &format!(
            "\ncontext_parallel_size: {kvp}\ncp_config:\n  cp_type: HELIX\n  tokens_per_block: \
             {block}"
        );
    }
    text += &format!("\nkv_cache_config:\n  dtype: {kv}");
    if kvp > 1 {
        text += &format!("\n  tokens_per_block: {block}");
    }
    text
}

fn notes(engine: Engine, chosen: &Chosen, shape: &ModelShape) -> Vec<String> {
    let placement = &chosen.row.placement;
    let LayoutSpec { degrees, qkv, kv_block, .. } = placement.spec;
    let mut notes = Vec::new();
    match engine {
        Engine::Vllm if degrees.kvp > 1 && qkv == QkvMode::Replicate && shape.mla.is_none() => {
            notes.push("vLLM gathers the queries that the plan has each rank compute");
        }
        Engine::Sglang if degrees.kvp > 1 && kv_block > 1 => {
            notes.push("SGLang deals positions to shards one at a time, and not in blocks");
        }
        Engine::TensorRtLlm if degrees.kvp > 1 => {
            notes.push(
                "a configuration of generation servers, behind servers for the prompts; NVIDIA \
                 supports cp_type HELIX on Blackwell GPUs",
            );
            if qkv == QkvMode::Gather {
                notes.push("TensorRT-LLM has each rank compute the queries that the plan gathers");
            }
        }
        _ => {}
    }
    notes.into_iter().map(str::to_owned).collect()
}
