//! The first words of a source.

use super::super::error::MigrationError;
use super::super::link::Link;
use super::super::message::{Message, NEWEST_VERSION, OLDEST_VERSION, Purpose};
use crate::model::{MigrationId, Phase};

/// Both speak one version of the protocol.
pub(super) async fn negotiate(
    link: &mut Link,
    migration: MigrationId,
    purpose: Purpose,
) -> Result<(), MigrationError> {
    let phase = Phase::Negotiate;
    let hello = Message::Hello {
        oldest: OLDEST_VERSION,
        newest: NEWEST_VERSION,
        migration,
        purpose,
    };
    link.say(&hello, phase).await?;
    match link.receive_message(phase).await? {
        Message::Welcome { .. } => Ok(()),
        Message::Refusal { findings } => Err(MigrationError::Refused { findings }),
        Message::Failed { why } => Err(MigrationError::OtherSide { why }),
        other => Err(MigrationError::unexpected(&other, phase)),
    }
}
