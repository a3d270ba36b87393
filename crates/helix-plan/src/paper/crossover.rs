//! From how many users on sharding the sequence wins over tensor parallelism: measured of decode
//! context parallelism (DCP), which is Helix's attention with `kvp = tp`.

use helix_layout::{Degrees, LayoutSpec, QkvMode, Strategy};

use crate::costs::Choices;
use crate::{Formats, Machine, Model, Placement, PlanError, Settings, predict};

/// One context.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Crossover {
    /// Positions of every sequence.
    pub context: usize,
    /// The smallest batch at which the sequence's shards win; none up to the largest that TP holds.
    pub batch: Option<usize>,
    /// The largest batch that TP holds.
    pub largest: usize,
}

/// Where 8 ranks with `kvp = 8` overtake 8 with `tp = 8`, of `model` on `machine`, among powers
/// of two.
///
/// # Errors
/// The model or the machine has no answer.
pub fn dcp_crossovers(
    model: &str,
    machine: &Machine,
    formats: Formats,
    contexts: &[usize],
) -> Result<Vec<Crossover>, PlanError> {
    let model = Model::named(model, formats);
    let model = model.map_err(|error| PlanError::Nothing(error.to_string()))?;
    let placement = |strategy, kvp, tpa, qkv| {
        let degrees = Degrees { kvp, tpa, dp: 1, tpf: 8, ep: 1 };
        let spec = LayoutSpec { degrees, qkv, ..LayoutSpec::new(strategy, kvp, tpa) };
        Placement { spec, pp: 1, choices: Choices::default(), hopb: false }
    };
    // DCP gathers queries, and neither hides its communication.
    let dcp = placement(Strategy::Helix, 8, 1, QkvMode::Gather);
    let tp = placement(Strategy::Tp, 1, 8, QkvMode::Replicate);
    let mut all = Vec::new();
    for &context in contexts {
        let settings = Settings::new(context);
        let ttl = |placement, batch| match predict(&model, machine, placement, batch, &settings) {
            Ok((prediction, _)) => Ok(Some(prediction.ttl_s)),
            Err(PlanError::Memory(_)) => Ok(None),
            Err(error) => Err(error),
        };
        let mut found = Crossover { context, batch: None, largest: 0 };
        for batch in (0..12).map(|power| 1 << power) {
            let Some(of_tp) = ttl(tp, batch)? else { break };
            found.largest = batch;
            let wins = ttl(dcp, batch)?.is_some_and(|of_dcp| of_dcp < of_tp);
            if wins && found.batch.is_none() {
                found.batch = Some(batch);
            }
        }
        all.push(found);
    }
    Ok(all)
}
