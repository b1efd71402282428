//! # Godwit
//!
//! A node runtime that runs isolated containers and moves them, running, to another host.

// Ground: everyone may use it; it uses nothing.
pub mod model;
#[allow(unsafe_code)]
pub mod sys;

// Rooms: one kernel facility or format each; they do not know each other.
pub mod cgroup;
pub mod criu;
pub mod memory;
pub mod namespace;
pub mod net;
pub mod oci;
pub mod peer;
pub mod rootfs;
pub mod security;
pub mod storage;

// Domain: what the product does.
pub mod checkpoint;
pub mod container;
pub mod migration;

// Edges: processes, sockets, people.
pub mod api;
pub mod cli;
pub mod daemon;
