//! What containers use.

use axum::Json;
use axum::extract::State;

use super::{Answer, Handle, Segment};
use crate::model::{Name, Usage};

/// `GET /v1/stats`
pub async fn all(State(daemon): Handle) -> Answer<Json<Vec<Usage>>> {
    Ok(Json(daemon.containers.usage(None).await?))
}

/// `GET /v1/containers/{name}/stats`
pub async fn one(State(daemon): Handle, Segment(name): Segment<Name>) -> Answer<Json<Vec<Usage>>> {
    Ok(Json(daemon.containers.usage(Some(&name)).await?))
}
