//! A container ceases to exist.

use super::state::{Verb, allow};
use super::{ContainerError, Host, place, status};
use crate::model::Name;

/// Removes a container and everything of it. One that runs is refused, or with `force` killed first.
///
/// After a failure in the middle it can be called again: it does as much as it can, and the record goes last.
pub fn delete(host: &Host, name: &Name, force: bool) -> Result<(), ContainerError> {
    match status::look(host, name) {
        Ok((_, seen)) => allow(name, seen.state, Verb::Delete { force })?,
        // With force even what cannot be understood any more can be removed.
        Err(ContainerError::Record { .. }) if force => {}
        Err(error) => return Err(error),
    }
    place::remove(host, name)
}
