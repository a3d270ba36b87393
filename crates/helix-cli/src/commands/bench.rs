//! `helix bench`: speed at depths of context, and its distance from the memory's.

mod compare;

use self::compare::{Comparison, Planner};
use crate::args::{BenchArgs, Expected};
use crate::bandwidth::read_gb_s;
use crate::console::{Bar, Console, Unit};
use crate::failure::{Failure, Outcome};
use crate::figures::{self, Spread, rounded};
use crate::output::Table;
use crate::processes::Ranks;
use crate::setup::Choices;
use crate::trace::Trace;
use crate::{output, ranks, setup};
use helix_comm::{Collective, Overlap};
use helix_engine::{Engine, EngineOptions, Line, RankCounters};
use helix_model::Model;
use helix_scheduler::{Step, Wanted};
use serde::Serialize;
use serde_json::{Map, Value};
use std::ops::AddAssign;
use std::time::{Duration, Instant};

/// One thing to time.
#[derive(Clone, Copy, Debug)]
struct Test {
    kind: Kind,
    /// Tokens of the prompt, or tokens to decode for each sequence.
    tokens: usize,
    depth: usize,
    batch: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Pp,
    Tg,
}

/// Runs the command.
pub fn run(mut args: BenchArgs, ranks: &Ranks) -> Outcome {
    let console = Console::new(args.output.quiet);
    let tests = tests(&args)?;
    let (trace, delay) = (Trace::new(&args.trace)?, args.link.delay()?);
    if delay.is_some() && ranks.world().is_some() {
        return Err(Failure::request(
            "--link-us and --link-gbit are for ranks that are threads: with --transport mpi links \
             are what they are",
        ));
    }
    let model = setup::open(ranks, &args.model, &args.engine, &console)?;
    let longest = tests.iter().map(|test| test.depth.saturating_add(test.tokens)).max();
    let longest = longest.unwrap_or(1);
    if let Some(note) = setup::untrained(longest, model.config.context) {
        console.note(&format!("note: {note}"));
    }
    let depth = tests.iter().map(|test| test.depth).max().unwrap_or(0);
    let planner = args.compare_plan.as_deref();
    let planner =
        planner.map(|machine| Planner::new(machine, &model, args.engine.kv_type())).transpose()?;
    let batch = tests.iter().map(|test| test.batch).max().unwrap_or(1);
    let expected = Expected { batch, context: depth, links: delay };
    let layout = args.layout.resolve(ranks, &model, &mut args.engine, expected, &console)?;
    let options = setup::options(ranks, &args.engine, &layout, &console)?;
    let options = EngineOptions {
        max_context: longest,
        max_sequences: batch,
        max_step_tokens: options.max_step_tokens.max(batch),
        max_logits: batch,
        // Repetitions go back to where the first began, whatever windows have passed since.
        rewind: tests.iter().map(|test| test.tokens).max().unwrap_or(0),
        delay,
        trace: trace.events(),
        ..options
    };
    let engine = setup::start(ranks, &model, layout, options, &console)?;
    let rounds = (tests.len() * (args.repetitions + 1)) as u64;
    let bar = console.bar("bench", rounds, Unit::Count("runs"));
    let mut bench = Bench::new(engine, &model, args.repetitions);
    let mut runs =
        tests.iter().map(|test| bench.measure(*test, &bar)).collect::<Outcome<Vec<_>>>()?;
    drop(bar);
    trace.write(&bench.engine)?;
    if let Some(planner) = &planner {
        for run in runs.iter_mut().filter(|run| run.test == Kind::Tg) {
            // In the middle of the run.
            let context = run.depth + run.n.div_ceil(2);
            let measured_us = run.batch as f64 / run.tokens_per_s.median * 1e6;
            let shape = (run.batch, context);
            run.plan = Some(planner.compare(&bench.engine, shape, measured_us)?);
        }
    }
    report(&args, Choices::new(&args.engine, &model), &bench.engine, runs)
}

