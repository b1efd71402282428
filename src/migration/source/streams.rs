//! Pages get connections of their own.

use super::super::error::MigrationError;
use super::super::stream::{PATIENCE, StreamOffer, Streams, Way};
use super::run::Run;

impl Run {
    /// Pages have streams of their own, where both hosts can do that.
    pub(super) async fn open_streams(
        &mut self,
        offer: Option<StreamOffer>,
    ) -> Result<(), MigrationError> {
        let (Some(offer), Some(more)) = (offer, self.services.streams.clone()) else {
            return Ok(());
        };
        let way = Way {
            dial: more.dial,
            peer: self.entry.peer.clone(),
            migration: self.entry.id,
            offer,
            patience: PATIENCE,
        };
        let phase = self.timeline.phase();
        let opened = tokio::select! {
            opened = Streams::open(way, more.count, self.outbox.wire()) => opened,
            () = self.services.cancel.cancelled() => return Err(MigrationError::Cancelled { phase }),
        };
        if let Some((streams, queue)) = opened {
            self.outbox.use_streams(queue);
            self.streams = Some(streams);
        }
        Ok(())
    }
}
