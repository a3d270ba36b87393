//! What one rank holds: its shards of every matrix, repacked for the kernels.

use std::collections::HashMap;
use std::num::NonZero;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;

use helix_kernels::{Matrix, PackError, Precision, Weights};
use helix_layout::{Layout, Rank};

use crate::model::{FINAL_NORM, layer_tensor};
use crate::tensor::Tensor;
use crate::{Model, ModelError};

/// The weights of one rank.
///
/// Matrices are `[rows, cols]` shards, outputs by inputs, and may be empty. Those that several
/// ranks of a process hold alike are held once; see [`SharedShards`].
#[derive(Debug)]
pub struct RankWeights {
    /// One entry per layer.
    pub layers: Vec<LayerWeights>,
    /// `[hidden]`: the norm before the LM head.
    pub final_norm: Vec<f32>,
    /// `[vocab_rows, hidden]`: this rank's rows of the LM head.
    pub head: Arc<Matrix>,
}

/// One layer of a rank's weights. `q`, `k` and `v` have the rows of [`Layout::qkv_share`].
#[derive(Debug)]
pub struct LayerWeights {
    /// `[hidden]`: the norm before attention.
    pub attn_norm: Vec<f32>,
    /// `[share of q rows, hidden]`.
    pub q: Arc<Matrix>,
    /// `[share of k rows, hidden]`.
    pub k: Arc<Matrix>,
    /// `[share of v rows, hidden]`.
    pub v: Arc<Matrix>,
    /// The bias of the rank's whole slice, laid end to end as `[q; k; v]`, whatever its share is.
    pub qkv_bias: Option<Vec<f32>>,
    /// `[head_dim]`: the norm of each query head.
    pub q_norm: Option<Vec<f32>>,
    /// `[head_dim]`: the norm of each key head.
    pub k_norm: Option<Vec<f32>>,
    /// `[hidden, out_cols]`: the output projection.
    pub out: Arc<Matrix>,
    /// `[hidden]`: the norm before the FFN.
    pub ffn_norm: Vec<f32>,
    /// `[ffn_cols, hidden]`.
    pub gate: Arc<Matrix>,
    /// `[ffn_cols, hidden]`.
    pub up: Arc<Matrix>,
    /// `[hidden, ffn_cols]`.
    pub down: Arc<Matrix>,
}

impl RankWeights {
    /// Reads the shards of `rank`, and no bytes of others', on all cores. `progress` is called in
    /// this thread with the bytes on disk of each shard as it is done; they add up to
    /// [`rank_bytes`].
    ///
    /// `layout` must be one of `model.shape()`. Errors: a weight that is NaN or infinite.
    pub fn load(
        model: &Model,
        layout: &Layout,
        rank: Rank,
        precision: Precision,
        progress: &dyn Fn(u64),
    ) -> Result<RankWeights, ModelError> {
        Self::load_shared(model, layout, rank, precision, &SharedShards::default(), progress)
    }

    /// As [`load`](Self::load), for the ranks of one process: what another rank has loaded
    /// through the same `shards` is not loaded again. Ranks may load at the same time.
    pub fn load_shared(
        model: &Model,
        layout: &Layout,
        rank: Rank,
        precision: Precision,
        shards: &SharedShards,
        progress: &dyn Fn(u64),
    ) -> Result<RankWeights, ModelError> {
        assert_eq!(*layout.shape(), model.shape(), "a layout of another model");
        let threads = thread::available_parallelism().map_or(1, NonZero::get);
        let (done, loaded) = mpsc::channel();
        let loader = Loader { model, layout, rank, precision, shards, done };
        let next = AtomicUsize::new(0);
        thread::scope(|scope| {
            let refused = |source| ModelError::Thread { source };
            let spawn = || {
                let (loader, next) = (loader.clone(), &next);
                thread::Builder::new().spawn_scoped(scope, move || loader.layers(next))
            };
            let workers = (0..threads.min(model.config.layers)).map(|_| spawn());
            let workers = workers.collect::<Result<Vec<_>, _>>().map_err(refused)?;
            let head = move || loader.matrix(head_shard(model, layout, rank));
            let head = thread::Builder::new().spawn_scoped(scope, head).map_err(refused)?;
            loaded.into_iter().for_each(progress); // until the last loader is dropped

            let mut layers = Vec::with_capacity(model.config.layers);
            for worker in workers {
                layers.extend(join(worker)?);
            }
            layers.sort_by_key(|(index, _)| *index);
            Ok(RankWeights {
                layers: layers.into_iter().map(|(_, layer)| layer).collect(),
                final_norm: model.tensor(FINAL_NORM)?.vector(model.config.hidden)?,
                head: join(head)?,
            })
        })
    }

