//! Ranks as processes against ranks as threads: the same bits, the same traffic.

mod common;
mod launch;

#[cfg(not(feature = "mpi"))]
#[test]
fn ranks_as_processes() {
    println!("skipped: built without MPI (the cargo feature `mpi`)");
}

#[cfg(feature = "mpi")]
mod with_mpi {
    use super::{common, launch};
    use helix_comm::World;
    use helix_comm::mpi::{CommThread, MpiWorld};
    use helix_engine::{
        Engine, EngineError, EngineOptions, FfnReduce, HopB, RankCounters, dismiss, follow,
    };
    use helix_layout::Layout;
    use helix_model::gguf::GgmlType;
    use helix_model::synthetic::{Spec, gguf, writer};
    use helix_model::{Arch, Model, rank_bytes};
    use helix_scheduler::{Step, Wanted};
    use std::sync::Arc;
    use std::time::Duration;

    const RANKS: usize = 4;

    const PATIENCE: Duration = Duration::from_secs(60);

    fn join(thread: CommThread) -> Arc<dyn World> {
        let mut world = MpiWorld::join(Arc::default()).expect("MPI starts");
        world.drive(thread, PATIENCE).expect("a thread");
        Arc::new(world)
    }

    /// What a layout says to a text: logits, and what each rank read, held and sent.
    #[derive(Debug, PartialEq)]
    struct Said {
        logits: Vec<u32>,
        counters: Vec<[u64; 36]>,
    }

    /// All counters but times, which are nobody's to repeat.
    fn numbers(counters: &RankCounters) -> [u64; 36] {
        let &RankCounters { steps, weight_bytes, kv_bytes_read, kv_bytes_held, .. } = counters;
        let traffic = [counters.world, counters.kvp, counters.experts[0], counters.experts[1]];
        let traffic = traffic.iter().flat_map(|t| t.calls.into_iter().chain(t.bytes));
        let all = [steps, weight_bytes, kv_bytes_read, kv_bytes_held].into_iter().chain(traffic);
        all.collect::<Vec<_>>().try_into().expect("all of them")
    }

    /// Two sequences: prompts in pieces, decoding of both, one cut back, noise before one.
    fn play(engine: &mut Engine) -> Result<Said, EngineError> {
        let mut logits = Vec::new();
        let mut step = Step::default();
        let mut run = |engine: &mut Engine, runs: &[(usize, &[u32], Wanted)]| {
            step.clear();
            for &(slot, tokens, wanted) in runs {
                step.push(slot, engine.len(slot), tokens, wanted);
            }
            let rows = engine.step(&step)?;
            logits.extend(rows.iter().map(|logit| logit.to_bits()));
            Ok::<_, EngineError>(())
        };
        engine.reset_counters();
        let prompt: Vec<u32> = (0..40).map(|i| i * 7 % 60 + 1).collect();
        run(engine, &[(0, &prompt[..23], Wanted::None)])?;
        run(engine, &[(0, &prompt[23..], Wanted::All), (1, &prompt[5..14], Wanted::Last)])?;
        for token in 1..4 {
            run(engine, &[(0, &[token], Wanted::Last), (1, &[2 * token], Wanted::Last)])?;
        }
        engine.truncate(0, 31);
        run(engine, &[(0, &[9, 8, 7], Wanted::Last)])?;
        engine.release(1);
        engine.fill_with_noise(1, 20);
        run(engine, &[(1, &[5], Wanted::Last)])?;
        let counters = engine.counters()?.iter().map(numbers).collect();
        Ok(Said { logits, counters })
    }

    fn models() -> Vec<Arc<Model>> {
        let uneven = Spec { q_heads: 9, kv_heads: 3, ffn: 52, ..Spec::tiny(Arch::Llama) };
        let bytes = [gguf(&uneven, 31), gguf(&Spec::tiny(Arch::Qwen2), 5)];
        let dense = bytes.map(|bytes| Arc::new(Model::from_gguf_bytes(bytes).expect("a model")));
        let directories = ["qwen3-moe", "deepseek-v3"].map(common::fixture);
        dense.into_iter().chain(directories).collect()
    }

    fn options() -> EngineOptions {
        EngineOptions {
            max_sequences: 4,
            ffn_reduce: FfnReduce::Grid,
            hopb: HopB::Pieces(3),
            reduce_slices: 2,
            deadline: PATIENCE,
            ..common::precise()
        }
    }

