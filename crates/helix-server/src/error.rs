//! What a request is refused with: a status, and OpenAI's JSON.

use crate::wire::json;
use axum::http::{HeaderValue, StatusCode, header::RETRY_AFTER};
use axum::response::{IntoResponse, Response};
use helix_scheduler::Refusal;
use serde::Serialize;

/// An answer that says why there is none.
#[derive(Clone, Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    /// A word for programs.
    code: Option<&'static str>,
    /// The field that is wrong.
    param: Option<String>,
    message: String,
}

/// As OpenAI's API writes it.
#[derive(Debug, Serialize)]
pub(crate) struct Body<'a> {
    error: Inner<'a>,
}

#[derive(Debug, Serialize)]
struct Inner<'a> {
    message: &'a str,
    r#type: &'static str,
    param: Option<&'a str>,
    code: Option<&'static str>,
}

impl ApiError {
    fn new(status: StatusCode, message: impl Into<String>) -> ApiError {
        ApiError { status, code: None, param: None, message: message.into() }
    }

    /// 400: the request is wrong.
    pub fn request(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::BAD_REQUEST, message)
    }

    /// 400: the field `param` is wrong; the message names it.
    pub fn field(param: &str, message: impl Into<String>) -> ApiError {
        ApiError { param: Some(param.to_owned()), ..ApiError::request(message) }
    }

    /// 404: no such address.
    pub fn no_route(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::NOT_FOUND, message)
    }

    /// 404: another model than the one that is served.
    pub fn no_model(message: impl Into<String>) -> ApiError {
        let error = ApiError::new(StatusCode::NOT_FOUND, message);
        ApiError { code: Some("model_not_found"), param: Some("model".into()), ..error }
    }

    /// 405: an address that is asked otherwise.
    pub fn no_method(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::METHOD_NOT_ALLOWED, message)
    }

    /// 408: the client takes too long.
    pub fn too_slow(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::REQUEST_TIMEOUT, message)
    }

    /// 413: more than is read.
    pub fn too_large(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, message)
    }

    /// 503: the server is about to end.
    pub fn draining() -> ApiError {
        let message = "the server is shutting down and takes no more requests";
        ApiError::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    /// 500: the engine failed.
    pub fn engine(message: impl Into<String>) -> ApiError {
        ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// Its JSON, as an answer's body or in the middle of a stream.
    pub fn body(&self) -> Body<'_> {
        let r#type = match self.status {
            StatusCode::TOO_MANY_REQUESTS => "rate_limit_error",
            status if status.is_server_error() => "server_error",
            _ => "invalid_request_error",
        };
        let Self { message, param, code, .. } = self;
        Body { error: Inner { message, r#type, param: param.as_deref(), code: *code } }
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> ApiError {
        let message = refusal.to_string();
        match refusal {
            Refusal::QueueFull { .. } => ApiError {
                code: Some("queue_full"),
                ..ApiError::new(StatusCode::TOO_MANY_REQUESTS, message)
            },
            Refusal::PromptPastContext { .. } | Refusal::PastKvBudget { .. } => ApiError {
                code: Some("context_length_exceeded"),
                ..ApiError::request(format!("{message} (-c of `helix serve`)"))
            },
            Refusal::EmptyPrompt | Refusal::NoNewTokens => ApiError::request(message),
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = (self.status, json(&self.body())).into_response();
        let busy = [StatusCode::TOO_MANY_REQUESTS, StatusCode::SERVICE_UNAVAILABLE];
        if busy.contains(&self.status) {
            response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}
