//! One verb per file: asks the daemon, prints, exits.
