//! `helix-hosts`: several hosts on one machine. Each is a network namespace with an address and a
//! host name; a switch in user space joins them, with a delay and a bandwidth. Called by `cargo x hosts`.
#![forbid(unsafe_code)]

#[cfg(target_os = "linux")]
mod control;
#[cfg(target_os = "linux")]
mod host;
#[cfg(target_os = "linux")]
mod launch;
#[cfg(target_os = "linux")]
mod link;
#[cfg(target_os = "linux")]
mod measure;
#[cfg(target_os = "linux")]
mod options;
#[cfg(target_os = "linux")]
mod switch;
#[cfg(target_os = "linux")]
mod world;

#[cfg(target_os = "linux")]
fn main() -> std::process::ExitCode {
    options::main()
}

#[cfg(not(target_os = "linux"))]
fn main() -> std::process::ExitCode {
    eprintln!("error: emulated hosts are made of Linux's network namespaces");
    std::process::ExitCode::from(2)
}
