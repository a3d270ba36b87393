//! How many configurations a second the search predicts, and how the time grows with them. Roof:
//! arithmetic. Run with `cargo bench -p helix-plan`.

use helix_plan::{Batches, Formats, Machine, Model, Query, Settings, Space, search};

/// Searches of each size; the fastest counts, as other programs only add.
const REPETITIONS: usize = 10;

fn main() {
    let machine = Machine::named("gb200-nvl72").expect("a preset");
    println!(
        "{:24} {:>10} {:>10} {:>10} {:>12}",
        "model, ranks", "configs", "best s", "median s", "million/s"
    );
    for name in ["llama-3.1-405b", "deepseek-r1"] {
        let model = Model::named(name, Formats::default()).expect("a preset");
        for ranks in [16, 32, 64, 128] {
            let query = Query {
                space: Space::new((1..=ranks).collect()),
                batches: Batches::All,
                ttl_s: None,
                settings: Settings::new(1_000_000),
            };
            let mut seconds = Vec::new();
            let mut configs = 0;
            for _ in 0..REPETITIONS {
                let found = search(&model, &machine, &query).expect("something fits");
                configs = found.configs;
                seconds.push(found.seconds);
            }
            seconds.sort_by(f64::total_cmp);
            let (best, median) = (seconds[0], seconds[REPETITIONS / 2]);
            let rate = configs as f64 / best / 1e6;
            let title = format!("{name}, 1..{ranks}");
            println!("{title:24} {configs:>10} {best:>10.3} {median:>10.3} {rate:>12.2}");
        }
    }
}
