//! # Godwit
//!
//! A node runtime that runs isolated containers and moves them, running, to another host. This page is the map:
//! what the rooms are, which way they may look, and where the few things are that must be exactly right.
//!
//! ## Words
//!
//! | word | meaning, everywhere: code, documents, logs, command line |
//! |---|---|
//! | source, destination | the two hosts of a migration |
//! | round | one pass of pre-copy: send the pages that changed since the pass before |
//! | residual | what is still unsent when the container is frozen |
//! | gate | the container's bridge port: closed, no frame reaches or leaves it |
//! | blackout | from the freeze on the source to the first instruction on the destination |
//! | stall | what a client sees: the longest gap between two answers |
//! | handover | the one durable step after which the source may never resume |
//! | refusal | the destination says no before anything has happened |
//! | in doubt | the handover was sent, the answer is not known: nobody runs until the two have spoken |
//!
//! ## One binary, four roads
//!
//! `main.rs` decides before any thread exists: `godwit init` and `godwit shim` (hidden: a container's first process
//! and its keeper, which fork), `godwit daemon` (one per host), and the verbs, which are clients of the daemon; so is
//! the CNI plugin that an engine finds in it. One ELF file rules out that they are of different versions.
//!
//! ```text
//! people ─▶ cli ─▶ api (HTTP, unix socket) ─▶ daemon ─┬─▶ container ─▶ shim ─▶ init ─▶ the command
//!                                                     │                  └───▶ CRIU, for a restore
//!                               other daemons ◀─ peer ┴─▶ migration ─▶ checkpoint ─▶ CRIU, for a dump
//! ```
//!
//! ## Rooms
//!
//! | layer | room | purpose |
//! |---|---|---|
//! | ground | [`model`] | plain values: ids, amounts, specs, host facts, events, reports |
//! | ground | [`sys`] | the only unsafe code, one syscall family per file |
//! | rooms | [`oci`] | templates become a trusted `ContainerSpec` |
//! | rooms | [`rootfs`] | mount plan, overlay, pivot, devices, masked paths; the image store and how images are built |
//! | rooms | [`namespace`] | which namespaces, in which order |
//! | rooms | [`cgroup`] | cgroup v2: plan, apply, freezer |
//! | rooms | [`net`] | bridge, ports and their gate, addresses, announcements |
//! | rooms | [`security`] | capabilities, seccomp, limits |
//! | rooms | [`storage`] | files on the move: two passes, a total wire, a receiver beneath its root |
//! | rooms | [`criu`] | one `criu swrk` per request |
//! | rooms | [`memory`] | pages on the move: CRIU's page-server wire, frames, trackers, the page store |
//! | rooms | [`peer`] | the authenticated link between two daemons |
//! | domain | [`container`] | one container on one host: record, place, verbs, shim |
//! | domain | [`runtime`] | an OCI bundle becomes a container, and images, and back, without a daemon, as Podman and containerd ask for it |
//! | domain | [`checkpoint`] | a container becomes images and back, on one host |
//! | domain | [`migration`] | a container goes from this host to that one |
//! | edges | [`daemon`] | the long-running process; assembles the rooms |
//! | edges | [`api`] | HTTP and JSON: translation only |
//! | edges | [`metrics`] | listens to events, and tells Prometheus; nobody tells it anything |
//! | edges | [`cli`] | one verb per file |
//!
//! Arrows point from the edges to the ground, and rooms do not know each other; `tests/tidy.rs` has the exact
//! table and checks it. Files named `plan`, `policy`, `preflight`, `requests`, `state`, `wire`, `frame` or `codec`
//! think and do nothing else: no files, no clock, no sockets.
//!
//! Blocking rooms are synchronous. Async lives in [`peer`], [`api`], [`daemon`] and the message loops of
//! [`migration`]. The daemon never forks: delicate work starts this binary anew. No `setns` happens on a worker
//! thread of the runtime: a thread of its own, or a child, does it.
//!
//! ## What must be right
//!
//! - **Exactly one copy runs**, whatever dies when: the argument and its table are at the head of [`migration`],
//!   the line itself in `migration/source/blackout.rs`, and `tests/protocol` lets everything fail at every phase.
//! - **A dump that may still go either way**: [`checkpoint::Held`]. The cgroup is frozen inside CRIU's last
//!   notification, so the tasks stand still even if CRIU and this process die.
//! - **No page is ever a guess**: [`memory::PageStore::verify`] checks every page the dump listed before anything is
//!   restored; a page that is missing is an error and never a page of zeros. Memory that is brought behind a running
//!   container is the matter of [`memory::fill`], and of what kills it: its head has the argument. What of it is still
//!   on the source is that of [`migration::behind`].
//! - **Default deny between hosts**: [`peer`] pins certificates; bytes from a peer meet total decoders with bounded
//!   lengths, and paths from a peer are opened beneath a root.

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
pub mod runtime;

// Edges: processes, sockets, people.
pub mod api;
pub mod cli;
pub mod daemon;
pub mod metrics;
