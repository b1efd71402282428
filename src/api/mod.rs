//! HTTP and JSON over a unix socket: translation only.
