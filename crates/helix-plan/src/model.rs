//! A model as the planner sees it: sizes, and how numbers are stored. Data, not weights.

use helix_layout::{LayoutError, MlaShape, ModelShape, MoeShape};
use serde::Deserialize;

use crate::format::Formats;

/// A decoder's sizes and formats.
#[derive(Clone, Debug, PartialEq)]
pub struct Model {
    /// What reports call it.
    pub name: String,
    /// Where the sizes come from.
    pub source: String,
    /// Sizes that decide how it can be cut.
    pub shape: ModelShape,
    /// Positions that it was trained for.
    pub context: usize,
    /// Layers that see the last positions only.
    pub window: Option<Window>,
    /// Whether the LM head is the embedding, which is then stored once.
    pub tied_head: bool,
    /// How its numbers are stored.
    pub formats: Formats,
}

/// Layers with a sliding window.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// How many layers have it.
    pub layers: usize,
    /// Positions that a query sees there, its own included.
    pub positions: usize,
}

/// Why a model was refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ModelError {
    /// No preset of that name.
    #[error("no model is called {name:?}; there are {known}, or give a config.json or GGUF file")]
    Name {
        /// As it was given.
        name: String,
        /// Those there are.
        known: String,
    },
    /// Not TOML, an unknown or missing field, a value of the wrong kind.
    #[error("{name}: {problem}")]
    Toml {
        /// Of the model.
        name: String,
        /// What is wrong, with the line.
        problem: String,
    },
    /// Sizes that no layout can cut.
    #[error(transparent)]
    Shape(#[from] LayoutError),
    /// A window that no layer can have.
    #[error(
        "a window of {positions} positions in {layers} of {all} layers: give at least 1 position, \
         and at most all layers"
    )]
    Window {
        /// Layers that have it.
        layers: usize,
        /// What they see.
        positions: usize,
        /// Layers of the model.
        all: usize,
    },
}

/// The file of a preset.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    source: String,
    layers: usize,
    hidden: usize,
    q_heads: usize,
    kv_heads: Option<usize>,
    head_dim: Option<usize>,
    value_dim: Option<usize>,
    #[serde(default)]
    ffn: usize,
    vocab: usize,
    context: usize,
    #[serde(default)]
    tied_head: bool,
    mla: Option<FileMla>,
    moe: Option<FileMoe>,
    window: Option<Window>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMla {
    q_lora: Option<usize>,
    kv_lora: usize,
    nope: usize,
    rope: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileMoe {
    layers: usize,
    experts: usize,
    top_k: usize,
    ffn: usize,
    #[serde(default)]
    shared_ffn: usize,
}

macro_rules! presets {
    ($($name:literal),* $(,)?) => {
        [$(($name, include_str!(concat!("../models/", $name, ".toml")))),*]
    };
}

/// Name and file of every model that the planner comes with.
const PRESETS: [(&str, &str); 9] = presets![
    "llama-3.1-8b",
    "llama-3.1-70b",
    "llama-3.1-405b",
    "deepseek-r1",
    "deepseek-v3",
    "kimi-k2",
    "qwen3-235b-a22b",
    "mixtral-8x22b",
    "gpt-oss-120b",
];

impl Model {
    /// The models that the planner comes with.
    pub fn names() -> impl Iterator<Item = &'static str> {
        PRESETS.iter().map(|&(name, _)| name)
    }

    /// A model that the planner comes with, its numbers in `formats`.
    pub fn named(name: &str, formats: Formats) -> Result<Model, ModelError> {
        let found = PRESETS.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        match found {
            Some((name, text)) => Model::from_toml(name, text, formats),
            None => Err(ModelError::Name {
                name: name.to_owned(),
                known: Model::names().collect::<Vec<_>>().join(", "),
            }),
        }
    }

    /// A model from the text of a file like those in `models/`.
    pub fn from_toml(name: &str, text: &str, formats: Formats) -> Result<Model, ModelError> {
        let file: File = toml::from_str(text).map_err(|error| ModelError::Toml {
            name: name.to_owned(),
            problem: error.to_string(),
        })?;
        let model = Model {
            name: name.to_owned(),
            source: file.source.clone(),
            shape: file.shape(name)?,
            context: file.context,
            window: file.window,
            tied_head: file.tied_head,
            formats,
        };
        model.cut_between_blocks()
    }

    /// The model with cuts between blocks of its weights' format alone.
    ///
    /// # Errors
    /// Sizes that nothing can be computed with.
    pub fn cut_between_blocks(mut self) -> Result<Model, ModelError> {
        self.formats.blocks(&mut self.shape);
        self.check()?;
        Ok(self)
    }

    fn check(&self) -> Result<(), ModelError> {
        use helix_layout::{Layout, LayoutSpec, Strategy};
        Layout::new(&self.shape, LayoutSpec::new(Strategy::Helix, 1, 1))?;
        let all = self.shape.layers;
        match self.window {
            Some(Window { layers, positions }) if layers > all || positions == 0 => {
                Err(ModelError::Window { layers, positions, all })
            }
            _ => Ok(()),
        }
    }

    /// Layers whose queries see every position before them.
    pub fn full_layers(&self) -> usize {
        self.shape.layers - self.window.map_or(0, |window| window.layers)
    }

    /// All weights: embedding and head included, norms and biases left out.
    pub fn weights(&self) -> f64 {
        use helix_layout::{Layout, LayoutSpec, Rank, Reads, Strategy};
        let whole = Layout::new(&self.shape, LayoutSpec::new(Strategy::Helix, 1, 1));
        let held = whole.map(|whole| Reads::held(&whole, Rank(0), 0));
        let embeddings = if self.tied_head { 1.0 } else { 2.0 };
        held.map_or(0.0, |held| held.layer_weights() as f64 + held.head as f64 * embeddings)
    }
}