/// What to time, shallow depths first so that the cache is filled once.
fn tests(args: &BenchArgs) -> Outcome<Vec<Test>> {
    let mut depths = args.depth.clone();
    depths.sort_unstable();
    depths.dedup();
    if args.batch.contains(&0) {
        return Err(Failure::request("-b 0 decodes nothing: give at least 1 sequence"));
    }
    let mut tests = Vec::new();
    for depth in depths {
        for &tokens in args.prompt.iter().filter(|&&tokens| tokens > 0) {
            tests.push(Test { kind: Kind::Pp, tokens, depth, batch: 1 });
        }
        for &batch in &args.batch {
            for &tokens in args.tokens.iter().filter(|&&tokens| tokens > 0) {
                tests.push(Test { kind: Kind::Tg, tokens, depth, batch });
            }
        }
    }
    match tests.is_empty() {
        true => Err(Failure::request("-p 0 -n 0 leaves nothing to time")),
        false => Ok(tests),
    }
}

/// An engine under test.
struct Bench {
    engine: Engine,
    repetitions: usize,
    threads: usize,
    vocab: usize,
    step: Step,
    /// Where the stream of arbitrary tokens is.
    random: u64,
}

/// What a test gave.
#[derive(Debug, Serialize)]
struct Run {
    test: Kind,
    n: usize,
    depth: usize,
    batch: usize,
    tokens_per_s: Spread,
    bytes_per_token: u64,
    gb_s: f64,
    /// Read bandwidth, measured in turns with the repetitions.
    read_gb_s: f64,
    read_fraction: f64,
    /// The partial attention of a decode alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    attention: Option<Attention>,
    /// Of several ranks.
    #[serde(skip_serializing_if = "Option::is_none")]
    communication: Option<Communication>,
    /// Mean time of a step by line, on the rank that took longest in all.
    lines_us: Map<String, Value>,
    /// What the planner says of a decode.
    #[serde(skip_serializing_if = "Option::is_none")]
    plan: Option<Comparison>,
}

/// Partial attention: KV bytes that all ranks read over the time of that line.
#[derive(Clone, Copy, Debug, Serialize)]
struct Attention {
    bytes_per_token: u64,
    gb_s: f64,
    read_fraction: f64,
}

/// Microseconds of a step, on average over ranks.
#[derive(Clone, Copy, Debug, Serialize)]
struct Communication {
    /// That a rank stood still for messages.
    exposed_us: f64,
    /// That messages were in flight while it did something else.
    hidden_us: f64,
    /// Of attention's all-to-all alone.
    all_to_all_exposed_us: f64,
    all_to_all_hidden_us: f64,
}

impl Communication {
    /// Of `ranks` ranks, each of which ran `steps` steps.
    fn new(overlap: Overlap, ranks: usize, steps: u64) -> Option<Communication> {
        let mean = |time: Duration| {
            rounded(time.as_secs_f64() * 1e6 / (ranks as u64 * steps.max(1)) as f64, 2)
        };
        let all_to_all = Collective::AllToAll as usize;
        (ranks > 1).then(|| Communication {
            exposed_us: mean(overlap.exposed.iter().sum()),
            hidden_us: mean(overlap.hidden.iter().sum()),
            all_to_all_exposed_us: mean(overlap.exposed[all_to_all]),
            all_to_all_hidden_us: mean(overlap.hidden[all_to_all]),
        })
    }
}

/// All repetitions of a test together.
#[derive(Default)]
struct Sums {
    tokens: u64,
    steps: u64,
    weight_bytes: u64,
    kv_bytes: u64,
    ranks: usize,
    overlap: Overlap,
    /// Of the rank that took longest in each repetition.
    attention: Duration,
    time: [Duration; Line::ALL.len()],
}

impl Bench {
    fn new(engine: Engine, model: &Model, repetitions: usize) -> Bench {
        let threads = engine.options().threads_per_rank * engine.layout().ranks();
        Bench {
            repetitions,
            threads: threads.min(setup::cores()),
            vocab: model.config.vocab,
            step: Step::default(),
            random: 1,
            engine,
        }
    }

    fn measure(&mut self, test: Test, bar: &Bar) -> Outcome<Run> {
        bar.message(test.name());
        self.fill(test);
        self.once(test)?;
        bar.add(1);
        let (mut speeds, mut reads, mut sums) = (Vec::new(), Vec::new(), Sums::default());
        for _ in 0..self.repetitions {
            reads.push(read_gb_s(self.threads));
            self.truncate(test);
            self.engine.reset_counters();
            let took = self.once(test)?.as_secs_f64();
            speeds.push((test.tokens * test.batch) as f64 / took);
            sums += &self.engine.counters()?[..];
            sums.tokens += (test.tokens * test.batch) as u64;
            bar.add(1);
        }
        reads.push(read_gb_s(self.threads));
        self.truncate(test);
        let spread = |values: &[f64]| Spread::of(values).expect("there is a repetition");
        Ok(test.result(spread(&speeds), spread(&reads).median, &sums))
    }

