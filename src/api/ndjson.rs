//! One JSON value a line, sent while something goes on.

use std::convert::Infallible;

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tokio::sync::mpsc;

/// How many lines may wait for a slow reader before the writer waits for it.
const QUEUE: usize = 64;

/// Where the lines of one answer go. When the reader has gone, sending fails and the writer stops.
pub struct Lines<T>(mpsc::Sender<T>);

/// The reader has gone.
pub struct ReaderGone;

impl<T> Clone for Lines<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl<T> Lines<T> {
    /// Sends one line; waits while the reader is slow.
    pub async fn send(&self, line: T) -> Result<(), ReaderGone> {
        self.0.send(line).await.map_err(|_| ReaderGone)
    }

    /// The same from a thread that may block.
    pub fn send_blocking(&self, line: T) -> Result<(), ReaderGone> {
        self.0.blocking_send(line).map_err(|_| ReaderGone)
    }

    /// Fails when the reader has gone.
    pub fn still_read(&self) -> Result<(), ReaderGone> {
        if self.0.is_closed() {
            Err(ReaderGone)
        } else {
            Ok(())
        }
    }

    /// Resolves when the reader has gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// An answer of lines, and where to send them. It ends when every sender is dropped.
pub fn lines<T: Serialize + Send + 'static>() -> (Lines<T>, Response) {
    let (sender, receiver) = mpsc::channel::<T>(QUEUE);
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        let line = receiver.recv().await?;
        Some((Ok::<_, Infallible>(encode(&line)), receiver))
    });
    let headers = [(CONTENT_TYPE, "application/x-ndjson")];
    (
        Lines(sender),
        (headers, Body::from_stream(stream)).into_response(),
    )
}

/// One line. Our own types always encode; were one ever not to, the reader is told so in the stream.
fn encode<T: Serialize>(line: &T) -> Bytes {
    let mut bytes = serde_json::to_vec(line)
        .unwrap_or_else(|e| format!("{{\"error\":{:?}}}", e.to_string()).into_bytes());
    bytes.push(b'\n');
    bytes.into()
}
