//! What the links give, beside what was asked of them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use serde_json::{Value, json};

use crate::{control, host};

const PORT: u16 = 7000;
/// A fifth of the trips of an idle machine take at most so many times the shortest.
const OWN_SPREAD: f64 = 1.35;
/// A datagram that takes longer than this is lost.
const LOST: Duration = Duration::from_secs(5);

/// Half a round trip over links without delay: what the machine itself takes, one way.
///
/// One of the shorter trips, and near the shortest: a machine with other work is not a slow one.
pub fn own_delay_us(folder: &Path) -> Result<f64> {
    let trips = round_trips_us(folder, 0, 1, 400)?;
    Ok(quantile(&trips, 0.2).min(trips[0] * OWN_SPREAD) / 2.0)
}

/// Round trips of a small datagram between two hosts, sorted. Both ends poll, as MPI does.
fn round_trips_us(folder: &Path, from: usize, to: usize, count: usize) -> Result<Vec<f64>> {
    let bound = |index| -> Result<UdpSocket> {
        host::move_to(folder, index)?;
        let socket = UdpSocket::bind((host::address(index), PORT))?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    // Some trips warm the path up.
    let warm = count / 10 + 10;
    std::thread::scope(|scope| {
        let (ready, when_ready) = std::sync::mpsc::channel();
        let echo = scope.spawn(move || -> Result<()> {
            let socket = bound(to)?;
            ready.send(())?;
            for _ in 0..warm + count {
                let (word, from) = receive(&socket)?;
                socket.send_to(&word, from)?;
            }
            Ok(())
        });
        let ask = scope.spawn(move || -> Result<Vec<f64>> {
            let socket = bound(from)?;
            when_ready.recv()?;
            let trip = |number: u32| -> Result<f64> {
                let start = Instant::now();
                let word = number.to_le_bytes();
                socket.send_to(&word, (host::address(to), PORT))?;
                if receive(&socket)?.0 != word {
                    bail!("another datagram came back");
                }
                Ok(start.elapsed().as_secs_f64() * 1e6)
            };
            (0..(warm + count) as u32).map(trip).collect()
        });
        let panicked = |_| anyhow!("panicked");
        let trips = ask.join().map_err(panicked)?;
        echo.join().map_err(panicked)??;
        let mut trips = trips?.split_off(warm);
        trips.sort_by(f64::total_cmp);
        Ok(trips)
    })
}

fn receive(socket: &UdpSocket) -> Result<([u8; 4], SocketAddr)> {
    let start = Instant::now();
    let mut word = [0; 4];
    while start.elapsed() < LOST {
        match socket.recv_from(&mut word) {
            Ok((4, from)) => return Ok((word, from)),
            Ok((length, _)) => bail!("a datagram of {length} bytes"),
            Err(error) if error.kind() == ErrorKind::WouldBlock => std::thread::yield_now(),
            Err(error) => return Err(error.into()),
        }
    }
    bail!("a datagram was lost")
}

/// Gbit/s of one TCP stream from each of `from` to host `to`, all at once, in sum over `time`.
fn throughput_gbit(folder: &Path, from: &[usize], to: usize, time: Duration) -> Result<f64> {
    let listener = std::thread::scope(|scope| {
        let listen = scope.spawn(move || -> Result<TcpListener> {
            host::move_to(folder, to)?;
            Ok(TcpListener::bind((host::address(to), PORT))?)
        });
        listen.join().map_err(|_| anyhow!("panicked"))?
    })?;
    std::thread::scope(|scope| {
        for &index in from {
            // A stream that ends early is seen in the sum.
            scope.spawn(move || send_for(folder, index, to, time));
        }
        let receive = scope.spawn(move || -> Result<f64> {
            host::move_to(folder, to)?;
            receive_all(&listener, from.len())
        });
        receive.join().map_err(|_| anyhow!("panicked"))?
    })
}

fn send_for(folder: &Path, from: usize, to: usize, time: Duration) -> Result<()> {
    host::move_to(folder, from)?;
    let mut stream = TcpStream::connect((host::address(to), PORT))?;
    let chunk = vec![1; 1 << 18];
    let start = Instant::now();
    while start.elapsed() < time {
        stream.write_all(&chunk)?;
    }
    Ok(())
}

/// Reads `streams` streams to their ends; Gbit/s from the first byte to the last.
fn receive_all(listener: &TcpListener, streams: usize) -> Result<f64> {
    let accepted: std::io::Result<Vec<_>> = (0..streams).map(|_| listener.accept()).collect();
    let start = Instant::now();
    let bytes = std::thread::scope(|scope| {
        let readers: Vec<_> = accepted?
            .into_iter()
            .map(|(mut stream, _)| {
                scope.spawn(move || -> std::io::Result<usize> {
                    let mut buffer = vec![0; 1 << 18];
                    let mut sum = 0;
                    loop {
                        match stream.read(&mut buffer)? {
                            0 => return Ok(sum),
                            length => sum += length,
                        }
                    }
                })
            })
            .collect();
        let joined = readers.into_iter().map(|reader| reader.join().expect("no panic in reads"));
        joined.sum::<std::io::Result<usize>>()
    })?;
    Ok(bytes as f64 * 8.0 / 1e9 / start.elapsed().as_secs_f64())
}

fn quantile(sorted: &[f64], part: f64) -> f64 {
    sorted[((sorted.len() - 1) as f64 * part).round() as usize]
}

/// Measures every link of this run and prints what it gives.
pub fn report(as_json: bool) -> Result<u8> {
    let folder = host::folder()?;
    let hosts = (0..).take_while(|index| folder.join(host::name(*index)).is_dir()).count();
    if hosts < 2 {
        bail!("a link has two hosts; here is {hosts} (over loopback: none)");
    }
    let stats = || -> Result<Value> {
        serde_json::from_str(&control::ask("stats")?).context("the switch's counts")
    };
    stats()?;
    let mut trips = Vec::new();
    for to in 1..hosts {
        let us = round_trips_us(&folder, 0, to, 2000)?;
        let quantiles = [0.0, 0.1, 0.5, 0.9, 0.99].map(|part| quantile(&us, part));
        let [min, p10, median, p90, p99] = quantiles;
        trips.push(json!({"from": host::name(0), "to": host::name(to), "min": min, "p10": p10,
            "median": median, "p90": p90, "p99": p99}));
    }
    let idle = stats()?;
    let second = Duration::from_secs(1);
    let one = throughput_gbit(&folder, &[0], 1, second)?;
    let loaded = stats()?;
    let others: Vec<usize> = (1..hosts).collect();
    let all = throughput_gbit(&folder, &others, 0, second)?;
    let document = json!({"round_trip_us": trips, "one_stream_gbit": one,
        "all_to_host0_gbit": all, "switch": {"round_trips": idle, "one_stream": loaded}});
    if as_json {
        println!("{document}");
    } else {
        show(&document);
    }
    Ok(0)
}

fn show(document: &Value) {
    println!("round trip of a datagram, us    min     p10  median     p90     p99");
    let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
    for trip in document["round_trip_us"].as_array().into_iter().flatten() {
        let [min, p10, median, p90, p99] =
            ["min", "p10", "median", "p90", "p99"].map(|key| number(&trip[key]));
        let names = format!("{} - {}", trip["from"], trip["to"]).replace('"', "");
        println!("  {names:<24} {min:>8.1} {p10:>7.1} {median:>7.1} {p90:>7.1} {p99:>7.1}");
    }
    println!("one TCP stream: {:.2} Gbit/s", number(&document["one_stream_gbit"]));
    println!("all others to host0: {:.2} Gbit/s", number(&document["all_to_host0_gbit"]));
    for (what, name) in [("round_trips", "round trips"), ("one_stream", "one stream")] {
        let of = &document["switch"][what];
        println!(
            "switch during {name}: {:.0} % of a core; frames late by {:.1} us on average, {:.0} at most",
            number(&of["core_share"]) * 100.0,
            number(&of["late_us_mean"]),
            number(&of["late_us_max"])
        );
    }
}