    /// Every sequence of the test at its depth; the others are gone.
    fn fill(&mut self, test: Test) {
        for slot in 0..self.engine.options().max_sequences {
            match slot < test.batch {
                true if self.engine.len(slot) < test.depth => {
                    self.engine.fill_with_noise(slot, test.depth);
                }
                true => {}
                false => self.engine.release(slot),
            }
        }
    }

    fn truncate(&mut self, test: Test) {
        (0..test.batch).for_each(|slot| self.engine.truncate(slot, test.depth));
    }

    fn once(&mut self, test: Test) -> Outcome<Duration> {
        let mut position = test.depth;
        let end = test.depth + test.tokens;
        let begun = Instant::now();
        while position < end {
            self.step.clear();
            let size = match test.kind {
                Kind::Pp => (end - position).min(self.engine.options().max_step_tokens),
                Kind::Tg => 1,
            };
            let wanted = if test.kind == Kind::Tg || position + size == end {
                Wanted::Last
            } else {
                Wanted::None
            };
            for slot in 0..test.batch {
                let tokens: Vec<u32> = (0..size).map(|_| self.token()).collect();
                self.step.push(slot, position, &tokens, wanted);
            }
            self.engine.step(&self.step)?;
            position += size;
        }
        Ok(begun.elapsed())
    }

    /// An arbitrary token (Knuth's MMIX generator).
    fn token(&mut self) -> u32 {
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        ((self.random >> 33) % self.vocab as u64) as u32
    }
}

impl AddAssign<&[RankCounters]> for Sums {
    fn add_assign(&mut self, counters: &[RankCounters]) {
        let total = |c: &&RankCounters| c.time.iter().sum::<Duration>();
        let attention = |c: &RankCounters| c.time[Line::Attention as usize];
        self.steps += counters.first().map_or(0, |c| c.steps);
        self.weight_bytes += counters.iter().map(|c| c.weight_bytes).sum::<u64>();
        self.kv_bytes += counters.iter().map(|c| c.kv_bytes_read).sum::<u64>();
        self.ranks = counters.len();
        counters.iter().for_each(|c| self.overlap += c.overlap);
        self.attention += counters.iter().map(attention).max().unwrap_or_default();
        if let Some(slowest) = counters.iter().max_by_key(total) {
            self.time.iter_mut().zip(slowest.time).for_each(|(sum, time)| *sum += time);
        }
    }
}

impl Test {
    fn name(self) -> String {
        let Test { kind, tokens, depth, batch } = self;
        let kind = if kind == Kind::Pp { "pp" } else { "tg" };
        let batch = if batch == 1 { String::new() } else { format!(" x{batch}") };
        let depth = if depth == 0 { String::new() } else { format!(" @ {depth}") };
        format!("{kind}{tokens}{batch}{depth}")
    }

    fn result(self, tokens_per_s: Spread, read_gb_s: f64, sums: &Sums) -> Run {
        let tokens = sums.tokens.max(1);
        let bytes_per_token = (sums.weight_bytes + sums.kv_bytes) / tokens;
        let gb_s = tokens_per_s.median * bytes_per_token as f64 / 1e9;
        let attention = (self.kind == Kind::Tg && !sums.attention.is_zero()).then(|| {
            let gb_s = sums.kv_bytes as f64 / sums.attention.as_secs_f64() / 1e9;
            Attention {
                bytes_per_token: sums.kv_bytes / tokens,
                gb_s: rounded(gb_s, 2),
                read_fraction: rounded(gb_s / read_gb_s, 3),
            }
        });
        let times = RankCounters { steps: sums.steps, time: sums.time, ..Default::default() };
        let round = |Spread { median, min, max }| Spread {
            median: rounded(median, 2),
            min: rounded(min, 2),
            max: rounded(max, 2),
        };
        Run {
            test: self.kind,
            n: self.tokens,
            depth: self.depth,
            batch: self.batch,
            tokens_per_s: round(tokens_per_s),
            bytes_per_token,
            gb_s: rounded(gb_s, 2),
            read_gb_s: rounded(read_gb_s, 2),
            read_fraction: rounded(gb_s / read_gb_s, 3),
            attention,
            communication: Communication::new(sums.overlap, sums.ranks, sums.steps),
            lines_us: ranks::times(&times),
            plan: None,
        }
    }
}

