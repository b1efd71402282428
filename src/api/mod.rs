//! HTTP and JSON over a unix socket: translation only.
//!
//! ```text
//! client ── request ──▶ server ── routes ──▶ daemon::Daemon
//!        ◀─ JSON, or one JSON value a line while something goes on ─
//! ```
//!
//! **Invariant:** no decision is taken here. A route parses, asks the daemon, and prints; the only serde of
//! the API is in [`types`].
//!
//! **Invariant:** every answer that is not a success is an [`types::ApiError`], whatever went wrong.

pub mod client;
pub mod error;
mod extract;
mod ndjson;
pub mod openapi;
mod routes;
pub mod server;
pub mod types;

pub use client::{Client, ClientError};
