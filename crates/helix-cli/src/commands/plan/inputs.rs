//! What a plan is made of: names and files to a model and a machine.

use crate::args::PlanArgs;
use crate::console::Console;
use crate::failure::{Failure, Outcome};
use crate::location;
use helix_kernels::kv::KvType;
use helix_layout::{Layout, LayoutSpec, MlaShape, ModelShape, MoeShape, Rank, Strategy};
use helix_model::{Config, HeldIn};
use helix_plan::{Format, Formats, Machine, Model, ModelError, Part, Window};
use std::path::Path;

/// The format of weights where nothing says another: the paper's.
const DEFAULT_WEIGHTS: &str = "fp4";

/// The format of keys and values where nothing says another: the paper's where the machine computes
/// in it, or else the engine's own.
fn default_kv(machine: &Machine) -> Outcome<Format> {
    let has_fp4 = machine.profile().arithmetic.contains_key(DEFAULT_WEIGHTS);
    let name = if has_fp4 { DEFAULT_WEIGHTS } else { KvType::F16.name() };
    name.parse().map_err(Failure::request)
}

/// The model that is asked for, with keys and values as `machine` would have them unless told.
pub fn model(args: &PlanArgs, machine: &Machine, console: &Console) -> Outcome<Model> {
    let default: Format = DEFAULT_WEIGHTS.parse().map_err(Failure::request)?;
    let kv = args.kv.map_or_else(|| default_kv(machine), Ok)?;
    let formats = Formats::uniform(args.weights.unwrap_or(default), kv);
    let name = args.model.to_string_lossy();
    let is_config = args.model.extension().is_some_and(|extension| extension == "json");
    if !args.model.exists() {
        match Model::named(&name, formats) {
            Err(ModelError::Name { .. }) if is_on_hub_or_cached(&args.model) => {}
            found => return found.map_err(Failure::request),
        }
    }
    if is_config {
        return of_config(&Config::of_json(&args.model)?, &name, formats);
    }
    let file = helix_model::Model::open(&location::find(&args.model, console)?)?;
    let formats = match args.weights {
        Some(_) => formats,
        None => stored(&file, &formats)?,
    };
    of_config(&file.config, &name, formats)
}

/// An opened model with its weights as they are stored, keys and values of type `kv`, and ranks
/// that send `message` bytes for a value.
pub fn of_file(file: &helix_model::Model, kv: &str, message: f64) -> Outcome<Model> {
    let kv: Format = kv.parse().map_err(Failure::request)?;
    let formats = stored(file, &Formats::uniform(kv, kv))?;
    of_config(&file.config, &file.config.name, Formats { message, ..formats })
}

/// Whether a name that no preset has may be a model's all the same.
fn is_on_hub_or_cached(model: &Path) -> bool {
    let name = model.to_string_lossy();
    name.starts_with("hf:") || name.contains(['/', '\\']) || location::is_cached(model)
}

/// How a file's matrices are stored, part by part: in the format that most of their bytes are in, with
/// bits per weight that are means over layers.
fn stored(file: &helix_model::Model, formats: &Formats) -> Outcome<Formats> {
    let whole = Layout::new(&file.shape(), LayoutSpec::new(Strategy::Helix, 1, 1))?;
    let held = HeldIn::all(file, &whole, Rank(0))?;
    let in_layers = held.iter().filter(|one| part(&one.kind) != Part::Head);
    let weights = mean(in_layers)?.unwrap_or(formats.weights);
    // What a model has none of takes what the others do.
    let mut found = Formats::uniform(weights, formats.kv);
    for of in Part::ALL {
        if let Some(format) = mean(held.iter().filter(|one| part(&one.kind) == of))? {
            found = found.with(&[of], format);
        }
    }
    Ok(found)
}

/// What matrices are of a kind that GGUF names.
fn part(kind: &str) -> Part {
    match kind {
        "output" => Part::Head,
        "attn_output" => Part::Out,
        "ffn_gate" | "ffn_up" => Part::FfnUp,
        "ffn_down" => Part::FfnDown,
        "ffn_gate_inp" => Part::Router,
        "ffn_gate_exps" | "ffn_up_exps" => Part::ExpertUp,
        "ffn_down_exps" => Part::ExpertDown,
        "ffn_gate_shexp" | "ffn_up_shexp" => Part::SharedUp,
        "ffn_down_shexp" => Part::SharedDown,
        _ => Part::Qkv,
    }
}

/// The format of most bytes, with the bits per weight of all; none where there are no weights.
fn mean<'a>(held: impl Iterator<Item = &'a HeldIn> + Clone) -> Outcome<Option<Format>> {
    let sum = |of: fn(&HeldIn) -> u64| held.clone().map(of).sum::<u64>();
    let of_format = |format| held.clone().filter(move |one| one.format == format);
    let bytes = |one: &&HeldIn| of_format(one.format).map(|one| one.bytes).sum::<u64>();
    let Some(most) = held.clone().max_by_key(bytes) else { return Ok(None) };
    let name = match most.format {
        helix_kernels::Format::F8E4M3 => "fp8",
        format => format.name(),
    };
    let format: Format = name.parse().map_err(Failure::request)?;
    let bits = 8.0 * sum(|one| one.bytes) as f64 / sum(|one| one.elements) as f64;
    Ok(Some(Format { bits, ..format }))
}

/// The planner's view of a configuration.
fn of_config(config: &Config, source: &str, formats: Formats) -> Outcome<Model> {
    let moe_layers = (0..config.layers).filter(|&layer| config.moe(layer).is_some()).count();
    let moe = config.moe.as_ref().map(|moe| MoeShape {
        layers: moe_layers,
        experts: moe.experts,
        top_k: moe.routing.top_k,
        ffn: moe.ffn,
        block: 1,
        shared_ffn: moe.shared_ffn,
        shared_block: 1,
    });
    let mla = config.mla.map(|mla| MlaShape {
        q_lora: mla.q_lora,
        kv_lora: mla.kv_lora,
        nope: mla.nope,
        rope: mla.rope,
    });
    let shape = ModelShape {
        layers: config.layers,
        hidden: config.hidden,
        q_heads: config.q_heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        value_dim: config.value_dim,
        ffn: if moe_layers == config.layers { 0 } else { config.ffn },
        vocab: config.vocab,
        out_block: 1,
        ffn_block: 1,
        mla,
        moe,
    };
    let windowed = (0..config.layers).filter(|&layer| config.window(layer).is_some()).count();
    let window = config.window.filter(|_| windowed > 0);
    let model = Model {
        name: config.name.clone(),
        source: source.to_owned(),
        shape,
        context: config.context,
        window: window.map(|positions| Window { layers: windowed, positions }),
        tied_head: config.tied_head,
        formats,
    };
    model.cut_between_blocks().map_err(|error| Failure::request(format!("{source}: {error}")))
}

/// Threads of a rank; refused where a rank is a device or a socket of its own, of fixed rates.
pub fn threads(args: &PlanArgs, machine: &Machine) -> Outcome<usize> {
    let Some(cores) = &machine.profile().cores else {
        return match args.threads {
            None => Ok(1),
            Some(threads) => Err(Failure::request(format!(
                "--threads {threads}: the profile of {} has no [cores], so that a rank is all of \
                 what its rates are of, however many threads; leave --threads out, or give a \
                 profile that has them, as helix probe writes",
                machine.name()
            ))),
        };
    };
    let most = args.ranks.0.last().copied().unwrap_or(1);
    let of_node = machine.ranks_per_node().map_or(most, |node| node.min(most));
    Ok(args.threads.unwrap_or((cores.count / of_node).max(1)))
}
