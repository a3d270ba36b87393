//! Hundreds of seeds of delay, loss and death through the engine: every rank ends in time, with the
//! right logits or an error that names a rank, a collective and a step.

use super::*;
use crate::options::{FfnReduce, HopB};
use crate::rank::largest_messages;
use helix_comm::{Collective, Fate, Faults, Faulty};
use helix_layout::LayoutSpec;
use helix_model::Arch;
use helix_model::synthetic::{Spec, gguf};
use helix_scheduler::Wanted;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::time::{Duration, Instant};

const SEEDS: u64 = 600;
/// Runs at a time: they mostly sleep.
const AT_ONCE: usize = 8;
const STEPS: usize = 12;
const DEADLINE: Duration = Duration::from_millis(400);
/// A rank may wait for the deadline in a collective, and so may the one that it waits for.
const LIMIT: Duration = Duration::from_secs(8);
/// Models and layouts: dense, and experts on a grid of TPF x EP.
const CASES: [(Arch, &str); 9] = [
    (Arch::Llama, "helix kvp=2"),
    (Arch::Llama, "helix kvp=2 tpa=2 qkv=gather"),
    (Arch::Llama, "helix kvp=3 block=1"),
    (Arch::Llama, "tp tpa=4"),
    (Arch::Llama, "medha kvp=2 tpa=2"),
    (Arch::Llama, "helix kvp=1 tpa=2"),
    (Arch::Qwen3Moe, "helix kvp=2 tpa=2 tpf=2 ep=2"),
    (Arch::Qwen3Moe, "helix kvp=2 tpf=1 ep=2"),
    (Arch::Qwen3Moe, "dp-ep dp=2"),
];

fn model(arch: Arch) -> Arc<Model> {
    let spec = Spec { q_heads: 12, kv_heads: 4, ..Spec::tiny(arch) };
    Arc::new(Model::from_gguf_bytes(gguf(&spec, 3)).expect("a model"))
}

fn options() -> EngineOptions {
    EngineOptions {
        max_context: 64,
        max_sequences: 2,
        max_step_tokens: 16,
        max_logits: 2,
        hopb: HopB::Pieces(3),
        ffn_reduce: FfnReduce::Grid,
        reduce_slices: 2,
        deadline: DEADLINE,
        ..EngineOptions::default()
    }
}

/// A layout's ranks over what `link` makes of their ends.
fn ranks(model: &Arc<Model>, name: &str, fates: Option<(Faults, u64)>) -> (LocalRanks, Vec<Fate>) {
    let spec = LayoutSpec::read(name, &model.shape()).expect(name);
    let layout = Layout::new(&model.shape(), spec).expect(name);
    let (faults, seed) = fates.unwrap_or_default();
    let fates: Vec<_> = (0..layout.ranks()).map(|rank| Fate::new(rank, faults, seed)).collect();
    let messages = largest_messages(model, &layout, &options());
    let comms = Comms::of_all_over(&layout, &messages, &options(), |rank, comm| {
        Faulty::new(comm, fates[rank].clone()).into()
    });
    let ranks = layout.all_ranks().zip(comms);
    let ranks = LocalRanks::load(model, &layout, ranks, &options(), &|_| {}).expect("ranks");
    (ranks, fates)
}

/// Two prompts, then a token of each.
fn step(index: usize) -> Step {
    let mut step = Step::default();
    for slot in 0..2 {
        let (start, len) = if index == 0 { (0, 5) } else { (4 + index, 1) };
        let tokens: Vec<u32> = (0..len).map(|i| (7 * i + 3 * slot + index) as u32 + 1).collect();
        step.push(slot, start, &tokens, Wanted::Last);
    }
    step
}

/// Logits of each step, up to one that failed.
fn play(ranks: &mut LocalRanks, vocab: usize) -> (Vec<Vec<u32>>, Option<EngineError>) {
    let mut logits = Vec::new();
    for index in 0..STEPS {
        if let Err(error) = ranks.step(&step(index)) {
            return (logits, Some(error));
        }
        logits.push(ranks.logits()[..2 * vocab].iter().map(|logit| logit.to_bits()).collect());
    }
    (logits, None)
}

/// Who is named as the one that failed, or was late.
fn blamed(error: &CommError) -> (usize, Collective) {
    match error {
        CommError::PeerFailed { rank, collective, .. }
        | CommError::Timeout { rank, collective, .. } => (*rank, *collective),
        _ => panic!("no such error between threads: {error}"),
    }
}

#[test]
fn every_seed_ends_in_time_with_the_right_logits_or_errors_that_name_a_rank() {
    let cases = CASES.map(|(arch, name)| {
        let model = model(arch);
        let (logits, error) = play(&mut ranks(&model, name, None).0, model.config.vocab);
        assert!(error.is_none(), "{name}");
        (model, name, logits)
    });
    let (next, failed) = (AtomicU64::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= SEEDS {
                        break;
                    }
                    let (model, name, expected) = &cases[seed as usize % CASES.len()];
                    let fails = run(model, seed, name, expected);
                    failed.fetch_add(usize::from(fails), Ordering::Relaxed);
                }
            });
        }
    });
    let failed = failed.into_inner();
    println!("{failed} of {SEEDS} seeds failed a run");
    let range = SEEDS as usize / 10..SEEDS as usize * 2 / 3;
    assert!(range.contains(&failed), "{failed} of {SEEDS} failed: the faults test nothing");
}

/// Whether the seed failed a step.
fn run(model: &Arc<Model>, seed: u64, name: &str, expected: &[Vec<u32>]) -> bool {
    // Of each case every third seed has delays alone, which is no failure.
    let fatal = !(seed / CASES.len() as u64).is_multiple_of(3);
    let faults = Faults {
        delays: 60,
        longest_delay: Duration::from_millis(2),
        losses: if fatal { 1500 } else { 0 },
        deaths: if fatal { 1000 } else { 0 },
        deadline: DEADLINE,
    };
    let (mut ranks, fates) = ranks(model, name, Some((faults, seed)));
    let since = Instant::now();
    let (logits, error) = play(&mut ranks, model.config.vocab);
    let place = format!("seed {seed}, {name}");
    assert!(since.elapsed() < LIMIT, "{place}: {:?}", since.elapsed());
    let right = logits.iter().zip(expected).all(|(found, expected)| found == expected);
    assert!(right, "{place}: wrong logits were given out");
    let Some(error) = error else {
        assert_eq!(logits.len(), STEPS, "{place}");
        return false;
    };
    assert!(fates.iter().any(Fate::is_sealed), "{place}: {error}, and nobody failed");
    let EngineError::Comm { rank, step, .. } = error else { panic!("{place}: {error}") };
    assert_eq!(step as usize, logits.len() + 1, "{place}");
    assert!(rank < fates.len(), "{place}");
    for (rank, result) in ranks.results.iter().enumerate() {
        // A rank that had sent all that others need may have ended its step.
        let Err(error) = &*lock(result) else { continue };
        let (blamed, collective) = blamed(error);
        assert!(blamed < fates.len(), "{place}: rank {rank} blames rank {blamed}");
        assert!(Collective::ALL.contains(&collective), "{place}");
        assert!(error.to_string().contains(&format!("rank {blamed} ")), "{place}: {error}");
    }
    true
}
