//! One file per noun of the API.

mod bundles;
mod containers;
mod events;
mod exec;
mod host;
mod logs;
pub mod metrics;
mod migrations;
mod peers;
mod stats;
mod templates;

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::routing::{get, post};

use super::error::Failure;
use super::extract::{Body, Options, Segment};
use super::ndjson;
use super::types;
use crate::daemon::Daemon;

/// What every route is given.
type Handle = State<Arc<Daemon>>;
/// What every route answers.
type Answer<T> = Result<T, Failure>;

/// Everything beneath `/v1`.
pub fn all() -> Router<Arc<Daemon>> {
    Router::new()
        .route("/host", get(host::facts))
        .route("/leases", get(host::leases))
        .route(
            "/containers",
            get(containers::list).post(containers::create),
        )
        .route(
            "/containers/{name}",
            get(containers::one).delete(containers::delete),
        )
        .route("/containers/{name}/start", post(containers::start))
        .route("/containers/{name}/stop", post(containers::stop))
        .route("/containers/{name}/kill", post(containers::kill))
        .route("/containers/{name}/ps", get(containers::ps))
        .route("/containers/{name}/stats", get(stats::one))
        .route("/containers/{name}/exec", post(exec::exec))
        .route("/containers/{name}/logs", get(logs::logs))
        .route("/containers/{name}/migrate", post(migrations::migrate))
        .route("/bundles", get(bundles::list))
        .route("/bundles/{id}", get(bundles::one))
        .route("/migrations", get(migrations::list))
        .route(
            "/migrations/{id}",
            get(migrations::one).delete(migrations::cancel),
        )
        .route("/migrations/{id}/progress", get(migrations::progress))
        .route("/migrations/{id}/resolve", post(migrations::resolve))
        .route("/stats", get(stats::all))
        .route("/metrics", get(metrics::metrics))
        .route("/events", get(events::events))
        .route("/templates", get(templates::list))
        .route("/templates/{name}/build", post(templates::build))
        .route("/peers", get(peers::list))
        .route("/peers/token", post(peers::token))
        .route("/peers/join", post(peers::join))
        .route("/peers/{name}", axum::routing::delete(peers::remove))
}
