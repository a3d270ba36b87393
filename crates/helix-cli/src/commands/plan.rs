//! `helix plan`: the best layouts of a model on a machine, and why.

pub mod inputs;
mod page;
mod plot;

use crate::args::plan::{DegreeArgs, EngineArg, FormulasArg, Switch};
use crate::args::{MlaUpArg, PlanArgs};
use crate::console::Console;
use crate::failure::{Failure, Outcome};
use crate::hardware;
use crate::output;
use crate::output::Table;
use crate::setup;
use crate::whole_file::WholeFile;
use helix_layout::Strategy;
use helix_plan::costs::{Choices, Formulas, MlaUp};
use helix_plan::launch::{Engine, Launch, launch};
use helix_plan::{
    Batches, Chosen, Crossover, Duel, Fixed, Machine, Model, Popularity, Query, Report, Row,
    Settings, Space, StrategyFront, Verdict, Wins, counted, crossovers, figure,
};
use inputs::{model, threads};
use plot::Picture;
use std::iter::once;
use std::path::PathBuf;

/// Runs the command.
pub fn run(args: PlanArgs) -> Outcome {
    let console = Console::new(args.output.quiet);
    let machine = hardware::named(&args.hardware)?;
    let model = model(&args, &machine, &console)?;
    let query = query(&args, threads(&args, &machine)?)?;
    if query.space.mla_up.is_some() && model.shape.mla.is_none() {
        let problem = "has no latents to turn to values: leave --mla-up out";
        return Err(Failure::request(format!("{} {problem}", model.name)));
    }
    let files = Files::of(&args)?;
    let mut report = Report::new(&model, &machine, &query)?;
    report.notes.extend(setup::untrained(args.context, model.context));
    if args.crossovers {
        report.crossovers = crossovers(&model, &machine, &query)?;
    }
    let launch = match (&report.chosen, args.emit) {
        (Some(chosen), Some(engine)) => Some(launched(engine, chosen, (&model, args.context))?),
        _ => None,
    };
    files.write(&report, || points(&model, &machine, &query, &report))?;
    for note in &report.notes {
        console.note(&format!("note: {note}"));
    }
    match (&report.chosen, launch) {
        (Some(chosen), Some(launch)) => emit(&launch, chosen, &console),
        _ if args.output.json => output::json(&report),
        _ => print(&report, &args, &console),
    }
}

/// The files that are asked for.
struct Files {
    csv: Option<WholeFile>,
    html: Option<WholeFile>,
    plot: Option<(Picture, WholeFile)>,
}

impl Files {
    fn of(args: &PlanArgs) -> Outcome<Files> {
        let whole = |flag: &str, path: &Option<PathBuf>| {
            path.as_deref().map(|path| WholeFile::new(flag, path)).transpose()
        };
        let picture = args.plot.as_deref().map(Picture::of).transpose()?;
        Ok(Files {
            csv: whole("--csv", &args.csv)?,
            html: whole("--html", &args.html)?,
            plot: picture.zip(whole("--plot", &args.plot)?),
        })
    }

    /// Makes all of them before it writes one.
    fn write(
        &self,
        report: &Report,
        points: impl FnOnce() -> Outcome<Vec<page::Points>>,
    ) -> Outcome {
        let mut made = Vec::new();
        if let Some(file) = &self.csv {
            made.push((file, report.csv().into_bytes()));
        }
        if let Some(file) = &self.html {
            made.push((file, page::page(report, &points()?)?.into_bytes()));
        }
        if let Some((picture, file)) = &self.plot {
            made.push((file, picture.draw(report)?));
        }
        made.iter().try_for_each(|(file, bytes)| file.write(|out| out.write_all(bytes)))
    }
}

/// How an engine is told to run a layout.
fn launched(
    engine: EngineArg,
    chosen: &Chosen,
    (model, context): (&Model, usize),
) -> Outcome<Launch> {
    let engine = match engine {
        EngineArg::Helix => Engine::Helix,
        EngineArg::Vllm => Engine::Vllm,
        EngineArg::Sglang => Engine::Sglang,
        EngineArg::Trtllm => Engine::TensorRtLlm,
    };
    launch(engine, chosen, model, context).map_err(Failure::request)
}

fn emit(launch: &Launch, chosen: &Chosen, console: &Console) -> Outcome {
    console.note(&format!("{}, {}", chosen.row.placement, counted(chosen.row.batch, "user")));
    launch.notes.iter().for_each(|note| console.note(&format!("note: {note}")));
    output::line(&launch.text)
}

