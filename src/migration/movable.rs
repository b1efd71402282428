//! How a migration sees a container: through these traits and nothing else.
//!
//! All methods block; the message loops run them on threads of their own. What a half-moved container may
//! still do is in its type: [`Movable`] runs; [`Held`] is frozen and *resumes when dropped*; [`HandedOver`]
//! is frozen and can only be settled, or resumed on the destination's durable word that it never ran.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::model::{Finding, Generation, Pages, Rate, RestoreChoice, Step, TrackerChoice};

use super::behind::{Later, Remainder};
use super::codec::Frame;
use super::error::Cause;
use super::link::Outbox;
use super::message::{Offer, Summary};
use super::stream::TakePages;

/// What a pre-copy round did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct RoundStats {
    /// Pages looked at.
    pub scanned: Pages,
    /// Pages sent.
    pub sent: Pages,
}

/// What was left behind of a container, and how fast it may be fetched.
pub struct Left {
    /// The pages.
    pub later: Arc<dyn Later>,
    /// At most so many bytes per second.
    pub rate: Option<Rate>,
}

/// Why a restored container does not run.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// It has not executed a single instruction here, and cannot.
    #[error("the restored container never ran")]
    NeverRan(#[source] Cause),
    /// It has run here, or may have: its source copy is stale.
    #[error("the restored container ran and is gone")]
    HasRun(#[source] Cause),
}

/// A container that runs on this host and may leave it.
pub trait Movable: Send + 'static {
    /// What it becomes when frozen.
    type Held: Held;

    /// What the destination must know. Changes nothing.
    fn offer(&mut self) -> Result<Offer, Cause>;

    /// What on this host would prevent the migration. Changes nothing.
    fn findings(&mut self) -> Result<Vec<Finding>, Cause>;

    /// Sends the image's files.
    fn send_image(&mut self, outbox: &Outbox) -> Result<(), Cause>;

    /// Sends the files of the upper layer, while the container writes to them.
    fn send_files(&mut self, outbox: &Outbox) -> Result<(), Cause>;

    /// Whether this host can copy memory while the container runs.
    fn can_precopy(&self) -> bool;

    /// How changed pages are found, for the report. Never [`TrackerChoice::Auto`].
    fn tracker(&self) -> TrackerChoice {
        TrackerChoice::Hash
    }

    /// One round: sends the pages that are new or changed since the round before. Never freezes.
    fn round(&mut self, number: u32, outbox: &Outbox) -> Result<RoundStats, Cause>;

    /// How many pages have changed since the last round, where the tracker can count them without sending them.
    fn dirty_now(&mut self) -> Option<Pages> {
        None
    }

    /// Gives the container this share of the processor time it uses now, in percent; none: all that its limits
    /// allow. False: this host cannot do that.
    ///
    /// Whoever throttles takes it back, also before the freeze; a daemon that dies meanwhile has its successor take
    /// it back with [`Held::resume`]. So an implementation must take it back in [`Self::freeze`]'s failure,
    /// [`Held::resume`] and [`HandedOver::take_back`].
    fn throttle(&mut self, _percent: Option<u32>) -> Result<bool, Cause> {
        Ok(false)
    }

    /// What the blackout costs besides the pages that are still to be sent.
    fn fixed_blackout(&self) -> Duration;

    /// Why a part of its memory cannot be left behind when it is frozen ([`Held::leave_behind`]); none: it can.
    fn cannot_leave_behind(&self) -> Option<String> {
        Some("it is not one whose memory can be told apart".to_owned())
    }

    /// Freezes. Its network gate stays open: what reaches it waits in its sockets. On failure it runs as before.
    fn freeze(self) -> Result<Self::Held, Cause>;
}

/// A container that is frozen on this host. **Dropping it resumes it**, its network gate open.
pub trait Held: Send + 'static {
    /// What it becomes when handed over.
    type HandedOver: HandedOver;

    /// Before everything else: of what is unsent of its memory [`Self::dump`] sends only what cannot come later, and
    /// tells in its summary how much does.
    fn leave_behind(&mut self) {}

    /// Finds out what of its memory is unsent. Before [`Self::close_gate`], while the destination gets ready to keep its
    /// frames.
    fn look(&mut self) -> Result<(), Cause>;

    /// Closes its network gate: from now on no frame reaches it, and its sockets are what they will be elsewhere. It may
    /// run for a moment meanwhile, for what only it can bring to an end; what [`Self::look`] has found is found anew
    /// then. What of its memory must be sent before the dump is sent here.
    fn close_gate(&mut self, outbox: &Outbox) -> Result<(), Cause>;

    /// Its memory, as [`HandedOver::remainder`]: to be read after [`Self::dump`], and not after [`Self::resume`].
    fn remainder(&self) -> Option<Arc<dyn Remainder>> {
        None
    }

    /// Dumps it, after [`Self::look`] and [`Self::close_gate`]: sends pages and images. Afterwards it stays frozen
    /// whatever dies.
    fn dump(&mut self, outbox: &Outbox) -> Result<Summary, Cause>;

    /// Sends the files that changed since [`Movable::send_files`].
    fn send_changes(&mut self, outbox: &Outbox) -> Result<(), Cause>;

    /// The steps that were noted since this was asked last, the freeze's among them: where the blackout goes.
    fn steps(&mut self) -> Vec<Step> {
        Vec::new()
    }

    /// Thaws it and opens the gate again, and says what went wrong with that; idempotent.
    fn resume(self) -> Result<(), Cause>;

    /// To be called after the journal says `HandedOver`: from now on dropping it does nothing.
    fn hand_over(self) -> Self::HandedOver;
}

