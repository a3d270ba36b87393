//! The command over MPI: processes of this machine, on loopback.

mod common;
#[path = "../../helix-engine/tests/launch/mod.rs"]
mod launch;
mod serving;

#[cfg(not(feature = "mpi"))]
#[test]
fn the_command_over_mpi() {
    println!("skipped: built without MPI (the cargo feature `mpi`)");
    let output = common::run("run MODEL -p hello --transport mpi");
    assert_eq!(output.status.code(), Some(2));
    assert!(common::stderr(&output).contains("the cargo feature `mpi`"));
}

#[cfg(feature = "mpi")]
mod with_mpi {
    use super::common::{directory, file, helix, json, model, model_bytes, stderr, stdout};
    use super::launch::{is_hydra, mpirun, within};
    use super::serving::Served;
    use helix_model::config::Arch;
    use helix_model::synthetic::{Spec, gguf};
    use serde_json::{Value, json};
    use std::fs::Permissions;
    use std::os::unix::fs::PermissionsExt;
    use std::path::Path;
    use std::process::{Child, Command, Output};
    use std::time::{Duration, Instant};

    const LIMIT: Duration = Duration::from_secs(60);
    /// A probe takes a minute or two where other tests run.
    const PROBE_LIMIT: Duration = Duration::from_secs(400);
    const PROMPT: &str = "'a prompt of some twenty tokens, more than a block'";
    /// A text that does not end before something is done to it.
    const LONG: &str = "run MODEL -p hello -n 100000 -c 120000 --ignore-eos -t 1 --precise";

    fn words(line: &str) -> Vec<String> {
        let words = line.split('\'').enumerate().flat_map(|(index, part)| match index % 2 {
            1 => vec![part.to_owned()],
            _ => part.split_whitespace().map(str::to_owned).collect(),
        });
        words.map(|word| if word == "MODEL" { model().to_owned() } else { word }).collect()
    }

    fn add(command: &mut Command, line: &str) {
        command.arg(env!("CARGO_BIN_EXE_helix")).args(words(line)).args(["--transport", "mpi"]);
    }

    fn run_on(processes: usize, line: &str) -> Option<Output> {
        let mut command = mpirun(processes)?;
        add(&mut command, line);
        Some(within(command.spawn().expect("mpirun starts"), LIMIT))
    }

    fn json_on(processes: usize, line: &str) -> Option<Value> {
        let output = run_on(processes, &format!("{line} --json"))?;
        assert_eq!(output.status.code(), Some(0), "{line}: {}", stderr(&output));
        Some(serde_json::from_slice(&output.stdout).expect("one document: the others are silent"))
    }

    /// The tensors of a file that `helix logits` wrote, behind its header.
    fn tensors(path: &Path) -> Vec<u8> {
        let bytes = std::fs::read(path).expect("a file of logits");
        let header = u64::from_le_bytes(bytes[..8].try_into().expect("a length"));
        bytes[8 + header as usize..].to_vec()
    }

    #[test]
    fn commands_say_what_they_say_over_threads() {
        let line = format!("run MODEL -p {PROMPT} -n 20 --ignore-eos -t 1 --reduce-slices 2");
        let threads = json(&format!("{line} --ranks 2"));
        let Some(processes) = json_on(2, &line) else { return };
        for field in ["text", "tokens", "layout", "stop"] {
            assert_eq!(processes[field], threads[field], "{field}");
        }
        let held = |report: &Value| {
            let rank = |rank: &Value| (rank["kv_bytes_held"].clone(), rank["collectives"].clone());
            report["ranks"].as_array().expect("ranks").iter().map(rank).collect::<Vec<_>>()
        };
        assert_eq!(held(&processes), held(&threads));

        let text = file("text.txt", "the quick brown fox jumps over the lazy dog. ".repeat(30));
        let line = format!("perplexity MODEL -f {} -c 64 -t 1", text.display());
        let found = json_on(3, &format!("{line} --kvp 3")).expect("mpirun");
        assert_eq!(found["perplexity"], json(&format!("{line} --kvp 3"))["perplexity"]);

        let line = "bench MODEL -p 8 -n 4 -d 0,64 -r 1 -t 1";
        let found = json_on(2, line).expect("mpirun");
        let threads = json(&format!("{line} --ranks 2"));
        let bytes = |report: &Value| {
            let runs = report["runs"].as_array().expect("runs").iter();
            runs.map(|run| run["bytes_per_token"].clone()).collect::<Vec<_>>()
        };
        assert_eq!(bytes(&found), bytes(&threads));

        let inspected = json_on(2, "inspect MODEL").expect("mpirun");
        assert_eq!(inspected["ranks"], json("inspect MODEL --ranks 2")["ranks"]);
        let verified = json_on(2, "verify MODEL -p hello -n 4").expect("mpirun");
        assert_eq!(verified["ok"], true);
        let ranks = |l: &Value| l["layout"].as_str().expect("a name").contains("tpa=3");
        assert!(!verified["layouts"].as_array().expect("layouts").iter().any(ranks));
    }

