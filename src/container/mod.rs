//! One container on one host: its record, its verbs, its shim.

pub mod init;
