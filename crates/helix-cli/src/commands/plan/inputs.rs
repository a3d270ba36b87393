//! What a plan is made of: names and files to a model and a machine.

use crate::args::PlanArgs;
use crate::console::Console;
use crate::failure::{Failure, Outcome};
use crate::location;
use helix_layout::{Layout, LayoutSpec, MlaShape, ModelShape, MoeShape, Rank, Reads, Strategy};
use helix_model::{Config, Holdings};
use helix_plan::{Format, Formats, Machine, Model, ModelError, Window};
use std::path::Path;

/// The format of weights where nothing says another: the paper's.
const DEFAULT_WEIGHTS: &str = "fp4";

/// The model that is asked for.
pub fn model(args: &PlanArgs, console: &Console) -> Outcome<Model> {
    let default: Format = DEFAULT_WEIGHTS.parse().map_err(Failure::request)?;
    let formats = Formats::uniform(args.weights.unwrap_or(default), args.kv);
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

/// The bytes per weight that a file's matrices take, part by part, on average over layers.
fn stored(file: &helix_model::Model, formats: &Formats) -> Outcome<Formats> {
    let shape = file.shape();
    let whole = Layout::new(&shape, LayoutSpec::new(Strategy::Helix, 1, 1))?;
    let (held, elements) = (Holdings::of(file, &whole, Rank(0))?, Reads::held(&whole, Rank(0), 1));
    let layers = held.total() - held.head;
    let mean = layers as f64 / elements.layer_weights() as f64;
    // Arithmetic is that of the nearest format.
    let names = ["q4_0", "q4_1", "q5_0", "q5_1", "q6_k", "q8_0", "bf16", "f32"];
    let known = names.iter().filter_map(|name| name.parse::<Format>().ok());
    let off = |format: &Format| (format.bytes() - mean).abs();
    let nearest = known.min_by(|a, b| off(a).total_cmp(&off(b)));
    let nearest = nearest.ok_or_else(|| Failure::request("no format is known"))?;
    // What a model has none of takes what the others do.
    let each = |bytes: u64, elements: u64| match elements {
        0 => mean,
        elements => bytes as f64 / elements as f64,
    };
    let columns = |layers: usize, columns: usize| (layers * shape.hidden * columns) as u64;
    let moe = shape.moe.as_ref();
    let attention = each(held.attention + held.values, elements.qkv + elements.out);
    let dense = each(held.dense_ffn, columns(shape.dense_layers(), 3 * shape.ffn));
    let of_moe = |bytes, of: &dyn Fn(&MoeShape) -> usize| {
        each(bytes, moe.map_or(0, |moe| columns(moe.layers, of(moe))))
    };
    Ok(Formats {
        qkv: attention,
        out: attention,
        ffn: [dense; 2],
        shared: [of_moe(held.shared_experts, &|moe| 3 * moe.shared_ffn); 2],
        experts: [each(held.experts, elements.experts); 2],
        router: of_moe(held.routers, &|moe| moe.experts),
        head: each(held.head, elements.head),
        ..Formats::uniform(Format { bits: mean * 8.0, ..nearest }, formats.kv)
    })
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
    model.cut_between_blocks().map_err(Failure::request)
}

/// Threads of a rank.
pub fn threads(args: &PlanArgs, machine: &Machine) -> usize {
    let most = args.ranks.0.last().copied().unwrap_or(1);
    let of_node = machine.ranks_per_node().map_or(most, |node| node.min(most));
    let cores = machine.profile().cores.as_ref().map_or(1, |cores| cores.count);
    args.threads.unwrap_or((cores / of_node).max(1))
}
