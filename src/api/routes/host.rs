//! The host itself.

use axum::Json;
use axum::extract::State;

use super::types::LeaseInfo;
use super::{Answer, Handle};
use crate::model::HostFacts;

/// `GET /v1/host`
pub async fn facts(State(daemon): Handle) -> Answer<Json<HostFacts>> {
    Ok(Json(daemon.facts()?))
}

/// `GET /v1/leases`
pub async fn leases(State(daemon): Handle) -> Answer<Json<Vec<LeaseInfo>>> {
    Ok(Json(daemon.containers.leases().await?))
}