    fn compare(world: &Arc<dyn World>, model: &Arc<Model>, layout: Layout) {
        let mut threads = common::engine(model, layout, options());
        let expected = play(&mut threads).expect("threads");
        drop(threads);
        let mut processes = Engine::lead(world, Arc::clone(model), layout, options(), &|_| {})
            .expect("an engine of processes");
        let shares =
            layout.all_ranks().map(|rank| rank_bytes(model, &layout, rank).expect("bytes"));
        assert_eq!(processes.bytes_loaded(), shares.collect::<Vec<_>>(), "{layout}: bytes loaded");
        let found = play(&mut processes).expect("processes");
        assert!(found == expected, "{layout}: processes and threads differ");
    }

    #[test]
    fn every_layout_gives_the_bits_and_the_traffic_of_threads() {
        if !launch::is_rank() {
            let name = "with_mpi::every_layout_gives_the_bits_and_the_traffic_of_threads";
            return launch::pass_as_ranks(name, RANKS, Duration::from_secs(300));
        }
        let world = join(CommThread::Napping);
        assert_eq!(world.size(), RANKS);
        for model in models() {
            if world.rank() > 0 {
                follow(&world, Some(&model), 1, PATIENCE).expect("rank 0 leads to the end");
                continue;
            }
            let layouts = common::layouts(&model.shape(), RANKS, &[1, 16]);
            println!("{}: {} layouts", model.config.name, layouts.len());
            for layout in layouts {
                // With one shard of the sequence, blocks change nothing.
                if layout.degrees().kvp > 1 || layout.kv_block() == 16 {
                    compare(&world, &model, layout);
                }
            }
            dismiss(&*world, PATIENCE).expect("the others listen");
        }
    }

    #[test]
    fn a_rank_that_is_refused_is_named() {
        if !launch::is_rank() {
            let name = "with_mpi::a_rank_that_is_refused_is_named";
            return launch::pass_as_ranks(name, 3, Duration::from_secs(60));
        }
        let world = join(CommThread::Off);
        let mut bytes = gguf(&Spec::tiny(Arch::Llama), 1);
        let open = |bytes| Arc::new(Model::from_gguf_bytes(bytes).expect("a model"));
        let good = open(bytes.clone());
        // Half of what the file holds is not a number.
        let half = bytes.len() / 2;
        bytes[half..].fill(0xff);
        let damaged = open(bytes);
        if world.rank() > 0 {
            let model = if world.rank() == 2 { &damaged } else { &good };
            return follow(&world, Some(model), 1, PATIENCE).expect("rank 0 leads to the end");
        }
        let layout = common::layout(&good, "helix kvp=3 tpa=1");
        let refused = Engine::lead(&world, Arc::clone(&good), layout, options(), &|_| {});
        let error = refused.err().expect("rank 2 refuses");
        assert!(matches!(error, EngineError::Refused { rank: 2, .. }), "{error}");
        // They are there for the next one, in which rank 2 has no part.
        compare(&world, &good, common::layout(&good, "helix kvp=2 tpa=1"));
        dismiss(&*world, PATIENCE).expect("the others listen");
    }

    /// A rank may have a disk of its own, from which it reads its part alone.
    #[test]
    fn of_an_embedding_that_is_no_head_a_rank_reads_its_rows() {
        if !launch::is_rank() {
            let name = "with_mpi::of_an_embedding_that_is_no_head_a_rank_reads_its_rows";
            return launch::pass_as_ranks(name, 2, Duration::from_secs(60));
        }
        let world = join(CommThread::Off);
        let spec = Spec { tied_head: false, ..Spec::tiny(Arch::Llama) };
        let (vocab, hidden) = (spec.vocab, spec.hidden);
        let damaged = |row: usize| {
            let (name, f32s) = ("token_embd.weight", GgmlType::from_name("F32").expect("a type"));
            let value = |i: usize| if i == row * hidden { f32::NAN } else { 0.5 };
            let data = (0..vocab * hidden).flat_map(|i| value(i).to_le_bytes()).collect();
            let mut file = writer(&spec, 3);
            file.remove_tensor(name).tensor(name, &[hidden, vocab], f32s, data);
            Arc::new(Model::from_gguf_bytes(file.finish()).expect("a model"))
        };
        for (row, refused) in [(0, false), (vocab - 1, true)] {
            if world.rank() > 0 {
                follow(&world, Some(&damaged(row)), 1, PATIENCE).expect("rank 0 leads to the end");
                continue;
            }
            let good = Arc::new(Model::from_gguf_bytes(gguf(&spec, 3)).expect("a model"));
            let layout = common::layout(&good, "helix kvp=2 tpa=1");
            let error = Engine::lead(&world, good, layout, options(), &|_| {}).err();
            let named = matches!(error, Some(EngineError::Refused { rank: 1, .. }));
            assert_eq!((error.is_some(), named), (refused, refused), "row {row}: {error:?}");
            dismiss(&*world, PATIENCE).expect("the others listen");
        }
    }
}
