//! Containers: make, look, start, signal, delete.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use schemars::JsonSchema;
use serde::Deserialize;

use super::types::{CreateRequest, KillRequest, Process, StopRequest};
use super::{Answer, Body, Handle, Options, Segment};
use crate::container;
use crate::daemon::DaemonError;
use crate::model::{ContainerStatus, Name};

/// The longest that a command may be given to end, in milliseconds.
const LONGEST_PATIENCE_MS: u64 = 3_600_000;

/// `GET /v1/containers`
pub async fn list(State(daemon): Handle) -> Answer<Json<Vec<ContainerStatus>>> {
    Ok(Json(daemon.containers.list().await?))
}

/// `POST /v1/containers`
pub async fn create(
    State(daemon): Handle,
    Body(request): Body<CreateRequest>,
) -> Answer<(StatusCode, Json<ContainerStatus>)> {
    check(&request)?;
    let say = |line: &str| tracing::info!("image: {line}");
    let status = daemon.containers.create(request, say).await?;
    Ok((StatusCode::CREATED, Json(status)))
}

fn check(request: &CreateRequest) -> Result<(), DaemonError> {
    let wrong = |field, problem: &str, remedy: &str| {
        Err(DaemonError::Field {
            field,
            problem: problem.to_owned(),
            remedy: remedy.to_owned(),
        })
    };
    match (&request.template, &request.image) {
        (None, None) => {
            let remedy = "name a template (`godwit template list`) or an image";
            return wrong(
                "template",
                "neither a template nor an image is given",
                remedy,
            );
        }
        (Some(_), Some(_)) => {
            let problem = "both a template and an image are given";
            return wrong("image", problem, "give one of them");
        }
        (None, Some(_)) if request.command.is_none() => {
            let problem = "an image has no command of its own";
            return wrong("command", problem, "give the command to run");
        }
        _ => {}
    }
    if request
        .command
        .as_ref()
        .is_some_and(|c| c.first().is_none_or(String::is_empty))
    {
        return wrong(
            "command",
            "it is empty",
            "give a program and its arguments, or leave it out",
        );
    }
    if request
        .env
        .iter()
        .any(|line| line.find('=').is_none_or(|at| at == 0))
    {
        return wrong("env", "a line is not KEY=value", "write each as KEY=value");
    }
    let nul = |text: &String| text.contains('\0');
    if request.command.iter().flatten().any(nul) || request.env.iter().any(nul) {
        return wrong(
            "command",
            "it or env contains a zero byte",
            "leave the zero byte out",
        );
    }
    Ok(())
}

/// `GET /v1/containers/{name}`
pub async fn one(
    State(daemon): Handle,
    Segment(name): Segment<Name>,
) -> Answer<Json<ContainerStatus>> {
    Ok(Json(daemon.containers.status(&name).await?))
}

/// `?force=`
#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DeleteOptions {
    #[serde(default)]
    force: bool,
}

/// `DELETE /v1/containers/{name}`
pub async fn delete(
    State(daemon): Handle,
    Segment(name): Segment<Name>,
    Options(options): Options<DeleteOptions>,
) -> Answer<StatusCode> {
    daemon.containers.delete(&name, options.force).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `POST /v1/containers/{name}/start`
pub async fn start(
    State(daemon): Handle,
    Segment(name): Segment<Name>,
) -> Answer<Json<ContainerStatus>> {
    Ok(Json(daemon.containers.start(&name).await?))
}

/// `POST /v1/containers/{name}/stop`
pub async fn stop(
    State(daemon): Handle,
    Segment(name): Segment<Name>,
    Body(request): Body<StopRequest>,
) -> Answer<Json<ContainerStatus>> {
    if request.patience_ms > LONGEST_PATIENCE_MS {
        return Err(DaemonError::Field {
            field: "patience_ms",
            problem: "it is longer than an hour".to_owned(),
            remedy: "give at most 3600000".to_owned(),
        }
        .into());
    }
    let patience = Duration::from_millis(request.patience_ms);
    Ok(Json(daemon.containers.stop(&name, patience).await?))
}

/// `POST /v1/containers/{name}/kill`
pub async fn kill(
    State(daemon): Handle,
    Segment(name): Segment<Name>,
    Body(request): Body<KillRequest>,
) -> Answer<StatusCode> {
    let signal = container::kill::signal_number(&request.signal).map_err(DaemonError::from)?;
    daemon.containers.kill(&name, signal, request.all).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /v1/containers/{name}/ps`
pub async fn ps(State(daemon): Handle, Segment(name): Segment<Name>) -> Answer<Json<Vec<Process>>> {
    Ok(Json(daemon.containers.ps(&name).await?))
}