    #[test]
    fn logits_are_the_same_bits() {
        let tokens: Vec<String> = (0..90).map(|i| (i * 7 % 300).to_string()).collect();
        for (processes, flags) in [(2, "--kvp 2 --precise"), (4, "--kvp 2 --tpa 2"), (3, "--pin")] {
            let write = |name: &str| directory().join(format!("{name}-{processes}.safetensors"));
            let line = |path: &Path| {
                let tokens = tokens.join(",");
                format!("logits MODEL --tokens {tokens} --out {} {flags} -t 1", path.display())
            };
            let (ours, theirs) = (write("processes"), write("threads"));
            let Some(output) = run_on(processes, &line(&ours)) else { return };
            assert_eq!(output.status.code(), Some(0), "{flags}: {}", stderr(&output));
            json(&format!("{} --ranks {processes}", line(&theirs)));
            assert!(tensors(&ours) == tensors(&theirs), "{flags}: logits differ");
        }
    }

    /// When collectives of a kind were on their way on a rank, in microseconds.
    fn flights(trace: &Value, rank: u64, kind: &str) -> Vec<(f64, f64)> {
        let events = trace["traceEvents"].as_array().expect("events").iter();
        let times = |phase: &str| {
            let of = |event: &&Value| {
                event["pid"] == rank && event["name"] == kind && event["ph"] == phase
            };
            let times = events.clone().filter(of).map(|event| event["ts"].as_f64().expect("us"));
            times.collect::<Vec<_>>()
        };
        times("b").into_iter().zip(times("e")).collect()
    }

    /// Clocks of processes begin when they like: what one rank has received another has sent before.
    #[test]
    fn a_trace_of_processes_is_on_one_clock() {
        let path = directory().join("processes.trace.json");
        let line = format!("run MODEL -p {PROMPT} -n 30 --ignore-eos -t 1 --trace");
        let Some(document) = json_on(3, &format!("{line} {} --kvp 3", path.display())) else {
            return;
        };
        let trace = std::fs::read(&path).expect("a trace");
        let trace: Value = serde_json::from_slice(&trace).expect("JSON");
        let error = trace["otherData"]["clock_error_us"].as_f64().expect("us");
        assert!(error > 0.0, "clocks of other processes are never known exactly");
        let ranks = document["ranks"].as_array().expect("ranks");
        for kind in ["all-reduce", "all-to-all"] {
            let of_ranks = [0, 1, 2].map(|rank| flights(&trace, rank, kind));
            for (rank, flights) in of_ranks.iter().enumerate() {
                let calls = ranks[rank]["collectives"][kind]["calls"].as_u64().expect("calls");
                assert!(calls > 0 && flights.len() as u64 >= calls, "rank {rank}: all {kind}s");
                for other in &of_ranks {
                    assert_eq!(flights.len(), other.len(), "{kind}");
                    for ((_, landed), (sent, _)) in flights.iter().zip(other) {
                        assert!(landed + 2.0 * error >= *sent, "{landed} before {sent}: {error}");
                    }
                }
            }
        }
        let lines = |event: &&Value| event["pid"] == 2 && event["cat"] == "line";
        let events = trace["traceEvents"].as_array().expect("events");
        assert!(events.iter().filter(lines).count() > 100, "rank 2's lines");
    }

