//! Connections: routes, limits, and an end that loses nothing.

use crate::answer::Answer;
use crate::app::{App, Phase};
use crate::error::ApiError;
use crate::metrics::Outcome;
use crate::request::{Ask, Endpoint};
use crate::wire::{Model, Models, json};
use axum::Router;
use axum::body::Body;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use http_body_util::BodyExt;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, oneshot};
use tokio::time::{sleep, timeout};

/// The largest body that is read: a million tokens of text, with room to spare.
pub const MAX_BODY_BYTES: usize = 8 << 20;
/// How much of a larger one is read and forgotten, so that its sender gets to read the refusal.
const MAX_FORGOTTEN_BYTES: usize = 64 << 20;
/// Connections at a time; more wait to be accepted.
const MAX_CONNECTIONS: usize = 512;
/// From one request's end to the end of the next one's head.
const HEAD_TIME: Duration = Duration::from_secs(60);
/// For a request's body.
const BODY_TIME: Duration = Duration::from_secs(60);
/// For answers to be read when the server ends.
const FAREWELL_TIME: Duration = Duration::from_secs(10);
/// After a connection was not accepted: the process may have too many files open.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections until `closing`, then waits for what is being answered.
pub(crate) async fn serve(
    listener: TcpListener,
    app: Arc<App>,
    mut closing: oneshot::Receiver<()>,
) {
    let router = router(app);
    let graceful = GracefulShutdown::new();
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    loop {
        let accepted = async {
            let place = Arc::clone(&places).acquire_owned().await.expect("it is never closed");
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => return (stream, place),
                    Err(_) => sleep(ACCEPT_PAUSE).await,
                }
            }
        };
        let (stream, place) = tokio::select! {
            accepted = accepted => accepted,
            _ = &mut closing => break,
        };
        let connection = graceful.watch(connection(stream, router.clone()));
        tokio::spawn(async move {
            // How a connection ended is its client's business.
            let _ = connection.await;
            drop(place);
        });
    }
    drop(listener);
    // Whoever does not read its answer in time loses it.
    let _ = timeout(FAREWELL_TIME, graceful.shutdown()).await;
}

type Connection = http1::Connection<TokioIo<TcpStream>, TowerToHyperService<Router>>;

fn connection(stream: TcpStream, router: Router) -> Connection {
    // Pieces of a stream are small and should not wait for each other.
    let _ = stream.set_nodelay(true);
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD_TIME);
    builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/chat/completions", post(chat))
        .route("/v1/completions", post(completions))
        .route("/v1/models", get(models))
        .route("/health", get(health))
        .route("/metrics", get(metrics))
        .method_not_allowed_fallback(no_method)
        .fallback(no_route)
        .with_state(app)
}

async fn chat(State(app): State<Arc<App>>, body: Body) -> Response {
    complete(app, Endpoint::Chat, body).await
}

async fn completions(State(app): State<Arc<App>>, body: Body) -> Response {
    complete(app, Endpoint::Completions, body).await
}

async fn complete(app: Arc<App>, endpoint: Endpoint, body: Body) -> Response {
    let arrived = Instant::now();
    let taken = async {
        app.check(None)?;
        let body = read(body).await?;
        let ask = Ask::parse(endpoint, &body)?;
        drop(body);
        app.check(ask.model.as_deref())?;
        let stream = ask.stream;
        Ok::<_, ApiError>((app.submit(ask, arrived).await?, stream))
    };
    let (taken, stream) = match taken.await {
        Ok(taken) => taken,
        Err(error) => {
            app.shared.metrics.count(Outcome::Refused);
            return error.into_response();
        }
    };
    let answer = Answer::new(endpoint, app.name.clone(), seconds(), taken);
    match stream {
        Some(stream) => answer.stream(stream),
        None => answer.whole().await.unwrap_or_else(IntoResponse::into_response),
    }
}

/// All of a body, if it is not too large and comes in time.
async fn read(mut body: Body) -> Result<Vec<u8>, ApiError> {
    let all = async {
        let (mut bytes, mut count) = (Vec::new(), 0usize);
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|error| {
                ApiError::request(format!("the body could not be read: {error}"))
            })?;
            let Ok(data) = frame.into_data() else { continue };
            count += data.len();
            if count > MAX_FORGOTTEN_BYTES {
                break;
            }
            if count > MAX_BODY_BYTES {
                bytes = Vec::new();
            } else {
                bytes.extend_from_slice(&data);
            }
        }
        if count > MAX_BODY_BYTES {
            let message =
                format!("the body has more than the {MAX_BODY_BYTES} bytes that are read");
            return Err(ApiError::too_large(message));
        }
        Ok(bytes)
    };
    let late = |_| {
        let seconds = BODY_TIME.as_secs();
        ApiError::too_slow(format!("the body did not come within {seconds} s"))
    };
    timeout(BODY_TIME, all).await.map_err(late)?
}

async fn models(State(app): State<Arc<App>>) -> Response {
    let model = Model {
        id: &app.name,
        object: "model",
        created: app.created,
        owned_by: "helix",
        max_model_len: app.context,
    };
    json(&Models { object: "list", data: [model] }).into_response()
}

async fn health(State(app): State<Arc<App>>) -> Response {
    let (status, text) = match app.shared.phase() {
        Phase::Serving => (StatusCode::OK, "{\"status\":\"ok\"}"),
        Phase::Draining => (StatusCode::SERVICE_UNAVAILABLE, "{\"status\":\"draining\"}"),
        Phase::Failed => (StatusCode::SERVICE_UNAVAILABLE, "{\"status\":\"failed\"}"),
    };
    (status, [(CONTENT_TYPE, "application/json")], text).into_response()
}

async fn metrics(State(app): State<Arc<App>>) -> Response {
    ([(CONTENT_TYPE, "text/plain; version=0.0.4")], app.shared.metrics.text()).into_response()
}

const ADDRESSES: &str = "this server has POST /v1/chat/completions and /v1/completions, GET \
                         /v1/models, /health and /metrics";

async fn no_route(uri: Uri) -> ApiError {
    ApiError::no_route(format!("there is no {}: {ADDRESSES}", uri.path()))
}

async fn no_method(method: Method, uri: Uri) -> ApiError {
    ApiError::no_method(format!("{} does not take {method}: {ADDRESSES}", uri.path()))
}

/// The time in seconds since 1970.
pub(crate) fn seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}