    /// Bytes that the rank reads in a step: all its matrices, shared ones included.
    pub fn bytes(&self) -> usize {
        let layer = |layer: &LayerWeights| -> usize {
            let LayerWeights { q, k, v, out, gate, up, down, .. } = layer;
            [q, k, v, out, gate, up, down].iter().map(|matrix| matrix.bytes()).sum()
        };
        self.layers.iter().map(layer).sum::<usize>() + self.head.bytes()
    }
}

/// Bytes on disk of the matrices that `rank` holds.
pub fn rank_bytes(model: &Model, layout: &Layout, rank: Rank) -> Result<u64, ModelError> {
    let mut bytes = shard_bytes(model, &head_shard(model, layout, rank))?;
    for layer in 0..model.config.layers {
        for shard in layer_shards(model, layout, rank, layer) {
            bytes += shard_bytes(model, &shard)?;
        }
    }
    Ok(bytes)
}

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
struct Shard {
    tensor: String,
    rows: Range<usize>,
    cols: Range<usize>,
}

impl SharedShards {
    fn get_or_pack(
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

/// A layer's matrices in the order of [`LayerWeights`]: q, k, v, out, gate, up, down.
fn layer_shards(model: &Model, layout: &Layout, rank: Rank, layer: usize) -> [Shard; 7] {
    let all = 0..model.config.hidden;
    let [q, k, v] = layout.qkv_share(rank);
    let ffn = layout.ffn_cols(rank);
    let shard = |suffix: &str, rows: &Range<usize>, cols: &Range<usize>| Shard {
        tensor: layer_tensor(layer, suffix),
        rows: rows.clone(),
        cols: cols.clone(),
    };
    [
        shard("attn_q.weight", &q, &all),
        shard("attn_k.weight", &k, &all),
        shard("attn_v.weight", &v, &all),
        shard("attn_output.weight", &all, &layout.out_cols(rank)),
        shard("ffn_gate.weight", &ffn, &all),
        shard("ffn_up.weight", &ffn, &all),
        shard("ffn_down.weight", &all, &ffn),
    ]
}

fn head_shard(model: &Model, layout: &Layout, rank: Rank) -> Shard {
    Shard {
        tensor: model.head_name().to_owned(),
        rows: layout.vocab_rows(rank),
        cols: 0..model.config.hidden,
    }
}

fn shard_bytes(model: &Model, shard: &Shard) -> Result<u64, ModelError> {
    let format = model.tensor(&shard.tensor)?.format;
    let row = format.row_bytes(shard.cols.len()).expect("layouts cut between blocks");
    Ok(row as u64 * shard.rows.len() as u64)
}

/// What a thread needs to load some of a rank's weights.
#[derive(Clone)]
struct Loader<'a> {
    model: &'a Model,
    layout: &'a Layout,
    rank: Rank,
    precision: Precision,
    shards: &'a SharedShards,
    /// Gets the bytes on disk of each shard that is loaded.
    done: mpsc::Sender<u64>,
}

impl Loader<'_> {
    /// Loads layers until other threads have taken the rest, with their indices.
    fn layers(&self, next: &AtomicUsize) -> Result<Vec<(usize, LayerWeights)>, ModelError> {
        let mut mine = Vec::new();
        loop {
            let layer = next.fetch_add(1, Ordering::Relaxed);
            if layer >= self.model.config.layers {
                return Ok(mine);
            }
            match self.layer(layer) {
                Ok(loaded) => mine.push((layer, loaded)),
                Err(error) => {
                    next.store(self.model.config.layers, Ordering::Relaxed); // the others stop
                    return Err(error);
                }
            }
        }
    }

