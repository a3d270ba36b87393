//! Which part of which tensor a rank holds.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use helix_kernels::{Matrix, Precision};
use helix_layout::{Layout, Rank};

use crate::arch::tensors::layer_tensor;
use crate::config::{Mla, Moe};
use crate::tensor::Tensor;
use crate::{Model, ModelError};

/// Shards that ranks of one process have in common: with `qkv=replicate` every rank of a KVP
/// group multiplies by the same rows of W_q, W_k and W_v, and they hold them once.
#[derive(Debug, Default)]
pub struct SharedShards {
    slots: Mutex<HashMap<(Shard, Precision), Arc<Slot>>>,
}

/// Locked while the first rank that needs it packs it; the others wait.
type Slot = Mutex<Option<Arc<Matrix>>>;

/// Part of a tensor.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Shard {
    pub name: String,
    /// The expert or head whose matrix it is, in a tensor of all.
    pub part: Option<usize>,
    pub rows: Range<usize>,
    pub cols: Range<usize>,
}

impl Shard {
    pub fn tensor<'m>(&self, model: &'m Model) -> Result<Tensor<'m>, ModelError> {
        match self.part {
            Some(part) => model.part(&self.name, part),
            None => model.tensor(&self.name),
        }
    }

    /// Bytes on disk.
    pub fn bytes(&self, model: &Model) -> Result<u64, ModelError> {
        Ok(self.tensor(model)?.part_bytes(&self.rows, &self.cols))
    }
}

impl SharedShards {
    pub(super) fn get_or_pack(
        &self,
        key: (Shard, Precision),
        pack: impl FnOnce() -> Result<Matrix, ModelError>,
    ) -> Result<Arc<Matrix>, ModelError> {
        // A rank that panicked while packing left its slot empty: the next one may try.
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            slots.entry(key).or_default().clone()
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(matrix) = &*slot {
            return Ok(matrix.clone());
        }
        let matrix = Arc::new(pack()?);
        *slot = Some(matrix.clone());
        Ok(matrix)
    }
}

pub(super) fn head_shard(model: &Model, layout: &Layout, rank: Rank) -> Shard {
    Shard {
        name: model.head_name().to_owned(),
        part: None,
        rows: layout.vocab_rows(rank),
        cols: 0..model.config.hidden,
    }
}

/// A layer's matrices, in the order in which `Loader::layer` takes them.
pub(super) fn layer_shards(model: &Model, layout: &Layout, rank: Rank, layer: usize) -> Vec<Shard> {
    let config = &model.config;
    let mut lister = Lister { layout, rank, layer, hidden: config.hidden, shards: Vec::new() };
    match &config.mla {
        None => lister.heads(),
        Some(mla) => lister.latent(mla),
    }
    lister.push("attn_output.weight", None, 0..config.hidden, layout.out_cols(rank));
    match config.moe(layer) {
        None => lister.ffn(["ffn_gate", "ffn_up", "ffn_down"], layout.ffn_cols(rank)),
        Some(moe) => lister.experts(moe),
    }
    lister.shards
}

struct Lister<'a> {
    layout: &'a Layout,
    rank: Rank,
    layer: usize,
    hidden: usize,
    shards: Vec<Shard>,
}

impl Lister<'_> {
    fn push(&mut self, name: &str, part: Option<usize>, rows: Range<usize>, cols: Range<usize>) {
        let name = layer_tensor(self.layer, name);
        self.shards.push(Shard { name, part, rows, cols });
    }

    fn heads(&mut self) {
        let rows = self.layout.qkv_share(self.rank);
        for (name, rows) in ["attn_q.weight", "attn_k.weight", "attn_v.weight"].iter().zip(rows) {
            self.push(name, None, rows, 0..self.hidden);
        }
    }

    fn latent(&mut self, mla: &Mla) {
        let &Mla { q_lora, kv_lora, nope, rope, value } = mla;
        let [q, kv, _] = self.layout.qkv_share(self.rank);
        match q_lora {
            None => self.push("attn_q.weight", None, q, 0..self.hidden),
            Some(q_lora) => {
                self.push("attn_q_a.weight", None, 0..q_lora, 0..self.hidden);
                self.push("attn_q_b.weight", None, q, 0..q_lora);
            }
        }
        debug_assert!(kv.is_empty() || kv == (0..kv_lora + rope));
        self.push("attn_kv_a_mqa.weight", None, kv, 0..self.hidden);
        for head in self.layout.q_share(self.rank) {
            self.push("attn_k_b.weight", Some(head), 0..kv_lora, 0..nope);
        }
        for head in self.layout.q_heads(self.rank) {
            self.push("attn_v_b.weight", Some(head), 0..value, 0..kv_lora);
        }
    }

    fn ffn(&mut self, [gate, up, down]: [&str; 3], cols: Range<usize>) {
        let name = |stem: &str| format!("{stem}.weight");
        self.push(&name(gate), None, cols.clone(), 0..self.hidden);
        self.push(&name(up), None, cols.clone(), 0..self.hidden);
        self.push(&name(down), None, 0..self.hidden, cols);
    }

    fn experts(&mut self, moe: &Moe) {
        // A rank outside the FFN routes nothing.
        let routes = self.layout.ffn(self.rank).is_some();
        let rows = 0..if routes { moe.experts } else { 0 };
        self.push("ffn_gate_inp.weight", None, rows, 0..self.hidden);
        let cols = self.layout.expert_cols(self.rank);
        for expert in self.layout.experts(self.rank) {
            let part = Some(expert);
            self.push("ffn_gate_exps.weight", part, cols.clone(), 0..self.hidden);
            self.push("ffn_up_exps.weight", part, cols.clone(), 0..self.hidden);
            self.push("ffn_down_exps.weight", part, 0..self.hidden, cols.clone());
        }
        if moe.shared_ffn > 0 {
            let cols = self.layout.shared_cols(self.rank);
            self.ffn(["ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp"], cols);
        }
    }
}
