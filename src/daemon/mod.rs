//! The long-running process of a host.