/// Every point of every strategy's front, looked at closely.
fn points(
    model: &Model,
    machine: &Machine,
    query: &Query,
    report: &Report,
) -> Outcome<Vec<page::Points>> {
    let of = |of: &StrategyFront| {
        let look = |row: &Row| Chosen::new(model, machine, query, *row);
        let front = of.front.iter().map(look).collect::<Result<_, _>>()?;
        Ok(page::Points { strategy: of.strategy.clone(), front })
    };
    report.fronts.iter().map(of).collect()
}

/// When latents become values, where that was settled.
fn mla_up(degrees: &DegreeArgs) -> Option<MlaUp> {
    match degrees.mla_up {
        Some(MlaUpArg::Before) => Some(MlaUp::Before),
        Some(MlaUpArg::After) => Some(MlaUp::After),
        Some(MlaUpArg::Auto) | None => None,
    }
}

fn query(args: &PlanArgs, threads: usize) -> Outcome<Query> {
    let degrees = args.degrees;
    if let Some(ttl) = args.ttl.filter(|ttl| !(*ttl > 0.0 && ttl.is_finite())) {
        return Err(Failure::request(format!("--ttl {}: give milliseconds above 0", figure(ttl))));
    }
    if !(1..=helix_layout::MAX_KV_BLOCK).contains(&degrees.kv_block) {
        let most = helix_layout::MAX_KV_BLOCK;
        let given = degrees.kv_block;
        return Err(Failure::request(format!("--kv-block {given}: give 1 to {most}")));
    }
    let strategies = match args.strategy.is_empty() {
        true => Strategy::ALL.to_vec(),
        false => args.strategy.clone(),
    };
    let fixed = Fixed {
        kvp: degrees.kvp,
        tpa: degrees.tpa,
        dp: degrees.dp,
        tpf: degrees.tpf,
        ep: degrees.ep,
        pp: degrees.pp,
    };
    let formulas = match args.formulas {
        FormulasArg::Corrected => Formulas::Corrected,
        FormulasArg::PaperAppendix => Formulas::PaperAppendix,
    };
    let space = Space {
        strategies,
        fixed,
        choices: Choices { formulas, ..Choices::default() },
        kv_block: degrees.kv_block,
        qkv: degrees.qkv,
        hopb: degrees.hopb.map(|switch| switch == Switch::On),
        mla_up: mla_up(&degrees),
        ..Space::new(args.ranks.0.clone())
    };
    let batches = match args.batch.is_empty() {
        true => Batches::All,
        false => Batches::Only(args.batch.clone()),
    };
    let popularity = Popularity::Busiest { skew: args.skew };
    let settings = Settings { popularity, threads, ..Settings::new(args.context) };
    Ok(Query { space, batches, ttl_s: args.ttl.map(|ms| ms / 1e3), settings })
}

fn print(report: &Report, args: &PlanArgs, console: &Console) -> Outcome {
    let ranks = match args.ranks.0.as_slice() {
        [first, .., last] => format!("{first} to {last} ranks"),
        ranks => counted(ranks[0], "rank"),
    };
    output::line(&format!(
        "{} on {}, {}, {} weights, {} KV, {ranks}",
        report.model,
        report.hardware,
        counted(report.context, "position"),
        report.weights,
        report.kv,
    ))?;
    let mut table = Table::new(2, TITLES);
    for row in thinned(&report.front, args.points) {
        table.row(cells("", row));
    }
    table.drop_columns(|title| title == TITLES[0]);
    output::line(&format!("\nNothing beats these in both:\n{table}"))?;
    let mut table = Table::new(2, TITLES);
    for answer in &report.answers {
        table.row(cells(&answer.question, &answer.row));
    }
    output::text(&format!("{table}"))?;
    if let Some(chosen) = &report.chosen {
        print_chosen(chosen, &report.answers[0].question)?;
    }
    if !report.crossovers.is_empty() {
        print_crossovers(&report.crossovers)?;
    }
    console.note(&format!(
        "{} configurations in {:.3} s ({:.1} million per second); {} placements hold not even the \
         smallest batch",
        report.configs,
        report.seconds,
        report.configs as f64 / report.seconds / 1e6,
        report.too_large
    ));
    Ok(())
}

