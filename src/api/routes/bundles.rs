//! Containers of OCI bundles: look.

use axum::Json;
use axum::extract::State;

use super::types::Bundle;
use super::{Answer, Handle, Segment};

/// `GET /v1/bundles`
pub async fn list(State(daemon): Handle) -> Answer<Json<Vec<Bundle>>> {
    Ok(Json(daemon.bundles.list().await?))
}

/// `GET /v1/bundles/{id}`
pub async fn one(State(daemon): Handle, Segment(id): Segment<String>) -> Answer<Json<Bundle>> {
    Ok(Json(daemon.bundles.one(&id).await?))
}
