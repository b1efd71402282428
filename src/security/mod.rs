//! Capabilities, seccomp profile, rlimits: what is taken away, and when.
