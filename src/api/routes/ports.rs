//! Ports of the container network in namespaces that others have made.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::types::{PortInfo, PortRequest};
use super::{Answer, Body, Handle, Segment};
use crate::model::Name;

/// `GET /v1/ports`
pub async fn list(State(daemon): Handle) -> Answer<Json<Vec<PortInfo>>> {
    Ok(Json(daemon.containers.ports().await?))
}

/// `POST /v1/ports`
pub async fn make(
    State(daemon): Handle,
    Body(request): Body<PortRequest>,
) -> Answer<Json<PortInfo>> {
    Ok(Json(daemon.containers.make_port(request).await?))
}

/// `DELETE /v1/ports/{name}`
pub async fn remove(State(daemon): Handle, Segment(name): Segment<Name>) -> Answer<StatusCode> {
    daemon.containers.remove_port(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
