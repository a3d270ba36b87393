//! Serves a model over HTTP in the form of OpenAI's API: chat completions, completions, models.
//!
//! One thread owns the [`Engine`](helix_engine::Engine) and runs steps (`worker.rs`): whoever calls
//! [`Server::run`]. Another one has all connections (`http.rs`), reads requests (`request.rs`),
//! turns them into jobs (`job.rs`) and sends what comes back (`answer.rs`). Between them are
//! channels: a job carries the sender of its own text, and a receiver that is gone cancels it.
#![forbid(unsafe_code)]

mod answer;
mod app;
mod error;
mod fields;
mod http;
mod job;
mod messages;
mod metrics;
mod request;
mod server;
mod stops;
mod wire;
mod worker;

pub use http::MAX_BODY_BYTES;
pub use server::{Handle, Listener, Served, Server, ServerError};