/// The frozen copy of a container that was handed over. Dropping it does nothing.
pub trait HandedOver: Send + 'static {
    /// Its memory, to be read for as long as the copy is there; none where nothing of it can have been left behind.
    fn remainder(&self) -> Option<Arc<dyn Remainder>> {
        None
    }

    /// The container runs at the destination: kill this copy, free everything.
    fn settle(self) -> Result<(), Cause>;

    /// The destination said durably that it never ran and never will, or a person has fenced it: thaw.
    fn take_back(self) -> Result<(), Cause>;
}

/// A host that containers may come to.
pub trait Destination: Send + Sync + 'static {
    /// A container on its way in.
    type Arriving: Arriving;

    /// What would prevent the migration. Changes nothing.
    fn findings(&self, offer: &Offer) -> Result<Vec<Finding>, Cause>;

    /// Sets name, address and a place aside. On failure nothing is left behind.
    fn reserve(&self, offer: &Offer) -> Result<Self::Arriving, Cause>;
}

/// A container of which parts are here. It runs elsewhere; dropping it discards the parts.
pub trait Arriving: Send + 'static {
    /// What it becomes when restored.
    type Restored: Restored;

    /// Whether the image's files must be sent.
    fn needs_image(&self) -> bool;

    /// How its memory will come back. Never [`RestoreChoice::Auto`].
    fn way(&self) -> RestoreChoice {
        RestoreChoice::Eager
    }

    /// Whether a part of its memory may be left behind.
    fn takes_later(&self) -> bool {
        false
    }

    /// What takes the frames of pages, from several threads at once. All of them are here, and nobody uses it any more,
    /// when [`Self::restore`] or [`Self::discard`] is called.
    fn pages(&self) -> Result<Arc<dyn TakePages>, Cause>;

    /// Takes a frame of data, but for pages.
    fn take(&mut self, frame: Frame) -> Result<(), Cause>;

    /// All files of the image are here.
    fn image_end(&mut self) -> Result<(), Cause>;

    /// All files of a pass are here.
    fn files_end(&mut self) -> Result<(), Cause>;

    /// The container is frozen on its source: what is sent to it from now on is for this host to keep. A host that
    /// cannot do so loses frames, which is no failure.
    fn frozen(&mut self);

    /// Its source's gate is closed: frames that were still led there have no other place than this any more.
    fn gate_closed(&mut self);

    /// Checks that everything is here, but for what was left behind, which is returned: it is wanted from now on.
    fn complete(&mut self, _summary: &Summary) -> Result<Option<Left>, Cause> {
        Ok(None)
    }

    /// Restores it after [`Self::complete`], held before its first instruction. On failure everything is discarded.
    fn restore(self, summary: &Summary) -> Result<Self::Restored, Cause>;

    /// Removes everything, and says what went wrong with that.
    fn discard(self) -> Result<(), Cause>;
}

/// A container that is restored here and held. Dropping it does nothing: only the source's word, or its
/// silence and a person's, decide what becomes of it.
pub trait Restored: Send + 'static {
    /// To be called after the journal says `Accepted`: lets it run under this generation, opens the gate,
    /// announces it, and then makes its files durable. Idempotent; restores again from the images when the held
    /// copy has died. Returns the moment from which it ran; it is reachable from then on.
    fn run(&mut self, generation: Generation) -> Result<Instant, RunError>;

    /// The steps that were noted since this was asked last, those of the arrival among them: where the blackout goes.
    fn steps(&mut self) -> Vec<Step> {
        Vec::new()
    }

    /// How its memory comes back. Never [`RestoreChoice::Auto`].
    fn way(&self) -> RestoreChoice {
        RestoreChoice::Eager
    }

    /// What [`Arriving::complete`] has returned, also after a restart of the daemon. It works without this.
    fn later(&mut self) -> Result<Option<Left>, Cause> {
        Ok(None)
    }

    /// It runs: frees the images.
    fn settle(self) -> Result<(), Cause>;

    /// It runs on the source: removes everything.
    fn discard(self) -> Result<(), Cause>;
}
