//! Everything that comes in before the restore: data, and the marks between its parts.

use std::time::Instant;

use super::super::codec::{Kind, Numbered};
use super::super::error::MigrationError;
use super::super::hook::Hook;
use super::super::link::{Inbound, Link};
use super::super::message::{Message, Summary};
use super::super::movable::Arriving;
use super::super::stream::Intake;
use crate::model::{OpenStep, Phase, Side, Spans};

/// What is known when everything is here.
pub(super) struct Received {
    /// What it is to be checked against.
    pub(super) summary: Summary,
    /// When the source said that the container is frozen.
    pub(super) frozen: Instant,
}

/// Takes frames until the source has sent everything. Blocks; the destination's phases follow the marks.
pub(super) fn receive<A: Arriving>(
    link: &mut Link,
    arriving: &mut A,
    intake: &Intake,
    hook: &dyn Hook,
    spans: &Spans,
) -> Result<Received, MigrationError> {
    let outbox = link.outbox();
    let mut receiver = Receiver {
        arriving,
        intake,
        phase: Phase::Storage,
        rounds: 0,
        summary: None,
        frames: 0,
        spans,
        frozen: None,
        open: None,
    };
    let runtime = tokio::runtime::Handle::current();
    let reached = |phase| runtime.block_on(hook.reached(Side::Destination, phase));
    let say = |message: &Message, phase| {
        let lost = |_| MigrationError::LinkLost {
            phase,
            source: None,
        };
        outbox.say_blocking(message).map_err(lost)
    };
    reached(Phase::Storage);
    loop {
        let before = receiver.phase;
        let inbound = runtime.block_on(next(link, intake, before))?;
        match receiver.take(inbound)? {
            Step::Go => {}
            Step::Acknowledge { number, frames } => {
                runtime.block_on(everything(link, intake, frames, before))?;
                say(&Message::RoundAck { number }, before)?;
            }
            Step::Holding => say(&Message::Holding, before)?,
            Step::Complete { frames } => {
                runtime.block_on(everything(link, intake, frames, before))?;
                return Ok(Received {
                    summary: receiver.summary.take().unwrap_or_default(),
                    frozen: receiver.frozen.unwrap_or_else(Instant::now),
                });
            }
        }
        if receiver.phase != before {
            reached(receiver.phase);
        }
    }
}

/// The next thing that comes in, unless a stream of pages fails before.
async fn next(link: &mut Link, intake: &Intake, phase: Phase) -> Result<Inbound, MigrationError> {
    tokio::select! {
        inbound = link.receive(phase) => inbound.map_err(|e| e.in_phase(phase)),
        error = intake.failure() => Err(error),
    }
}

/// Waits until so many frames of pages are in the store, by whichever stream. The source waits too, and says nothing
/// meanwhile but that it gives up.
async fn everything(
    link: &mut Link,
    intake: &Intake,
    frames: u64,
    phase: Phase,
) -> Result<(), MigrationError> {
    tokio::select! {
        biased;
        all = intake.until(frames) => all,
        said = link.receive(phase) => match said.map_err(|e| e.in_phase(phase))? {
            Inbound::Message(Message::Cancel { why }) => Err(MigrationError::OtherSide { why }),
            Inbound::Message(message) => Err(MigrationError::unexpected(&message, phase)),
            Inbound::Data(frame) => Err(out_of_place(frame.kind, phase)),
        },
    }
}

fn out_of_place(kind: Kind, phase: Phase) -> MigrationError {
    let what = format!("a frame of {kind:?}");
    MigrationError::Unexpected { what, phase }
}

enum Step {
    Go,
    /// At once: its frames are kept.
    Holding,
    /// When so many frames of pages are in the store.
    Acknowledge {
        number: u32,
        frames: u64,
    },
    /// The same.
    Complete {
        frames: u64,
    },
}

struct Receiver<'a, A> {
    arriving: &'a mut A,
    intake: &'a Intake,
    phase: Phase,
    rounds: u32,
    summary: Option<Summary>,
    frames: u64,
    spans: &'a Spans,
    frozen: Option<Instant>,
    open: Option<OpenStep>,
}

impl<A: Arriving> Receiver<'_, A> {
    fn take(&mut self, inbound: Inbound) -> Result<Step, MigrationError> {
        let phase = self.phase;
        let local = |cause| MigrationError::local(phase, cause);
        match inbound {
            Inbound::Data(frame) => {
                if !fits(frame.kind, phase) {
                    return Err(out_of_place(frame.kind, phase));
                }
                if frame.kind == Kind::Pages {
                    let numbered = Numbered::decode(&frame.payload);
                    let numbered = numbered.map_err(|source| MigrationError::Codec { source })?;
                    self.intake.take(&numbered);
                } else {
                    self.arriving.take(frame).map_err(local)?;
                }
            }
            Inbound::Message(Message::Cancel { why }) => {
                return Err(MigrationError::OtherSide { why });
            }
            Inbound::Message(message) => return self.mark(message),
        }
        Ok(Step::Go)
    }

    fn mark(&mut self, message: Message) -> Result<Step, MigrationError> {
        let phase = self.phase;
        let local = |cause| MigrationError::local(phase, cause);
        match (phase, message) {
            (Phase::Storage, Message::ImageEnd) => self.arriving.image_end().map_err(local)?,
            (Phase::Storage, Message::StorageEnd) => {
                self.arriving.files_end().map_err(local)?;
                self.phase = Phase::Memory;
            }
            (Phase::Memory, Message::RoundEnd { number, frames }) if number == self.rounds => {
                self.rounds += 1;
                return Ok(Step::Acknowledge { number, frames });
            }
            (Phase::Memory, Message::Frozen) => {
                self.frozen = Some(Instant::now());
                let step = self.spans.begin("hold its frames");
                self.arriving.frozen();
                drop(step);
                self.open = Some(self.spans.begin("take images and pages"));
                self.phase = Phase::Dump;
                return Ok(Step::Holding);
            }
            (Phase::Dump, Message::GateClosed) => self.arriving.gate_closed(),
            (Phase::Dump, Message::DumpEnd { frames, summary }) => {
                self.summary = Some(summary);
                self.frames = frames;
                self.open = None;
                self.open = Some(self.spans.begin("take changed files"));
                self.phase = Phase::Residual;
            }
            (Phase::Residual, Message::ResidualEnd) => {
                self.arriving.files_end().map_err(local)?;
                self.open = None;
                let frames = self.frames;
                return Ok(Step::Complete { frames });
            }
            (_, message) => {
                let what = serde_json::to_string(&message).unwrap_or_default();
                return Err(MigrationError::Unexpected {
                    what: what.chars().take(200).collect(),
                    phase,
                });
            }
        }
        Ok(Step::Go)
    }
}

/// Which data has a place in which phase.
fn fits(kind: Kind, phase: Phase) -> bool {
    match kind {
        Kind::Control | Kind::Taken | Kind::Ask => false,
        Kind::Image => phase == Phase::Storage,
        Kind::Storage => matches!(phase, Phase::Storage | Phase::Residual),
        Kind::Copies => phase == Phase::Residual,
        Kind::Pages => matches!(phase, Phase::Memory | Phase::Dump),
        Kind::Dump => phase == Phase::Dump,
    }
}