const TITLES: [&str; 8] =
    ["question", "layout", "ranks", "batch", "pieces", "TTL ms", "tokens/s/user", "tokens/s/rank"];

fn cells(question: &str, row: &Row) -> Vec<String> {
    vec![
        question.to_owned(),
        row.placement.to_string(),
        row.placement.ranks().to_string(),
        row.batch.to_string(),
        row.hopb_pieces.unwrap_or(1).to_string(),
        format!("{:.3}", row.ttl_ms),
        format!("{:.2}", row.tokens_per_s_user),
        format!("{:.3}", row.tokens_per_s_rank),
    ]
}

/// At most `most` of the rows, evenly, the first and the last among them.
fn thinned(rows: &[Row], most: usize) -> impl Iterator<Item = &Row> {
    let count = rows.len().min(most);
    let last = rows.len().saturating_sub(1);
    (0..count).map(move |index| &rows[index * last / (count - 1).max(1)])
}

fn print_chosen(chosen: &Chosen, question: &str) -> Outcome {
    let gb = |bytes: f64| format!("{:.1} GB", bytes / 1e9);
    let held = &chosen.held;
    output::line(&format!(
        "\n{question}: {}, {}. Its busiest rank holds {} of weights, {} of KV and {} of \
         activations, of {}.",
        chosen.row.placement,
        counted(chosen.row.batch, "user"),
        gb(held.weight_bytes),
        gb(held.kv_bytes),
        gb(held.workspace_bytes),
        gb(chosen.memory_bytes)
    ))?;
    let mut table = Table::new(1, ["line", "ms", "%"]);
    for term in &chosen.breakdown {
        table.row(vec![
            term.line.to_owned(),
            format!("{:.4}", term.ms),
            format!("{:.1}", term.part * 100.0),
        ]);
    }
    output::text(&table.to_string())
}

/// Columns of a table of crossovers, beside the context: as many as fit a line.
const USERS: usize = 9;

/// Who is fastest, by context and users; and where Helix starts and stops winning.
fn print_crossovers(crossovers: &[Crossover]) -> Outcome {
    output::line(
        "\nMilliseconds per token of the fastest layout that holds so many users, Helix over the \
         best of the others; * where Helix wins by more than 1 %, - where it loses, none where \
         memory does not hold so many:",
    )?;
    let by_users = Wins::by_users(crossovers);
    let users: Vec<usize> = by_users.keys().copied().collect();
    for users in users.chunks(USERS) {
        output::line(&duels(crossovers, users).to_string())?;
    }
    let mut table = Table::new(2, ["with", "Helix wins"]);
    for Crossover { context, wins, .. } in crossovers {
        table.row(vec![format!("{context} positions"), spans(wins, "users")]);
    }
    for (users, wins) in by_users {
        let users = if users == 1 { "1 user".to_owned() } else { format!("{users} users") };
        table.row(vec![users, spans(&wins, "positions")]);
    }
    output::text(&table.to_string())
}

/// A row for each context, a column for each number of users.
fn duels(crossovers: &[Crossover], users: &[usize]) -> Table {
    let mut table =
        Table::of(0, once("context".to_owned()).chain(users.iter().map(usize::to_string)));
    for Crossover { context, duels, .. } in crossovers {
        let cell = |users: &usize| {
            duels.iter().find(|duel| duel.batch == *users).map_or_else(String::new, score)
        };
        table.row(once(context.to_string()).chain(users.iter().map(cell)).collect());
    }
    table
}

/// Where Helix starts and stops winning.
fn spans(wins: &[Wins], unit: &str) -> String {
    let span = |&Wins { from, to, first, last }: &Wins| match (first, last) {
        (true, true) => "always".to_owned(),
        (false, true) => format!("from {from} {unit} on"),
        (true, false) => format!("up to {to} {unit}"),
        (false, false) if from == to => format!("at {from} {unit}"),
        (false, false) => format!("from {from} to {to} {unit}"),
    };
    match wins {
        [] => "never".to_owned(),
        _ => wins.iter().map(span).collect::<Vec<_>>().join(", "),
    }
}

fn score(duel: &Duel) -> String {
    let ms = |row: &Option<Row>| row.map_or("none".to_owned(), |row| format!("{:.1}", row.ttl_ms));
    let mark = match duel.verdict {
        Verdict::Helix => "*",
        Verdict::Draw => " ",
        Verdict::Other => "-",
    };
    format!("{}/{}{mark}", ms(&duel.helix), ms(&duel.other))
}
