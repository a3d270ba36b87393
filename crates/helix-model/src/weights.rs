//! What one rank holds: its shards of every matrix, repacked for the kernels.

mod holdings;
mod layer;
mod shards;

use std::num::NonZero;
use std::ops::BitOr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread;

use helix_kernels::{Forms, Matrix, PackError, Precision};
use helix_layout::{Layout, Rank};

pub use holdings::{HeldIn, Holdings};
pub use layer::{
    AttentionWeights, DenseWeights, ExpertWeights, FfnWeights, HeadsWeights, LatentWeights,
    LayerWeights, MoeWeights,
};
pub use shards::SharedShards;

use crate::arch::tensors::FINAL_NORM;
use crate::{Model, ModelError};
use shards::{Shard, head_shard, layer_shards};

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
            let own = loader.clone();
            let head = move || loader.matrix(head_shard(model, layout, rank));
            let head = thread::Builder::new().spawn_scoped(scope, head).map_err(refused)?;
            let final_norm = own.norm(FINAL_NORM, model.config.hidden);
            drop(own);
            loaded.into_iter().for_each(progress); // until the last loader is dropped

            // All of them, before the first error returns: a scope waits for its closures alone, and
            // a caller may take the process down while a thread's own memory is still alive.
            let layers: Vec<_> = workers.into_iter().map(join).collect();
            let head = join(head);
            let layers = layers.into_iter().collect::<Result<Vec<_>, _>>()?;
            let mut layers: Vec<_> = layers.into_iter().flatten().collect();
            layers.sort_by_key(|(index, _)| *index);
            Ok(RankWeights {
                layers: layers.into_iter().map(|(_, layer)| layer).collect(),
                final_norm: final_norm?,
                head: head?,
            })
        })
    }

    fn matrices(&self) -> impl Iterator<Item = &Matrix> {
        self.layers.iter().flat_map(LayerWeights::matrices).chain([&*self.head])
    }

    /// What its matrices' products need of activations.
    pub fn wants(&self) -> Forms {
        self.matrices().map(Matrix::wants).fold(Forms::default(), Forms::bitor)
    }

    /// Bytes of all its matrices: what the rank reads in a step, if every one of its experts is
    /// routed to.
    pub fn bytes(&self) -> usize {
        self.matrices().map(Matrix::bytes).sum()
    }
}

/// Bytes on disk of the matrices that `rank` holds.
pub fn rank_bytes(model: &Model, layout: &Layout, rank: Rank) -> Result<u64, ModelError> {
    let mut bytes = head_shard(model, layout, rank).bytes(model)?;
    for layer in 0..model.config.layers {
        for shard in layer_shards(model, layout, rank, layer) {
            bytes += shard.bytes(model)?;
        }
    }
    Ok(bytes)
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

    fn vector(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        self.model.tensor(name)?.vector(len)
    }

    /// The weights of a norm.
    fn norm(&self, name: &str, len: usize) -> Result<Vec<f32>, ModelError> {
        let mut weights = self.vector(name, len)?;
        let offset = self.model.config.norm_offset;
        if offset != 0.0 {
            weights.iter_mut().for_each(|weight| *weight += offset);
        }
        Ok(weights)
    }

    fn matrix(&self, shard: Shard) -> Result<Arc<Matrix>, ModelError> {
        let bytes = shard.bytes(self.model)?;
        let key = (shard.clone(), self.precision);
        let matrix = self.shards.get_or_pack(key, || pack(self.model, shard, self.precision))?;
        // Nobody listens any more once another thread has failed.
        let _ = self.done.send(bytes);
        Ok(matrix)
    }
}

/// A thread's result; its panic goes on in this one.
fn join<T>(thread: thread::ScopedJoinHandle<'_, T>) -> T {
    thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

fn pack(model: &Model, shard: Shard, precision: Precision) -> Result<Matrix, ModelError> {
    let tensor = shard.tensor(model)?;
    let format = model.packed_format(&shard.name, &tensor);
    let first = shard.rows.start;
    let cut = tensor.cut_as(format, shard.rows, shard.cols)?;
    let packed = Matrix::pack(cut.weights(), cut.rows.clone(), cut.cols.clone(), precision);
    packed.map_err(|error| not_packed(error, tensor.name, |row| row + first - cut.rows.start))
}

/// Why a shard of a tensor is not there; `row_of` is the tensor's row of one that was cut.
fn not_packed(error: PackError, name: &str, row_of: impl Fn(usize) -> usize) -> ModelError {
    let name = name.to_owned();
    match error {
        PackError::NotFinite { row, .. } => ModelError::NotFinite { name, row: row_of(row) },
        PackError::Memory(source) => ModelError::Memory { name, source },
        other => panic!("{name}: layouts cut where matrices can be cut: {other}"),
    }
}

#[cfg(test)]
mod tests;
