use super::profile::{CollectiveKind, RowKind};
use super::*;

/// A small machine of which tests change a line.
const TEXT: &str = r#"
name = "box"
[memory]
capacity_gb = 32
bandwidth_gb_s = { value = 40, source = "sheet" }
reachable = { value = 0.8, assumed = "as others", from = 0.7, to = 0.9 }
[arithmetic]
int8 = 2
bf16 = 1
f32 = 0.5
[overhead]
reachable_arithmetic = 0.5
operation_us = 2
[[level]]
name = "bus"
ranks = 4
latency_us = 1
overhead_us = 0.5
gap_us = 0
bandwidth_gb_s = 10
reachable = 0.5
[[level]]
name = "wire"
ranks = 16
latency_us = 5
overhead_us = 1
gap_us = 0.2
bandwidth_gb_s = 12.5
reachable = 1
"#;

/// Cores that share the memory, and rates measured on one and on two of them.
const MEASURED: &str = r#"
[cores]
count = 2
active = [1, 2]
read_gb_s = [30, 40]
threads = [1, 2]
fork_us = [0, 1]
[[matvec]]
format = "Q4_0"
place = "memory"
cores = 1
tokens = [1, 4]
gb_s = [20, 10]
[[matvec]]
format = "Q4_0"
place = "memory"
cores = 2
tokens = [1, 4]
gb_s = [30, 20]
[[attention]]
kv = "f16"
row = "key-value"
place = "memory"
cores = 1
queries = [1, 3]
gb_s = [20, 10]
[[collective]]
kind = "all-reduce"
ranks = 2
bytes = [1000, 2000]
us = [3, 4]
[[collective]]
kind = "all-reduce"
ranks = 4
bytes = [1000, 2000]
us = [5, 8]
"#;

fn machine(more: &str) -> Machine {
    Machine::from_toml(&format!("{TEXT}{more}")).unwrap()
}

fn refusal(from: &str, to: &str) -> String {
    let text = format!("{TEXT}{MEASURED}");
    assert!(text.contains(from), "{from}");
    Machine::from_toml(&text.replacen(from, to, 1)).unwrap_err().to_string()
}

