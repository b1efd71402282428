//! Migrations: begin, look, cancel, resolve.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use tokio::sync::broadcast;

use super::ndjson::{self, Lines};
use super::types::{
    MigrateAnswer, MigrateRequest, MigrationLine, MigrationState, MigrationStatus, ResolveRequest,
};
use super::{Answer, Body, Failure, Handle, Segment};
use crate::daemon::{Daemon, DaemonError, Migrations};
use crate::model::{Event, EventKind, MigrationId, Name};

/// How often a migration is looked at where no event came: events may be lost to a slow reader.
const LOOK: Duration = Duration::from_secs(1);

/// `POST /v1/containers/{name}/migrate`
pub async fn migrate(
    State(daemon): Handle,
    Segment(name): Segment<Name>,
    Body(request): Body<MigrateRequest>,
) -> Answer<Response> {
    request.options.check().map_err(|e| {
        Failure::request(StatusCode::BAD_REQUEST, "bad-field", e.problem)
            .field(format!("options.{}", e.field))
            .remedy(e.remedy)
    })?;
    let migrations = &daemon.outside()?.migrations;
    migrations.may(&name).await?;
    if request.dry_run {
        let findings = migrations
            .dry_run(&name, &request.to, request.options)
            .await?;
        return Ok(Json(MigrateAnswer::DryRun { findings }).into_response());
    }
    let id = migrations
        .start(&name, &request.to, request.options)
        .await?;
    Ok((StatusCode::ACCEPTED, Json(MigrateAnswer::Started { id })).into_response())
}

/// `GET /v1/migrations`
pub async fn list(State(daemon): Handle) -> Answer<Json<Vec<MigrationStatus>>> {
    Ok(Json(daemon.outside()?.migrations.list()))
}

fn find(migrations: &Migrations, id: MigrationId) -> Result<MigrationStatus, DaemonError> {
    migrations
        .get(id)
        .ok_or(DaemonError::NoSuchMigration { id })
}

/// `GET /v1/migrations/{id}`
pub async fn one(
    State(daemon): Handle,
    Segment(id): Segment<MigrationId>,
) -> Answer<Json<MigrationStatus>> {
    Ok(Json(find(&daemon.outside()?.migrations, id)?))
}

/// `DELETE /v1/migrations/{id}`: asks it to end; its report tells how it ended.
pub async fn cancel(
    State(daemon): Handle,
    Segment(id): Segment<MigrationId>,
) -> Answer<StatusCode> {
    daemon.outside()?.migrations.cancel(id)?;
    Ok(StatusCode::ACCEPTED)
}

/// `POST /v1/migrations/{id}/resolve`
pub async fn resolve(
    State(daemon): Handle,
    Segment(id): Segment<MigrationId>,
    Body(request): Body<ResolveRequest>,
) -> Answer<StatusCode> {
    daemon
        .outside()?
        .migrations
        .resolve(id, request.keep)
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/migrations/{id}/progress`: a line per step, then the report.
pub async fn progress(
    State(daemon): Handle,
    Segment(id): Segment<MigrationId>,
) -> Answer<Response> {
    // Listen first, look then: nothing falls between the two.
    let listener = daemon.events.subscribe();
    find(&daemon.outside()?.migrations, id)?;
    let (lines, response) = ndjson::lines();
    tokio::spawn(follow(daemon, id, listener, lines));
    Ok(response)
}

async fn follow(
    daemon: Arc<Daemon>,
    id: MigrationId,
    mut listener: broadcast::Receiver<Event>,
    lines: Lines<MigrationLine>,
) {
    let mut last = None;
    loop {
        let (line, ended) = look(&daemon, id);
        if line.is_some() && line != last {
            last.clone_from(&line);
            if let Some(line) = line
                && lines.send(line).await.is_err()
            {
                return;
            }
        }
        if ended {
            return;
        }
        tokio::select! {
            () = about(&mut listener, id) => {}
            () = tokio::time::sleep(LOOK) => {}
            () = lines.closed() => return,
        }
    }
}

/// Where it stands, as a line; and whether that is the last one.
fn look(daemon: &Daemon, id: MigrationId) -> (Option<MigrationLine>, bool) {
    let status = daemon
        .outside
        .as_ref()
        .and_then(|outside| outside.migrations.get(id));
    let gone = |why: String| (Some(MigrationLine::Gone { why }), true);
    let Some(status) = status else {
        return gone("it is no longer known on this host".to_owned());
    };
    match (status.report, status.state) {
        (Some(report), _) => (Some(MigrationLine::Report(Box::new(report))), true),
        (None, MigrationState::UnderWay | MigrationState::Filling) => {
            (status.progress.map(MigrationLine::Progress), false)
        }
        // A daemon that is to end does not wait for what may take days.
        (None, MigrationState::InDoubt | MigrationState::Serving) => {
            let over = daemon.stopping.is_cancelled();
            (status.progress.map(MigrationLine::Progress), over)
        }
        (None, MigrationState::Lost) => gone(format!(
            "it was lost: {}; its report is on {}",
            status.why.unwrap_or_default(),
            status.source
        )),
        (None, MigrationState::Moved) => gone(format!(
            "it moved to {}; its report is on {}",
            status.destination, status.source
        )),
        (None, MigrationState::Stayed) => gone(format!(
            "it stayed on {0}; its report is on {0}",
            status.source
        )),
    }
}

/// Resolves at the next event of this migration.
async fn about(listener: &mut broadcast::Receiver<Event>, id: MigrationId) {
    loop {
        match listener.recv().await {
            Ok(event) => match event.kind {
                EventKind::Migration { id: other, .. } if other == id => return,
                EventKind::MigrationEnded { report } if report.id == id => return,
                _ => {}
            },
            Err(broadcast::error::RecvError::Lagged(_)) => return,
            Err(broadcast::error::RecvError::Closed) => std::future::pending().await,
        }
    }
}
