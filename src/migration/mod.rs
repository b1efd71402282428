//! A container goes from this host to that one.