    fn layer(&self, layer: usize) -> Result<LayerWeights, ModelError> {
        let config = &self.model.config;
        let [q, k, v, out, gate, up, down] =
            layer_shards(self.model, self.layout, self.rank, layer);
        let norm = |suffix: &str, len: usize| self.vector(&layer_tensor(layer, suffix), len);
        let head_norm = |suffix: &str| match config.qk_norm {
            true => norm(suffix, config.head_dim).map(Some),
            false => Ok(None),
        };
        Ok(LayerWeights {
            attn_norm: norm("attn_norm.weight", config.hidden)?,
            q: self.matrix(q)?,
            k: self.matrix(k)?,
            v: self.matrix(v)?,
            qkv_bias: self.bias(layer)?,
            q_norm: head_norm("attn_q_norm.weight")?,
            k_norm: head_norm("attn_k_norm.weight")?,
            out: self.matrix(out)?,
            ffn_norm: norm("ffn_norm.weight", config.hidden)?,
            gate: self.matrix(gate)?,
            up: self.matrix(up)?,
            down: self.matrix(down)?,
        })
    }

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        self.model.tensor(name)?.vector(len)
    }

    /// The biases of the rank's heads, `[q; k; v]`.
    fn bias(&self, layer: usize) -> Result<Option<Vec<f32>>, ModelError> {
        let config = &self.model.config;
        if !config.qkv_bias {
            return Ok(None);
        }
        let (q, kv) = (self.layout.q_heads(self.rank), self.layout.kv_heads(self.rank));
        let mut bias = Vec::new();
        let all = [
            ("attn_q.bias", config.q_heads, &q),
            ("attn_k.bias", config.kv_heads, &kv),
            ("attn_v.bias", config.kv_heads, &kv),
        ];
        for (suffix, heads, own) in all {
            let whole = self.vector(&layer_tensor(layer, suffix), heads * config.head_dim)?;
            bias.extend_from_slice(&whole[own.start * config.head_dim..own.end * config.head_dim]);
        }
        Ok(Some(bias))
    }

    fn matrix(&self, shard: Shard) -> Result<Arc<Matrix>, ModelError> {
        let tensor = self.model.tensor(&shard.tensor)?;
        let bytes = shard_bytes(self.model, &shard)?;
        let (rows, cols) = (shard.rows.clone(), shard.cols.clone());
        let pack = || pack(&tensor, rows, cols, self.precision);
        let matrix = self.shards.get_or_pack((shard, self.precision), pack)?;
        // Nobody listens any more once another thread has failed.
        let _ = self.done.send(bytes);
        Ok(matrix)
    }
}

/// A thread's result; its panic goes on in this one.
fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn pack(
    tensor: &Tensor<'_>,
    rows: Range<usize>,
    cols: Range<usize>,
    precision: Precision,
) -> Result<Matrix, ModelError> {
    let weights = Weights::new(tensor.format, tensor.data, tensor.cols);
    Matrix::pack(weights, rows, cols, precision).map_err(|error| match error {
        PackError::NotFinite { row, .. } => {
            ModelError::NotFinite { name: tensor.name.to_owned(), row }
        }
        other => panic!("{}: layouts cut where matrices can be cut: {other}", tensor.name),
    })
}

#[cfg(test)]
mod tests;