/// What `--json` prints.
#[derive(Serialize)]
struct Report<'a> {
    model: String,
    layout: String,
    threads_per_rank: usize,
    kv_type: &'static str,
    isa: &'static str,
    #[serde(flatten)]
    choices: Choices,
    /// The median over tests.
    read_gb_s: f64,
    runs: &'a [Run],
}

fn report(args: &BenchArgs, choices: Choices, engine: &Engine, runs: Vec<Run>) -> Outcome {
    let reads: Vec<f64> = runs.iter().map(|run| run.read_gb_s).collect();
    let report = Report {
        model: args.model.display().to_string(),
        layout: engine.layout().name(),
        threads_per_rank: engine.options().threads_per_rank,
        kv_type: engine.options().kv_type.name(),
        isa: helix_kernels::cpu().name(),
        choices,
        read_gb_s: rounded(Spread::of(&reads).map_or(0.0, |reads| reads.median), 2),
        runs: &runs,
    };
    if args.output.json {
        return output::json(&report);
    }
    output::line(&format!(
        "{}\n{}, {} threads per rank, KV {}, {}; depths are filled with noise\n\
         read bandwidth: {:.1} GB/s\n",
        report.model,
        report.layout,
        report.threads_per_rank,
        report.kv_type,
        report.isa,
        report.read_gb_s
    ))?;
    output::text(&speeds(&runs).to_string())?;
    if runs.iter().any(|run| run.communication.is_some()) {
        output::text(&format!("\nMicroseconds of a step\n{}", communication(&runs)))?;
    }
    if args.lines {
        output::text(&format!("\nMicroseconds of a step\n{}", lines(&runs)))?;
    }
    let compared =
        runs.iter().filter_map(|run| Some((run.name(), run.plan.as_ref()?, &run.lines_us)));
    let compared: Vec<_> = compared.collect();
    if !compared.is_empty() {
        output::text(&format!("\nThe planner's view\n{}", compare::report(&compared)))?;
    }
    Ok(())
}

fn speeds(runs: &[Run]) -> Table {
    let titles = ["test", "tokens/s", "min - max", "bytes/token", "GB/s", "of bandwidth"];
    let mut table = Table::new(1, titles);
    let percent = |fraction: f64| format!("{:.0} %", fraction * 100.0);
    for run in runs {
        let Spread { median, min, max } = run.tokens_per_s;
        table.row(vec![
            run.name(),
            format!("{median:.1}"),
            format!("{min:.1} - {max:.1}"),
            figures::bytes(run.bytes_per_token),
            format!("{:.1}", run.gb_s),
            percent(run.read_fraction),
        ]);
        if let Some(attention) = run.attention {
            table.row(vec![
                "  attention".to_owned(),
                String::new(),
                String::new(),
                figures::bytes(attention.bytes_per_token),
                format!("{:.1}", attention.gb_s),
                percent(attention.read_fraction),
            ]);
        }
    }
    table
}

fn communication(runs: &[Run]) -> Table {
    let titles = ["communication", "exposed", "hidden", "all-to-all exposed", "hidden"];
    let mut table = Table::new(1, titles);
    for run in runs {
        let Some(c) = run.communication else { continue };
        let times = [c.exposed_us, c.hidden_us, c.all_to_all_exposed_us, c.all_to_all_hidden_us];
        let cells = times.map(|us| format!("{us:.0}"));
        table.row([run.name()].into_iter().chain(cells).collect());
    }
    table
}

impl Run {
    fn name(&self) -> String {
        let &Run { test: kind, n: tokens, depth, batch, .. } = self;
        Test { kind, tokens, depth, batch }.name()
    }
}

/// A column of times for each test, a row for each line.
fn lines(runs: &[Run]) -> String {
    let mut text = String::new();
    for run in runs {
        let us = |value: &Value| value.as_f64().unwrap_or(0.0);
        let total: f64 = run.lines_us.values().map(us).sum();
        let mut table = Table::new(1, [&*run.name(), "us", "share"]);
        for line in Line::ALL {
            let time = run.lines_us.get(line.name()).map_or(0.0, us);
            let share = format!("{:.1} %", 100.0 * time / total.max(f64::MIN_POSITIVE));
            table.row(vec![line.name().to_owned(), format!("{time:.1}"), share]);
        }
        table.row(vec!["all".to_owned(), format!("{total:.1}"), String::new()]);
        text += &format!("\n{table}");
    }
    text
}