#[test]
fn every_machine_of_the_catalogue_is_legal_and_has_an_origin_for_each_number() {
    for name in names() {
        let machine = Machine::named(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        let p = machine.profile();
        let memory = [&p.memory.capacity_gb, &p.memory.bandwidth_gb_s, &p.memory.reachable];
        let overhead = [&p.overhead.reachable_arithmetic, &p.overhead.operation_us];
        let links = p.level.iter().flat_map(|level| {
            [
                &level.latency_us,
                &level.overhead_us,
                &level.gap_us,
                &level.bandwidth_gb_s,
                &level.reachable,
            ]
        });
        for number in memory.into_iter().chain(overhead).chain(links).chain(p.arithmetic.values()) {
            assert_ne!(number.origin, Origin::Unknown, "{name}: {number:?}");
        }
        for format in ["fp4", "fp8", "bf16", "q4_0"] {
            let rates = machine.rank(Sharing { ranks: 1, threads: 1 });
            rates.weights(format).unwrap_or_else(|e| panic!("{name}: {e}"));
        }
    }
}

#[test]
fn what_is_written_reads_as_the_same() {
    for text in [TEXT.to_owned(), format!("{TEXT}{MEASURED}")] {
        let machine = Machine::from_toml(&text).unwrap();
        let written = machine.to_toml();
        assert_eq!(Machine::from_toml(&written).unwrap(), machine, "{written}");
        assert!(written.contains("bandwidth_gb_s = { "), "{written}");
    }
}

#[test]
fn numbers_that_no_machine_has_are_refused_by_name() {
    for (from, to, message) in [
        (
            "capacity_gb = 32",
            "capacity_gb = 0",
            "memory.capacity_gb is 0: it goes from 0.001 to 1000000 GB",
        ),
        (
            "int8 = 2",
            "int8 = -1.5",
            "arithmetic.int8 is -1.5: it goes from 0.0001 to 1000000 Tera operations per second",
        ),
        (
            "latency_us = 5",
            "latency_us = nan",
            "level[1].latency_us is NaN: it goes from 0 to 1000000 microseconds",
        ),
        (
            "bandwidth_gb_s = 12.5",
            "bandwidth_gb_s = 1e30",
            "level[1].bandwidth_gb_s is 1e30: it goes from 0.001 to \
             1000000 GB/s",
        ),
        (
            "from = 0.7",
            "from = 0.85",
            "memory.reachable is 0.8, outside its own bounds 0.85 to 0.9",
        ),
        (
            "ranks = 16",
            "ranks = 6",
            "level[1].ranks: 6 ranks are not a multiple of the 4 that the level inside connects",
        ),
        ("ranks = 4\n", "", "level[0].ranks: only the outermost level may connect any number"),
        (
            "int8 = 2",
            "int3 = 2",
            "arithmetic.int3: no such arithmetic; there are fp4, fp8, int8, bf16, f16, f32",
        ),
        (
            "gb_s = [20, 10]",
            "gb_s = [20]",
            "matvec[0].gb_s: 1 values for the 2 of tokens; one for each, and at least one",
        ),
        ("tokens = [1, 4]", "tokens = [4, 1]", "matvec[0].tokens: its numbers must ascend"),
        (
            "gb_s = [30, 20]",
            "gb_s = [30, 0]",
            "matvec[1].gb_s[1] is 0: it goes from 0.001 to 1000000 GB/s",
        ),
        ("cores = 2\n", "cores = 1\n", "matvec[1]: q4_0 in Memory on 1 cores is there twice"),
        ("count = 2", "count = 0", "cores.count is 0: it goes from 1 to 65536 cores"),
    ] {
        assert_eq!(refusal(from, to), message);
    }
    for (from, to, part) in [
        ("[memory]", "[memory]\nchannels = 12", "unknown field `channels`"),
        ("capacity_gb = 32\n", "", "missing field `capacity_gb`"),
        ("name = \"bus\"", "name = 3", "expected a string"),
        ("source = \"sheet\"", "sauce = \"sheet\"", "unknown field `sauce`"),
        ("capacity_gb = 32", "capacity_gb = \"32\"", "a number, { value, source }"),
        ("source = \"sheet\"", "from = 1, to = 50", "bound what is `assumed`"),
        ("[memory]", "[memory", "TOML parse error"),
    ] {
        let message = refusal(from, to);
        assert!(message.contains(part) && message.contains("line"), "{message}");
    }
    let unknown = Machine::named("gb300").unwrap_err().to_string();
    assert!(
        unknown.starts_with("no machine is called \"gb300\"; there are gb200-nvl72"),
        "{unknown}"
    );
}

#[test]
fn a_device_of_its_own_is_a_roofline() {
    let machine = machine("");
    let rates = machine.rank(Sharing { ranks: 8, threads: 3 });
    assert_eq!((rates.memory_bytes(), rates.read_bytes_per_s()), (32e9, 32e9));
    assert_eq!((rates.operation_s(), rates.elements_per_s(), rates.note()), (2e-6, 4e9, None));
    // Devices fuse what threads do one after the other.
    assert_eq!((rates.pass_s(), rates.fork_s(), rates.line_s()), (0.0, 0.0, 0.0));
    let q4 = rates.weights("Q4_0").unwrap();
    assert_eq!(q4.note, None);
    // 32 GB/s and half of 2 Tera operations per second.
    assert_eq!(q4.rate.seconds(32e9, 0.0, 1.0), 1.0);
    assert_eq!(q4.rate.seconds(32e9, 3e12, 1.0), 3.0);
    let fp4 = rates.weights("fp4").unwrap();
    let note = "box has no fp4 arithmetic: products of fp4 at the rate of bf16";
    assert_eq!(fp4.note.as_deref(), Some(note));
    assert_eq!(fp4.rate.seconds(0.0, 1e12, 1.0), 2.0);
    let f16 = rates.attention("f16", RowKind::Latent).unwrap();
    assert_eq!(
        f16.note.unwrap(),
        "box has no f16 arithmetic: attention of f16 at the rate of bf16"
    );
}

#[test]
fn a_format_without_a_rate_is_an_error() {
    let text = TEXT.replace("bf16 = 1", "").replace("f32 = 0.5", "");
    let machine = Machine::from_toml(&text).unwrap();
    let rates = machine.rank(Sharing { ranks: 1, threads: 1 });
    let message = rates.weights("bf16").unwrap_err().to_string();
    assert_eq!(
        message,
        "box has no rate for products of bf16, nor one to extrapolate from; it has int8"
    );
    let message = rates.weights("q3").unwrap_err().to_string();
    assert!(message.starts_with("the number format \"q3\" is unknown; known are fp4"), "{message}");
}

#[test]
fn ranks_share_the_cores_of_a_node() {
    let machine = machine(MEASURED);
    let seconds = |ranks, threads, load| {
        let rates = machine.rank(Sharing { ranks, threads });
        rates.weights("q4_0").unwrap().rate.seconds(1e9, 0.0, load)
    };
    // One core alone; both as one rank; one each.
    assert_eq!(
        [seconds(1, 1, 1.0), seconds(1, 2, 1.0), seconds(2, 1, 1.0)],
        [1.0 / 20.0, 1.0 / 30.0, 1.0 / 15.0]
    );
    // Between 1 and 4 tokens in proportion, and past 4 as arithmetic grows.
    assert!((seconds(1, 1, 2.5) - (0.05 + 0.1) / 2.0).abs() < 1e-12);
    assert!((seconds(1, 1, 8.0) - 0.2).abs() < 1e-12);
    let rates = machine.rank(Sharing { ranks: 4, threads: 1 });
    let note = "box has 2 cores for 4 ranks of 1 threads: extrapolated as if they took turns \
                without loss";
    assert_eq!(rates.note().unwrap(), note);
    assert_eq!(rates.memory_bytes(), 8e9);
    assert_eq!(rates.read_bytes_per_s(), 40e9 * 0.8 / 4.0);
    let pair = machine.rank(Sharing { ranks: 1, threads: 2 });
    assert_eq!((pair.operation_s(), pair.pass_s(), pair.fork_s()), (2e-6, 2e-6, 1e-6));
    let of = |name: &str| {
        machine.rank(Sharing { ranks: 1, threads: 1 }).attention(name, RowKind::KeyValue)
    };
    assert!(of("q8_0").unwrap().note.is_some(), "only f16 was measured");
    let bf16 = rates.weights("bf16").unwrap();
    assert!(bf16.note.unwrap().contains("were not measured on box"));
    let f16 = machine.rank(Sharing { ranks: 1, threads: 1 });
    let f16 = f16.attention("F16", RowKind::KeyValue).unwrap();
    assert_eq!((f16.rate.seconds(1e9, 0.0, 2.0), f16.note), (0.075, None));
}

#[test]
fn what_a_cache_holds_does_not_come_from_memory() {
    let text = r#"
[cache]
step_mb = [100, 200]
missed = [0, 1]
[[matvec]]
format = "q4_0"
place = "cache"
cores = 1
tokens = [1, 4, 8]
gb_s = [50, 20, 8]
"#;
    let machine = machine(&format!("{MEASURED}{text}"));
    let rates = machine.rank(Sharing { ranks: 1, threads: 1 });
    let close = |step_mb: f64, load, expected: f64| {
        let rate = rates.reading(step_mb * 1e6).weights("q4_0").unwrap().rate;
        let seconds = rate.seconds(1e9, 0.0, load);
        assert!((seconds - expected).abs() < 1e-12, "{step_mb} MB, {load}: {seconds}");
    };
    close(50.0, 1.0, 1.0 / 50.0);
    close(300.0, 1.0, 1.0 / 20.0);
    close(150.0, 1.0, (1.0 / 50.0 + 1.0 / 20.0) / 2.0);
    // Eight tokens are bound by arithmetic, wherever the weights are.
    close(50.0, 8.0, 1.0 / 8.0);
    close(300.0, 8.0, 1.0 / 8.0);
    close(f64::INFINITY, 1.0, 1.0 / 20.0);
}

#[test]
fn links_and_measured_collectives() {
    let machine = machine(MEASURED);
    let (level, link) = machine.link(4).unwrap();
    assert_eq!((level, link.message_s(5000.0)), (0, 2e-6 + 1e-6));
    assert_eq!(machine.link(5).unwrap().0, 1);
    let message = machine.link(17).unwrap_err().to_string();
    assert_eq!(message, "box connects 16 ranks, not 17; its profile has no level beyond");
    assert_eq!(machine.ranks_per_node(), Some(4));

    let reduce = |ranks, bytes| {
        let seconds = machine.measured_collective_s(CollectiveKind::AllReduce, ranks, bytes);
        seconds.map(|seconds| (seconds * 1e9).round())
    };
    assert_eq!(reduce(2, 1500.0), Some(3500.0));
    assert_eq!(reduce(3, 2000.0), Some(6000.0));
    assert_eq!(reduce(4, 4000.0), Some(16000.0));
    assert_eq!(reduce(8, 1000.0), None);
    assert_eq!(machine.measured_collective_s(CollectiveKind::Gather, 2, 1.0), None);
}
