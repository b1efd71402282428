//! What happens, as it happens.

use axum::extract::State;
use axum::response::Response;
use tokio::sync::broadcast::error::RecvError;

use super::types::EventLine;
use super::{Handle, ndjson};

/// `GET /v1/events`: from now on, until the reader or the daemon goes.
pub async fn events(State(daemon): Handle) -> Response {
    let mut listener = daemon.events.subscribe();
    let stopping = daemon.stopping.clone();
    let (lines, response) = ndjson::lines();
    tokio::spawn(async move {
        loop {
            let heard = tokio::select! {
                heard = listener.recv() => heard,
                () = stopping.cancelled() => return,
                () = lines.closed() => return,
            };
            let line = match heard {
                Ok(event) => EventLine::Event(Box::new(event)),
                Err(RecvError::Lagged(missed)) => EventLine::Missed { missed },
                Err(RecvError::Closed) => return,
            };
            if lines.send(line).await.is_err() {
                return;
            }
        }
    });
    response
}
