//! The same and what has happened, for Prometheus.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;

use super::{Answer, Handle};
use crate::daemon::DaemonError;
use crate::metrics::{self, Metrics};

/// `GET /v1/metrics`, and `GET /metrics` where the configuration has an address for it.
pub async fn metrics(
    State(daemon): Handle,
    Extension(metrics): Extension<Arc<Metrics>>,
) -> Answer<impl IntoResponse> {
    let usage = daemon.containers.usage(None).await?;
    let text = metrics.text(&usage).map_err(|_| DaemonError::Defect {
        what: "the metrics".to_owned(),
    })?;
    Ok(([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text))
}