impl File {
    fn shape(&self, name: &str) -> Result<ModelShape, ModelError> {
        let missing = |field: &str| ModelError::Toml {
            name: name.to_owned(),
            problem: format!("missing field `{field}`, which a model without [mla] has"),
        };
        let (kv_heads, head_dim) = match &self.mla {
            Some(mla) => (1, mla.kv_lora.saturating_add(mla.rope)),
            None => (
                self.kv_heads.ok_or_else(|| missing("kv_heads"))?,
                self.head_dim.ok_or_else(|| missing("head_dim"))?,
            ),
        };
        Ok(ModelShape {
            layers: self.layers,
            hidden: self.hidden,
            q_heads: self.q_heads,
            kv_heads,
            head_dim,
            value_dim: self.value_dim.unwrap_or(head_dim),
            ffn: self.ffn,
            vocab: self.vocab,
            out_block: 1,
            ffn_block: 1,
            mla: self.mla.as_ref().map(|mla| {
                let &FileMla { q_lora, kv_lora, nope, rope } = mla;
                MlaShape { q_lora, kv_lora, nope, rope }
            }),
            moe: self.moe.as_ref().map(|moe| {
                let &FileMoe { layers, experts, top_k, ffn, shared_ffn } = moe;
                MoeShape { layers, experts, top_k, ffn, block: 1, shared_ffn, shared_block: 1 }
            }),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published counts of parameters, in 10^9: of the models' cards.
    #[test]
    fn presets_have_as_many_weights_as_their_cards_say() {
        let published = [
            ("llama-3.1-8b", 8.03),
            ("llama-3.1-70b", 70.6),
            ("llama-3.1-405b", 405.9),
            ("deepseek-r1", 671.0),
            ("deepseek-v3", 671.0),
            ("kimi-k2", 1026.0),
            ("qwen3-235b-a22b", 235.1),
            ("mixtral-8x22b", 140.6),
            ("gpt-oss-120b", 116.8),
        ];
        assert_eq!(published.map(|(name, _)| name).to_vec(), Model::names().collect::<Vec<_>>());
        for (name, billions) in published {
            let weights = Model::named(name, Formats::default()).unwrap().weights() / 1e9;
            assert!((weights / billions - 1.0).abs() < 0.005, "{name}: {weights} for {billions}");
        }
    }

    #[test]
    fn unknown_names_and_fields_are_refused() {
        let error = Model::named("llama-9", Formats::default()).unwrap_err().to_string();
        assert!(error.contains("llama-3.1-405b"), "{error}");
        let text = include_str!("../models/llama-3.1-8b.toml");
        let refusal =
            |text: &str| Model::from_toml("m", text, Formats::default()).unwrap_err().to_string();
        assert!(refusal(&format!("{text}\nlayres = 3")).contains("layres"));
        assert!(refusal(&text.replace("kv_heads = 8", "")).contains("kv_heads"));
        assert!(refusal(&text.replace("kv_heads = 8", "kv_heads = 7")).contains("32 query heads"));
        assert!(refusal(&text.replace("= 4096", "= 99999999999")).contains("hidden size"));
        let window = format!("{text}\n[window]\nlayers = 33\npositions = 9");
        assert!(refusal(&window).contains("33 of 32 layers"));
    }
}
