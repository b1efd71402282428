//! Drives one `criu swrk` per request. Knows no container.
