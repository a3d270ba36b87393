//! A server from its address to its end.

use crate::app::{App, Phase, Shared};
use crate::http;
use crate::job::Command;
use crate::worker::Worker;
use helix_engine::{Engine, EngineError};
use helix_model::{ChatTemplate, Tokenizer};
use helix_scheduler::{Limits, LimitsError, Scheduler};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use tokio::sync::oneshot;

/// Threads that encode prompts.
const ENCODERS: usize = 2;

/// Why there is no server, or no more.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    /// The address is not to be had.
    #[error("cannot listen at {host} port {port}: {source}")]
    Bind {
        /// The host's name or number.
        host: String,
        /// The port.
        port: u16,
        /// The system's answer.
        source: io::Error,
    },
    /// The engine can't run what the scheduler would plan.
    #[error(transparent)]
    Limits(#[from] LimitsError),
    /// The system refuses a thread or what connections need.
    #[error("the system refuses {what}: {source}")]
    System {
        /// What was asked for.
        what: &'static str,
        /// Its answer.
        source: io::Error,
    },
    /// The engine failed, and with it the server.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

/// An address that is taken, for a server that is yet to start: clients may knock already.
#[derive(Debug)]
pub struct Listener(TcpListener);

impl Listener {
    /// Takes an address; port 0 is any that is free.
    pub fn bind(host: &str, port: u16) -> Result<Listener, ServerError> {
        let wrong = |source| ServerError::Bind { host: host.to_owned(), port, source };
        let listener = TcpListener::bind((host, port)).map_err(wrong)?;
        listener.set_nonblocking(true).map_err(wrong)?;
        Ok(Listener(listener))
    }

    /// The address, with the port that it got.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.local_addr()
    }
}

/// What is served.
#[derive(Debug)]
pub struct Served {
    /// What clients call the model.
    pub name: String,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, if it has one.
    pub template: Option<ChatTemplate>,
    /// Requests that may wait until one of the engine's sequences is free.
    pub max_waiting: usize,
}

/// A server that answers as soon as [`Server::run`] is called.
pub struct Server {
    engine: Engine,
    scheduler: Scheduler,
    tokenizer: Arc<Tokenizer>,
    inbox: Receiver<Command>,
    shared: Arc<Shared>,
    worker: Sender<Command>,
    connections: JoinHandle<()>,
    close: oneshot::Sender<()>,
}

/// Ends a server from another thread.
#[derive(Clone, Debug)]
pub struct Handle {
    shared: Arc<Shared>,
    worker: Sender<Command>,
}

impl Handle {
    /// New requests are refused; when those that were taken on are answered, the server ends.
    pub fn drain(&self) {
        self.shared.set_phase(Phase::Draining);
        // Without a worker the server has ended.
        let _ = self.worker.send(Command::Drain);
    }
}

impl Server {
    /// Serves `engine` at an address. Its options are the limits: sequences at once, their context,
    /// tokens of a step.
    pub fn start(
        listener: Listener,
        engine: Engine,
        served: Served,
    ) -> Result<Server, ServerError> {
        let options = engine.options();
        let limits = Limits {
            max_sequences: options.max_sequences,
            max_step_tokens: options.max_step_tokens,
            max_context: options.max_context,
            // The engine's cache holds every sequence at its longest.
            kv_tokens: options.max_sequences.saturating_mul(options.max_context),
            kv_granule: 1,
            max_waiting: served.max_waiting,
        };
        let scheduler = Scheduler::new(limits)?;
        let (worker, inbox) = mpsc::channel();
        let shared = Arc::new(Shared::new());
        let tokenizer = Arc::new(served.tokenizer);
        let app = Arc::new(App {
            name: served.name,
            created: http::seconds(),
            context: limits.max_context,
            vocab: engine.vocab(),
            tokenizer: Arc::clone(&tokenizer),
            template: served.template,
            worker: worker.clone(),
            shared: Arc::clone(&shared),
        });
        let (close, closing) = oneshot::channel();
        let connections = connections(listener, app, closing)?;
        Ok(Server { engine, scheduler, tokenizer, inbox, shared, worker, connections, close })
    }

    /// What ends it.
    pub fn handle(&self) -> Handle {
        Handle { shared: Arc::clone(&self.shared), worker: self.worker.clone() }
    }

    /// Answers requests until it is drained: this thread leads the engine.
    ///
    /// # Errors
    /// The engine failed. All clients have been told.
    pub fn run(self) -> Result<(), ServerError> {
        let Server { engine, scheduler, tokenizer, inbox, shared, connections, close, .. } = self;
        let worked = Worker::new(engine, scheduler, &tokenizer, inbox, &shared).run();
        // If nobody hears it, connections have ended already.
        let _ = close.send(());
        let ended = connections.join();
        worked?;
        ended.map_err(|panic| std::panic::resume_unwind(panic))
    }
}

/// Starts the thread that has all connections.
fn connections(
    listener: Listener,
    app: Arc<App>,
    closing: oneshot::Receiver<()>,
) -> Result<JoinHandle<()>, ServerError> {
    let refused = |what| move |source| ServerError::System { what, source };
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_io().enable_time().max_blocking_threads(ENCODERS).build();
    let runtime = runtime.map_err(refused("an event loop"))?;
    let listener = {
        let _inside = runtime.enter();
        tokio::net::TcpListener::from_std(listener.0).map_err(refused("a socket"))?
    };
    let serve = move || runtime.block_on(http::serve(listener, app, closing));
    let thread = thread::Builder::new().name("helix-http".into()).spawn(serve);
    thread.map_err(refused("a thread"))
}
