//! The authenticated link between two daemons.
