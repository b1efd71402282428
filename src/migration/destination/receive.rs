//! Everything that comes in before the restore: data, and the marks between its parts.

use std::time::Instant;

use super::super::codec::Kind;
use super::super::error::MigrationError;
use super::super::hook::Hook;
use super::super::link::{Inbound, Link};
use super::super::message::{Message, Summary};
use super::super::movable::Arriving;
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
    hook: &dyn Hook,
    spans: &Spans,
) -> Result<Received, MigrationError> {
    let outbox = link.outbox();
    let mut receiver = Receiver {
        arriving,
        phase: Phase::Storage,
        rounds: 0,
        summary: None,
        spans,
        frozen: None,
        open: None,
    };
    let runtime = tokio::runtime::Handle::current();
    let reached = |phase| runtime.block_on(hook.reached(Side::Destination, phase));
    reached(Phase::Storage);
    loop {
        let before = receiver.phase;
        let inbound = link
            .receive_blocking(before)
            .map_err(|e| e.in_phase(before))?;
        match receiver.take(inbound)? {
            Step::Go => {}
            Step::Reply(message) => {
                let lost = |_| MigrationError::LinkLost {
                    phase: before,
                    source: None,
                };
                outbox.say_blocking(&message).map_err(lost)?;
            }
            Step::Complete => {
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

enum Step {
    Go,
    Reply(Message),
    Complete,
}

struct Receiver<'a, A> {
    arriving: &'a mut A,
    phase: Phase,
    rounds: u32,
    summary: Option<Summary>,
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
                    return Err(MigrationError::Unexpected {
                        what: format!("a frame of {:?}", frame.kind),
                        phase,
                    });
                }
                self.arriving.take(frame).map_err(local)?;
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
            (Phase::Memory, Message::RoundEnd { number }) if number == self.rounds => {
                self.rounds += 1;
                return Ok(Step::Reply(Message::RoundAck { number }));
            }
            (Phase::Memory, Message::Frozen) => {
                self.frozen = Some(Instant::now());
                self.arriving.frozen();
                self.open = Some(self.spans.begin("take images and pages"));
                self.phase = Phase::Dump;
            }
            (Phase::Dump, Message::DumpEnd(summary)) => {
                self.summary = Some(summary);
                self.open = None;
                self.open = Some(self.spans.begin("take changed files"));
                self.phase = Phase::Residual;
            }
            (Phase::Residual, Message::ResidualEnd) => {
                self.arriving.files_end().map_err(local)?;
                self.open = None;
                return Ok(Step::Complete);
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
        Kind::Control => false,
        Kind::Image => phase == Phase::Storage,
        Kind::Storage => matches!(phase, Phase::Storage | Phase::Residual),
        Kind::Pages => matches!(phase, Phase::Memory | Phase::Dump),
        Kind::Dump => phase == Phase::Dump,
    }
}
