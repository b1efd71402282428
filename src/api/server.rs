//! Serves the API on a unix socket that only its owner may open.

use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use axum::extract::Request;
use axum::http::StatusCode;
use axum::middleware::{self, Next};
use axum::response::Response;
use axum::routing::get;
use axum::serve::Listener;
use axum::{Extension, Router};
use tokio::net::{TcpListener, UnixListener};

use super::error::Failure;
use super::routes;
use crate::daemon::Daemon;
use crate::metrics::Metrics;

/// Listens at `path`, mode 0600. A socket that a dead daemon left there is replaced; the caller holds the
/// run directory's lock, so nobody else can be listening.
pub fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Ok(found) = fs::symlink_metadata(path)
        && found.file_type().is_socket()
    {
        fs::remove_file(path)?;
    }
    // Bound under another name and renamed once it is closed to others: nobody ever sees it open.
    let staged = path.with_extension("sock.new");
    match fs::remove_file(&staged) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
        _ => {}
    }
    let listener = UnixListener::bind(&staged)?;
    fs::set_permissions(&staged, Permissions::from_mode(0o600))?;
    fs::rename(&staged, path)?;
    Ok(listener)
}

/// Counts what happens in this daemon from now on, for as long as anything happens in it.
pub fn count(daemon: &Daemon) -> Arc<Metrics> {
    let metrics = Arc::new(Metrics::new());
    tokio::spawn(Arc::clone(&metrics).listen(daemon.events.subscribe()));
    metrics
}

/// Serves until the daemon is to end, then finishes what it began.
pub async fn serve(
    listener: UnixListener,
    daemon: Arc<Daemon>,
    metrics: Arc<Metrics>,
) -> io::Result<()> {
    let routes = Router::new().nest("/v1", routes::all());
    serve_routes(listener, routes, daemon, metrics).await
}

/// The same for who scrapes from elsewhere: nothing but `/metrics`, which changes nothing.
pub async fn serve_metrics(
    listener: TcpListener,
    daemon: Arc<Daemon>,
    metrics: Arc<Metrics>,
) -> io::Result<()> {
    let routes = Router::new().route("/metrics", get(routes::metrics::metrics));
    serve_routes(listener, routes, daemon, metrics).await
}

async fn serve_routes<L>(
    listener: L,
    routes: Router<Arc<Daemon>>,
    daemon: Arc<Daemon>,
    metrics: Arc<Metrics>,
) -> io::Result<()>
where
    L: Listener<Addr: std::fmt::Debug>,
{
    let stopping = daemon.stopping.clone();
    let all = finished(routes)
        .layer(Extension(metrics))
        .with_state(daemon);
    axum::serve(listener, all)
        .with_graceful_shutdown(async move { stopping.cancelled().await })
        .await
}

fn finished(routes: Router<Arc<Daemon>>) -> Router<Arc<Daemon>> {
    routes
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(middleware::from_fn(told))
}

async fn no_such_path(request: Request) -> Failure {
    let text = format!("there is nothing at {}", request.uri().path());
    Failure::request(StatusCode::NOT_FOUND, "no-such-path", text)
}

async fn no_such_method(request: Request) -> Failure {
    let text = format!(
        "{} does not take {}",
        request.uri().path(),
        request.method()
    );
    Failure::request(StatusCode::METHOD_NOT_ALLOWED, "no-such-method", text)
}

/// One line of log per request.
async fn told(request: Request, next: Next) -> Response {
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let status = response.status();
    if status.is_server_error() {
        tracing::warn!(%method, path, status = status.as_u16(), "request failed");
    } else {
        tracing::debug!(%method, path, status = status.as_u16(), "request");
    }
    response
}