    #[test]
    fn a_probe_of_processes_is_a_machine_for_the_planner() {
        let path = directory().join("processes.toml");
        let Some(mut command) = mpirun(3) else { return };
        add(&mut command, &format!("probe --cores 1 --out {}", path.display()));
        let output = within(command.spawn().expect("mpirun starts"), PROBE_LIMIT);
        assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
        let text = stdout(&output);
        assert_eq!(text.matches("written to").count(), 1, "rank 0 alone says it: {text}");
        let profile = std::fs::read_to_string(&path).expect("a profile");
        for words in ["processes of one host", "ranks = 2", "ranks = 3", "all-reduce", "gather"] {
            assert!(profile.contains(words), "{words}: {profile}");
        }
        let line = "plan --model MODEL -c 100 --ranks 1..3 --kv f16 --hardware";
        let report = json(&format!("{line} {}", path.display()));
        assert!(!report["front"].as_array().expect("a front").is_empty());
    }

    /// Two ranks of different lines.
    fn run_both(first: &str, second: &str) -> Option<Output> {
        let mut command = mpirun(1)?;
        add(&mut command, first);
        command.args([":", "-n", "1"]);
        add(&mut command, second);
        Some(within(command.spawn().expect("mpirun starts"), LIMIT))
    }

    #[test]
    fn ranks_that_differ_are_refused_by_name() {
        let line = "run MODEL -p hello -n 4 -t 1 --comm-timeout 20";
        let mut bad = model_bytes();
        let half = bad.len() / 2;
        bad[half..].fill(0xff);
        let bad = file("bad.gguf", bad);
        // The same sizes, another seed.
        let other = file("other.gguf", gguf(&Spec::tiny(Arch::Llama), 8));
        let with = |path: &Path| line.replace("MODEL", path.to_str().expect("UTF-8"));
        let cases = [
            (format!("{line} --kv-type q8_0"), "other flags than rank 0"),
            (with(Path::new("/no/such/model.gguf")), "no file or directory"),
            (with(&bad), "rank 1"),
            (with(&other), "another model than rank 0"),
        ];
        for (second, words) in &cases {
            let Some(output) = run_both(line, second) else { return };
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{second}: {text}");
            assert!(text.contains("error: rank 1"), "{second}: {text}");
            assert!(text.contains(words), "{second}: {text}");
            assert_eq!(stdout(&output), "", "{second}");
            assert_eq!(text.matches("error:").count(), 1, "rank 0 alone says it: {text}");
        }
        let output = run_on(2, &format!("{line} --kvp 3 --tpa 1")).expect("mpirun");
        assert_eq!(output.status.code(), Some(2));
        assert!(stderr(&output).contains("2 processes were started"), "{}", stderr(&output));
    }

