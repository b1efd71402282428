//! Files on the move: scan, compare, send, apply.

pub mod digest;

pub use digest::{DigestError, HOST_BOUND_XATTRS, digest};
