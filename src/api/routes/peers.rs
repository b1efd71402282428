//! The other hosts.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::types::{JoinRequest, PeerInfo, TokenAnswer, TokenRequest};
use super::{Answer, Body, Handle, Segment};
use crate::daemon::DaemonError;
use crate::model::Name;

/// The longest life of a token, in seconds: a day.
const TTL_MAX: u64 = 24 * 3600;

/// `GET /v1/peers`
pub async fn list(State(daemon): Handle) -> Answer<Json<Vec<PeerInfo>>> {
    Ok(Json(daemon.outside()?.peers.list()))
}

/// `POST /v1/peers/token`
pub async fn token(
    State(daemon): Handle,
    Body(request): Body<TokenRequest>,
) -> Answer<Json<TokenAnswer>> {
    if !(1..=TTL_MAX).contains(&request.ttl) {
        return Err(DaemonError::Field {
            field: "ttl",
            problem: format!("a token cannot be good for {} seconds", request.ttl),
            remedy: format!("choose from 1 to {TTL_MAX}"),
        }
        .into());
    }
    Ok(Json(daemon.outside()?.peers.token(request.ttl).await?))
}

/// `POST /v1/peers/join`
pub async fn join(
    State(daemon): Handle,
    Body(request): Body<JoinRequest>,
) -> Answer<Json<PeerInfo>> {
    let peers = &daemon.outside()?.peers;
    Ok(Json(peers.join(&request.address, &request.token).await?))
}

/// `DELETE /v1/peers/{name}`
pub async fn remove(State(daemon): Handle, Segment(name): Segment<Name>) -> Answer<StatusCode> {
    daemon.outside()?.peers.remove(&name).await?;
    Ok(StatusCode::NO_CONTENT)
}
