//! Templates and the images made from them.

use axum::Json;
use axum::extract::State;
use axum::response::Response;

use super::types::{ApiError, BuildLine, TemplateInfo};
use super::{Answer, Handle, Segment, ndjson};
use crate::model::Name;

/// `GET /v1/templates`
pub async fn list(State(daemon): Handle) -> Answer<Json<Vec<TemplateInfo>>> {
    Ok(Json(daemon.containers.templates().await?))
}

/// `POST /v1/templates/{name}/build`: a line per step, then the image. The build goes on when the reader
/// goes: the next one finds it made.
pub async fn build(State(daemon): Handle, Segment(name): Segment<Name>) -> Answer<Response> {
    let known = daemon.containers.templates().await?;
    let (lines, response) = ndjson::lines();
    if !known.iter().any(|template| template.name == name) {
        // Answered by the daemon, which knows where it looked; and before any line is promised.
        daemon.containers.build(&name, |_| {}).await?;
    }
    tokio::spawn(async move {
        let steps = lines.clone();
        let say = move |step: &str| {
            let _ = steps.send_blocking(BuildLine::Step(step.to_owned()));
        };
        let last = match daemon.containers.build(&name, say).await {
            Ok(image) => BuildLine::Image(image),
            Err(e) => BuildLine::Failed(ApiError::from(&e)),
        };
        let _ = lines.send(last).await;
    });
    Ok(response)
}