    /// As where a host was left out when helix was brought up to date.
    #[test]
    fn another_build_is_refused_by_name() {
        let line = "run MODEL -p hello -n 4 -t 1 --comm-timeout 20";
        let Some(mut command) = mpirun(1) else { return };
        let mut build = std::fs::read(env!("CARGO_BIN_EXE_helix")).expect("this build");
        build.push(0);
        let build = file("helix-of-another-build", build);
        std::fs::set_permissions(&build, Permissions::from_mode(0o755)).expect("a program");
        add(&mut command, line);
        command.args([":", "-n", "1"]).arg(&build).args(words(line)).args(["--transport", "mpi"]);
        let output = within(command.spawn().expect("mpirun starts"), LIMIT);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("error: rank 1 runs another program"), "{text}");
        assert_eq!(stdout(&output), "");
    }

    /// A rank whose address space has room for the program and not for its part of the cache.
    #[test]
    fn a_rank_that_is_out_of_memory_is_named() {
        // 1.2 GB of cache on each of two ranks, of which nothing is touched.
        let line = "run MODEL -p hello -n 4 -t 1 -c 20000000 --kvp 2";
        let Some(mut command) = mpirun(1) else { return };
        add(&mut command, line);
        let limited = "ulimit -v 900000; exec \"$0\" \"$@\"";
        command.args([":", "-n", "1", "sh", "-c", limited]);
        add(&mut command, line);
        let output = within(command.spawn().expect("mpirun starts"), LIMIT);
        let text = stderr(&output);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("error: rank 1: the system refuses"), "{text}");
        assert_eq!(text.matches("error:").count(), 1, "rank 0 alone says it: {text}");
        assert_eq!(stdout(&output), "");
    }

    /// A text over `ranks` processes, and those processes, once they are at it.
    #[allow(clippy::zombie_processes, reason = "who gets it waits for it")]
    fn started(ranks: usize, line: &str) -> Option<(Child, Vec<u32>)> {
        let mut command = mpirun(ranks)?;
        add(&mut command, line);
        let mut child = command.spawn().expect("mpirun starts");
        let end = Instant::now() + LIMIT;
        loop {
            let pids = (0..ranks).filter_map(|rank| process(child.id(), rank)).collect::<Vec<_>>();
            if pids.len() == ranks && pids.iter().all(|&pid| has_worked(pid)) {
                return Some((child, pids));
            }
            if Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                panic!("the ranks did not start: {pids:?}");
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// The process that is a rank: `launcher` has started its parent, itself or through a daemon of this
    /// host.
    fn process(launcher: u32, rank: usize) -> Option<u32> {
        let is_rank = |&pid: &u32| {
            let environ = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
            let has = |start: &str, rest: Option<String>| {
                environ.split(|byte| *byte == 0).any(|pair| match &rest {
                    Some(rest) => pair == format!("{start}={rest}").as_bytes(),
                    None => pair.starts_with(format!("{start}=").as_bytes()),
                })
            };
            let of_launcher = std::iter::successors(parent_of(pid), |&parent| parent_of(parent))
                .take(3)
                .any(|parent| parent == launcher);
            let names = ["OMPI_COMM_WORLD_RANK", "PMI_RANK"];
            of_launcher
                && has("HELIX_WHEREABOUTS", None)
                && names.iter().any(|name| has(name, Some(rank.to_string())))
        };
        let all = std::fs::read_dir("/proc").expect("processes").flatten();
        let pids = all.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
        pids.into_iter().find(is_rank)
    }

    fn parent_of(pid: u32) -> Option<u32> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit(')').next()?.split_whitespace().nth(1)?.parse().ok()
    }

    /// Whether a process has used half a second of a processor: more than its start takes.
    fn has_worked(pid: u32) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let fields = stat.rsplit(')').next().unwrap_or_default().split_whitespace();
        let ticks: Vec<u64> = fields.skip(11).take(2).filter_map(|t| t.parse().ok()).collect();
        ticks.iter().sum::<u64>() > 50
    }

    fn signal(name: &str, pid: u32) {
        let status = Command::new("kill").args(["-s", name, &pid.to_string()]).status();
        assert!(status.expect("kill").success(), "kill -s {name} {pid}");
    }

    /// Ranks end with status 1, and so does Open MPI's launcher; MPICH's joins the bits of theirs with
    /// those of ranks that it kills.
    fn assert_failed(status: Option<i32>, text: &str) {
        assert!(status == Some(1) || is_hydra() && status != Some(0), "{status:?}: {text}");
    }

    #[test]
    fn a_rank_that_stops_ends_the_others_in_time_by_its_name() {
        for victim in [0, 1] {
            let Some((child, pids)) = started(3, &format!("{LONG} --kvp 3 --comm-timeout 2"))
            else {
                return;
            };
            let since = Instant::now();
            signal("STOP", pids[victim]);
            let output = within(child, LIMIT);
            let took = since.elapsed();
            let text = stderr(&output);
            assert_failed(output.status.code(), &text);
            assert!(took < Duration::from_secs(8), "{took:?}: {text}");
            for rank in (0..3).filter(|&rank| rank != victim) {
                let lines =
                    text.lines().filter(|line| line.contains(&format!("error: rank {rank}")));
                let line = lines.collect::<String>();
                let names = line.contains(&format!("rank {victim} "));
                assert!(names, "rank {rank} names rank {victim}: {text}");
            }
        }
    }

    #[test]
    fn a_rank_that_is_killed_ends_the_others_in_time() {
        let Some((child, pids)) = started(3, &format!("{LONG} --kvp 3 --comm-timeout 5")) else {
            return;
        };
        let since = Instant::now();
        signal("KILL", pids[1]);
        let output = within(child, LIMIT);
        let text = stderr(&output);
        assert_failed(output.status.code(), &text);
        assert!(since.elapsed() < Duration::from_secs(8), "{:?}", since.elapsed());
        let killed = text.lines().find(|line| line.contains("signal 9 SIGKILL ended this rank"));
        assert!(killed.is_some_and(|line| line.starts_with("error: rank 1, step ")), "{text}");
        if is_hydra() {
            // It tells nobody before it kills.
            return;
        }
        // Their last words are theirs to say when the launcher ends them.
        assert!(text.contains("waited for rank 1"), "{text}");
    }

    /// As where `mpirun` and `helix` are of different MPIs, or `srun` speaks another PMI.
    #[test]
    fn worlds_of_one_beside_each_other_are_refused() {
        let line = format!("run MODEL -p {PROMPT} -n 8 -t 1");
        for name in ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"] {
            let mut command = helix(words(&line));
            command.env(name, "2").args(["--transport", "mpi"]);
            let output = command.output().expect("helix");
            let text = stderr(&output);
            assert_eq!(output.status.code(), Some(2), "{name}: {text}");
            assert!(text.contains(&format!("2 processes ({name})")), "{name}: {text}");
            assert_eq!(stdout(&output), "", "{name}");
        }
    }

    #[test]
    fn a_server_over_processes_says_what_it_says_over_threads_until_a_rank_is_lost() {
        let Some(mut command) = mpirun(2) else { return };
        add(&mut command, "serve MODEL --port 0 -t 1 --precise --kvp 2 --comm-timeout 2 -c 120000");
        let mut served = Served::new(command.spawn().expect("mpirun starts"));
        let mut asked = json!({"prompt": "hello", "max_tokens": 20, "temperature": 0,
            "ignore_eos": true});
        let (status, document) = served.post("/v1/completions", &asked);
        let run = json("run MODEL -p hello -n 20 --ignore-eos -t 1 --precise --kvp 2");
        assert_eq!((status, &document["choices"][0]["text"]), (200, &run["text"]));
        // Longer than ranks wait for each other: they know that nothing is to be done.
        std::thread::sleep(Duration::from_secs(5));
        assert_eq!(served.post("/v1/completions", &asked).0, 200);

        let other = process(served.child.id(), 1).expect("rank 1");
        asked["max_tokens"] = json!(100_000);
        let (status, document) = std::thread::scope(|scope| {
            let answer = scope.spawn(|| served.post("/v1/completions", &asked));
            std::thread::sleep(Duration::from_millis(500));
            signal("STOP", other);
            answer.join().expect("an answer")
        });
        assert_eq!(status, 500, "{document}");
        let message = document["error"]["message"].as_str().expect("words");
        assert!(message.contains("waited for rank 1") || message.contains("rank 1 "), "{message}");
        let status = super::common::status(&mut served.child);
        let words = served.words();
        assert_failed(status, &words);
        assert!(words.contains("error: rank 0"), "{words}");
    }

    #[test]
    fn a_process_by_itself_is_a_world_of_one() {
        let line = format!("run MODEL -p {PROMPT} -n 8 -t 1 --json");
        let alone = helix(words(&line)).args(["--transport", "mpi"]).output().expect("helix");
        assert_eq!(alone.status.code(), Some(0), "{}", stderr(&alone));
        let document: Value = serde_json::from_slice(&alone.stdout).expect("a document");
        assert_eq!(document["tokens"], json(&line.replace(" --json", ""))["tokens"]);
    }
}
