//! Files on the move: scan, compare, send, apply.
