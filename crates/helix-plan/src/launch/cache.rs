//! The cache and the weights that were planned, in engines' words.

use super::Engine;
use crate::costs::Tokens;
use crate::{Chosen, Formats, Model, Part};

/// What an engine's cache is told to hold, and in which format its weights are.
pub(super) struct Held {
    /// Of keys and values, as the engine calls it.
    pub kv: &'static str,
    /// Positions of a sequence.
    pub context: usize,
    /// Sequences, as the engine counts them.
    pub sequences: usize,
    /// What [`Engine::Helix`] is to quantise weights to.
    pub weights: &'static str,
}

/// Sequences that `helix serve` runs at once, at most.
const HELIX_SEQUENCES: usize = 1024;

impl Held {
    /// What `chosen` was planned with.
    ///
    /// # Errors
    /// The engine can't hold it; why, and what it can.
    pub fn of(
        engine: Engine,
        chosen: &Chosen,
        model: &Model,
        context: usize,
    ) -> Result<Held, String> {
        let sequences = sequences(engine, chosen);
        if engine == Engine::Helix && sequences > HELIX_SEQUENCES {
            return Err(format!(
                "it runs {HELIX_SEQUENCES} sequences at once at most, and the plan has {sequences}"
            ));
        }
        let kv = kv(engine, model)?;
        let weights = match engine {
            Engine::Helix => helix_weights(&model.formats)?,
            _ => "",
        };
        Ok(Held { kv, context, sequences, weights })
    }
}

/// Sequences of one of what the engine's limit is of: all (Helix, SGLang), an attention group (vLLM),
/// or of that one stage's (TensorRT-LLM, each of whose stages has a batch of its own).
fn sequences(engine: Engine, chosen: &Chosen) -> usize {
    let placement = &chosen.row.placement;
    let (dp, pp) = (placement.spec.degrees.dp, placement.pp);
    chosen.row.batch.div_ceil(match engine {
        Engine::Helix | Engine::Sglang => 1,
        Engine::Vllm => dp,
        Engine::TensorRtLlm => dp * pp,
    })
}

/// The engine's name for the planned format of keys and values.
fn kv(engine: Engine, model: &Model) -> Result<&'static str, String> {
    let planned = model.formats.kv.name;
    let known = kv_names(engine, model.shape.mla.is_some());
    let found = known.iter().find(|(name, _)| *name == planned);
    found.map(|(_, name)| *name).ok_or_else(|| {
        let known: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
        format!("its cache holds no {planned} keys and values; plan with --kv {}", any_of(&known))
    })
}

/// Formats that an engine's cache holds: the planner's name, and the engine's. `fp4` is none of
/// them: theirs have scales, as `nvfp4` has.
fn kv_names(engine: Engine, latents: bool) -> &'static [(&'static str, &'static str)] {
    match engine {
        Engine::Helix => &[("f16", "f16"), ("bf16", "bf16"), ("f32", "f32"), ("q8_0", "q8_0")],
        // None of its backends for latents that see everything takes nvfp4.
        Engine::Vllm if latents => &[("bf16", "bfloat16"), ("f16", "float16"), ("fp8", "fp8")],
        Engine::Vllm => {
            &[("bf16", "bfloat16"), ("f16", "float16"), ("fp8", "fp8"), ("nvfp4", "nvfp4")]
        }
        Engine::Sglang => &[("bf16", "bf16"), ("fp8", "fp8_e4m3"), ("nvfp4", "nvfp4")],
        Engine::TensorRtLlm => {
            &[("bf16", "auto"), ("f16", "auto"), ("fp8", "fp8"), ("nvfp4", "nvfp4")]
        }
    }
}

/// What `helix` is told of weights: what it quantises to when it loads, or as they are stored.
fn helix_weights(formats: &Formats) -> Result<&'static str, String> {
    let planned = formats.weights;
    match planned.name {
        "fp4" | "nvfp4" | "int8" => Err(format!(
            "it holds no {planned} weights; plan with --weights q4_k or q8_0, which it quantises to, \
             or with the format that MODEL is stored in"
        )),
        name @ ("q8_0" | "q4_k") if Part::ALL.iter().all(|&part| formats.of(part) == planned) => {
            Ok(name)
        }
        _ => Ok("as-is"),
    }
}

/// "a, b or c".
fn any_of(names: &[&str]) -> String {
    match names {
        [most @ .., last] if !most.is_empty() => format!("{} or {last}", most.join(", ")),
        _ => names.concat(),
    }
}

/// What the engine can't be told in a flag.
pub(super) fn notes(engine: Engine, held: &Held, chosen: &Chosen, model: &Model) -> Vec<String> {
    let mut notes = Vec::new();
    if engine != Engine::Helix || held.weights == "as-is" {
        let weights = model.formats.weights;
        notes.push(format!("the plan's weights are {weights}: MODEL is to be stored so"));
    }
    if held.kv == "auto" {
        let kv = model.formats.kv;
        notes.push(format!(
            "{engine}'s auto is what MODEL says: it is to compute in {kv}, without a quantised cache"
        ));
    }
    if engine != Engine::Helix && held.context > model.context {
        notes.push(format!(
            "{} positions are more than the {} that the model was trained for, which {engine} may \
             refuse",
            held.context, model.context
        ));
    }
    if chosen.row.placement.choices.tokens == Tokens::Dispatched {
        notes.push(
            "the plan sends tokens to the ranks of their experts alone; whether the engine does \
             depends on its all-to-all backend, which is chosen elsewhere"
                .to_owned(),
        );
    }
    notes
}
