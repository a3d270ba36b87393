//! A job's events as an answer: whole, or as a stream of pieces.

use crate::app::Taken;
use crate::error::ApiError;
use crate::job::{Done, Event, Finish};
use crate::request::{Endpoint, Stream};
use crate::wire::{self, Choice, Completion, Content, Head, Said, Usage, UsageField};
use axum::response::sse::{self, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::hash::{BuildHasher, RandomState};

/// What a lost worker's clients are told.
const LOST: &str = "the engine stopped before the text was complete";

/// An answer in the making.
pub(crate) struct Answer {
    endpoint: Endpoint,
    head: Head,
    taken: Taken,
}

impl Answer {
    /// The answer to a request at `created`, in seconds since 1970.
    pub fn new(endpoint: Endpoint, model: String, created: u64, taken: Taken) -> Answer {
        let (name, object) = match endpoint {
            Endpoint::Chat => ("chatcmpl", "chat.completion"),
            Endpoint::Completions => ("cmpl", "text_completion"),
        };
        let id = format!("{name}-{:016x}", RandomState::new().hash_one(created));
        Answer { endpoint, head: Head { id, object, created, model }, taken }
    }

    /// Waits for all of it.
    pub async fn whole(mut self) -> Result<Response, ApiError> {
        let mut text = String::new();
        let done = loop {
            match self.taken.events.recv().await {
                Some(Event::Text(more)) => text += &more,
                Some(Event::Done(done)) => break done,
                Some(Event::Failed(why)) => return Err(ApiError::engine(why)),
                None => return Err(ApiError::engine(LOST)),
            }
        };
        let content = match self.endpoint {
            Endpoint::Chat => {
                Content::Message(Said { role: Some("assistant"), content: Some(&text) })
            }
            Endpoint::Completions => Content::Text(&text),
        };
        let usage = UsageField { usage: Some(Some(self.usage(done))) };
        let choices = vec![choice(content, Some(done.finish))];
        Ok(wire::json(&Completion { head: &self.head, choices, usage }).into_response())
    }

    /// Sends it piece by piece.
    pub fn stream(mut self, stream: Stream) -> Response {
        if self.endpoint == Endpoint::Chat {
            self.head.object = "chat.completion.chunk";
        }
        let mut pieces =
            Pieces { answer: self, with_usage: stream.usage, ready: VecDeque::new(), over: false };
        pieces.begin();
        let events = futures_util::stream::unfold(pieces, async |mut pieces| {
            let event = pieces.next().await?;
            Some((Ok::<_, Infallible>(event), pieces))
        });
        Sse::new(events).keep_alive(KeepAlive::default()).into_response()
    }

    fn usage(&self, done: Done) -> Usage {
        let (prompt_tokens, completion_tokens) = (self.taken.prompt_tokens, done.completion_tokens);
        let total_tokens = prompt_tokens + completion_tokens;
        Usage { prompt_tokens, completion_tokens, total_tokens }
    }
}

fn choice(content: Content<'_>, finish_reason: Option<Finish>) -> Choice<'_> {
    Choice { index: 0, content, logprobs: None, finish_reason }
}

/// A stream's pieces.
struct Pieces {
    answer: Answer,
    with_usage: bool,
    /// Pieces that are next.
    ready: VecDeque<sse::Event>,
    /// Whether none but those come.
    over: bool,
}

impl Pieces {
    /// A chat's stream says first who speaks.
    fn begin(&mut self) {
        if self.answer.endpoint == Endpoint::Chat {
            let said = Said { role: Some("assistant"), content: Some("") };
            self.push(choice(Content::Delta(said), None));
        }
    }

    async fn next(&mut self) -> Option<sse::Event> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Some(event);
            }
            if self.over {
                return None;
            }
            let event = self.answer.taken.events.recv().await;
            match event.unwrap_or_else(|| Event::Failed(LOST.into())) {
                Event::Text(text) => {
                    let content = match self.answer.endpoint {
                        Endpoint::Chat => Content::Delta(Said { role: None, content: Some(&text) }),
                        Endpoint::Completions => Content::Text(&text),
                    };
                    self.push(choice(content, None));
                }
                Event::Done(done) => self.end(done),
                Event::Failed(why) => {
                    self.data(wire::text(&ApiError::engine(why).body()));
                    self.over = true;
                }
            }
        }
    }

    fn end(&mut self, done: Done) {
        let content = match self.answer.endpoint {
            Endpoint::Chat => Content::Delta(Said { role: None, content: None }),
            Endpoint::Completions => Content::Text(""),
        };
        self.push(choice(content, Some(done.finish)));
        if self.with_usage {
            self.completion(vec![], UsageField { usage: Some(Some(self.answer.usage(done))) });
        }
        self.data("[DONE]".into());
        self.over = true;
    }

    fn push(&mut self, choice: Choice<'_>) {
        // Where usage comes at the end, it is null before.
        let usage = UsageField { usage: self.with_usage.then_some(None) };
        self.completion(vec![choice], usage);
    }

    fn completion(&mut self, choices: Vec<Choice<'_>>, usage: UsageField) {
        self.data(wire::text(&Completion { head: &self.answer.head, choices, usage }));
    }

    fn data(&mut self, data: String) {
        self.ready.push_back(sse::Event::default().data(data));
    }
}
