//! The ranks of this process: all of a layout's, or one of them.

use crate::comms::Comms;
use crate::counters::RankCounters;
use crate::rank::Rank;
use crate::{EngineError, EngineOptions, RankTrace};
use helix_comm::{CommError, Team};
use helix_layout::{Layout, Rank as RankId};
use helix_model::{Model, RankWeights, SharedShards};
use helix_scheduler::Step;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Ranks as thread teams. Whoever calls is the first one's leader.
pub(crate) struct LocalRanks {
    leaders: Team,
    ranks: Vec<Mutex<Rank>>,
    /// Of the last step.
    results: Vec<Mutex<Result<(), CommError>>>,
    steps: u64,
}

impl LocalRanks {
    /// Loads these ranks' shards; `progress` is told bytes of weights as they are read.
    pub(crate) fn load(
        model: &Arc<Model>,
        layout: &Layout,
        ranks: impl Iterator<Item = (RankId, Comms)>,
        options: &EngineOptions,
        progress: &dyn Fn(u64),
    ) -> Result<LocalRanks, EngineError> {
        let shards = SharedShards::default();
        let load = |(rank, comms)| {
            let weights = RankWeights::load_shared(
                model,
                layout,
                rank,
                options.precision,
                &shards,
                progress,
            )?;
            Rank::new(Arc::clone(model), layout, rank, weights, comms, options).map(Mutex::new)
        };
        let ranks = ranks.map(load).collect::<Result<Vec<_>, EngineError>>()?;
        let leaders = Team::new("helix-rank", ranks.len())
            .map_err(|source| EngineError::System { what: "a thread", source })?;
        let results = ranks.iter().map(|_| Mutex::new(Ok(()))).collect();
        Ok(LocalRanks { leaders, ranks, results, steps: 0 })
    }

    /// Binds each thread to a processor: the first rank's to the first ones, and so on.
    ///
    /// # Errors
    /// The system does not let it.
    pub(crate) fn pin(&mut self, processors: &[usize]) -> Result<(), EngineError> {
        let ranks = &self.ranks;
        let refused = AtomicBool::new(processors.is_empty());
        self.leaders.run_all(&|index| {
            if !processors.is_empty() && !lock(&ranks[index]).lanes.pin(processors, index) {
                refused.store(true, Ordering::Relaxed);
            }
        });
        match refused.into_inner() {
            true => Err(EngineError::Pin),
            false => Ok(()),
        }
    }

    /// Runs one step on all of them.
    ///
    /// # Errors
    /// Ranks lost each other.
    ///
    /// # Panics
    /// With the payload of a rank that panicked.
    pub(crate) fn step(&mut self, step: &Step) -> Result<(), EngineError> {
        self.steps += 1;
        let (number, ranks, results) = (self.steps, &self.ranks, &self.results);
        self.leaders.run_all(&|index| {
            let mut rank = lock(&ranks[index]);
            rank.comms.at_step(number);
            let result = catch_unwind(AssertUnwindSafe(|| rank.step(step)));
            if !matches!(result, Ok(Ok(()))) {
                rank.comms.abort();
            }
            match result {
                Ok(result) => *lock(&results[index]) = result,
                Err(payload) => resume_unwind(payload),
            }
        });
        for (rank, result) in self.ranks.iter().zip(&self.results) {
            if let Err(source) = lock(result).clone() {
                let rank = lock(rank).plan.rank.0;
                return Err(EngineError::Comm { rank, step: self.steps, source });
            }
        }
        Ok(())
    }

    /// The first rank's logits.
    pub(crate) fn logits(&mut self) -> &mut [f32] {
        let root = self.ranks[0].get_mut().unwrap_or_else(PoisonError::into_inner);
        &mut root.buffers.logits
    }

    pub(crate) fn truncate(&mut self, slot: usize, len: usize) {
        for rank in &mut self.ranks {
            rank.get_mut().unwrap_or_else(PoisonError::into_inner).truncate(slot, len);
        }
    }

    pub(crate) fn fill_with_noise(&mut self, slot: usize, from: usize, len: usize) {
        let ranks = &self.ranks;
        self.leaders.run_all(&|index| lock(&ranks[index]).fill_with_noise(slot, from, len));
    }

    pub(crate) fn counters(&self) -> impl Iterator<Item = RankCounters> {
        self.ranks.iter().map(|rank| lock(rank).counters())
    }

    pub(crate) fn trace(&self) -> impl Iterator<Item = RankTrace> {
        self.ranks.iter().map(|rank| lock(rank).trace())
    }

    pub(crate) fn reset_counters(&mut self) {
        self.ranks.iter().for_each(|rank| lock(rank).reset_counters());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
