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
mod ports;
mod stats;
mod templates;

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{delete, get, post};
use axum::{Json, Router};

use self::containers::DeleteOptions;
use self::logs::LogOptions;
use super::error::Failure;
use super::extract::{Body, Options, Segment};
use super::ndjson;
use super::openapi::{Kind, Route, Schema, schema};
use super::types;
use super::types::{
    BuildLine, Bundle, CreateRequest, EventLine, ExecLine, ExecRequest, JoinRequest, KillRequest,
    LeaseInfo, LogLine, MigrateAnswer, MigrateRequest, MigrationLine, MigrationStatus, PeerInfo,
    PortInfo, PortRequest, Process, ResolveRequest, StopRequest, TemplateInfo, TokenAnswer,
    TokenRequest,
};
use crate::daemon::Daemon;
use crate::model::{ContainerStatus, HostFacts, Usage};

/// What every route is given.
type Handle = State<Arc<Daemon>>;
/// What every route answers.
type Answer<T> = Result<T, Failure>;

/// The routes, each with what the document about them says: method, path, handler, its name, what it does, what it
/// answers, and, where there are, the body and the query it takes. Whatever is served is in it.
macro_rules! routes {
    ($($method:ident $path:literal $handler:path, $name:literal, $says:literal,
       $kind:ident $(<$answer:ty>)? $(, body $body:ty)? $(, query $query:ty)?;)*) => {
        /// Everything beneath `/v1`.
        pub fn all() -> Router<Arc<Daemon>> {
            Router::new()$(.route($path, $method($handler)))*
        }

        /// What there is to say about each.
        pub fn table() -> Vec<Route> {
            vec![$(Route {
                method: stringify!($method),
                path: $path,
                name: $name,
                says: $says,
                kind: Kind::$kind,
                answer: [$(schema::<$answer> as Schema)?].first().copied(),
                body: [$(schema::<$body> as Schema)?].first().copied(),
                query: [$(schema::<$query> as Schema)?].first().copied(),
            }),*]
        }
    };
}

routes! {
    get "/openapi.json" document, "openapi", "This document.", Json<serde_json::Value>;
    get "/host" host::facts, "host", "What this host is, and what it can.", Json<HostFacts>;
    get "/leases" host::leases, "leases", "The addresses in use, as far as this host knows.", Json<Vec<LeaseInfo>>;
    get "/containers" containers::list, "listContainers", "All containers.", Json<Vec<ContainerStatus>>;
    post "/containers" containers::create, "createContainer", "Makes a container, and starts it where that is asked for.",
        Created<ContainerStatus>, body CreateRequest;
    get "/containers/{name}" containers::one, "container", "One container.", Json<ContainerStatus>;
    delete "/containers/{name}" containers::delete, "deleteContainer", "Removes a container and all that it has.",
        Nothing, query DeleteOptions;
    post "/containers/{name}/start" containers::start, "startContainer", "Starts its command.", Json<ContainerStatus>;
    post "/containers/{name}/stop" containers::stop, "stopContainer",
        "Has its command end, and kills it where it does not.", Json<ContainerStatus>, body StopRequest;
    post "/containers/{name}/kill" containers::kill, "killContainer", "Sends it a signal.", Nothing, body KillRequest;
    get "/containers/{name}/ps" containers::ps, "processes", "Its processes.", Json<Vec<Process>>;
    get "/containers/{name}/stats" stats::one, "containerStats", "What it uses.", Json<Vec<Usage>>;
    post "/containers/{name}/exec" exec::exec, "exec",
        "Runs a command in it: its output as it comes, and how it ended.", Lines<ExecLine>, body ExecRequest;
    get "/containers/{name}/logs" logs::logs, "logs", "What it has printed.", Lines<LogLine>, query LogOptions;
    post "/containers/{name}/migrate" migrations::migrate, "migrate",
        "Moves it to another host, or tells what would prevent it.", Accepted<MigrateAnswer>, body MigrateRequest;
    get "/bundles" bundles::list, "listBundles", "Containers of OCI bundles.", Json<Vec<Bundle>>;
    get "/bundles/{id}" bundles::one, "bundle", "One container of an OCI bundle.", Json<Bundle>;
    get "/ports" ports::list, "listPorts", "Ports in network namespaces that others have made.", Json<Vec<PortInfo>>;
    post "/ports" ports::make, "makePort", "Connects a network namespace that somebody else has made.", Json<PortInfo>,
        body PortRequest;
    delete "/ports/{name}" ports::remove, "removePort", "Disconnects it again; what is not there is no failure.", Nothing;
    get "/migrations" migrations::list, "listMigrations", "The migrations that this host takes or took part in.",
        Json<Vec<MigrationStatus>>;
    get "/migrations/{id}" migrations::one, "migration", "How one stands, or was.", Json<MigrationStatus>;
    delete "/migrations/{id}" migrations::cancel, "cancelMigration",
        "Asks it to end with the container where it was.", Asked;
    get "/migrations/{id}/progress" migrations::progress, "migrationProgress",
        "How it goes on, until it has ended.", Lines<MigrationLine>;
    post "/migrations/{id}/resolve" migrations::resolve, "resolveMigration",
        "Decides one that is in doubt, after the other host has been fenced.", Nothing, body ResolveRequest;
    get "/stats" stats::all, "stats", "What all containers use.", Json<Vec<Usage>>;
    get "/metrics" metrics::metrics, "metrics", "The same, and what migrations were like, for Prometheus.", Text;
    get "/events" events::events, "events", "What happens from now on.", Lines<EventLine>;
    get "/templates" templates::list, "listTemplates", "The templates of this host.", Json<Vec<TemplateInfo>>;
    post "/templates/{name}/build" templates::build, "buildTemplate", "Builds its image, where there is none.",
        Lines<BuildLine>;
    get "/peers" peers::list, "listPeers", "The hosts that this one knows.", Json<Vec<PeerInfo>>;
    post "/peers/token" peers::token, "peerToken", "A token, with which one host may join this one.",
        Json<TokenAnswer>, body TokenRequest;
    post "/peers/join" peers::join, "joinPeer", "Joins another host with its token.", Json<PeerInfo>, body JoinRequest;
    delete "/peers/{name}" peers::remove, "removePeer", "Forgets a host.", Nothing;
}

/// `GET /v1/openapi.json`
async fn document() -> Json<serde_json::Value> {
    Json(super::openapi::document())
}
