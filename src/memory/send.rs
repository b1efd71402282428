//! Pages become frames: zeros and what has not changed become marks, the rest runs.

use std::io;

use super::MemoryError;
use super::frame::{Encoder, MARK_PAGES, RUN_PAGES};
use super::space::{Entry, Space};
use super::tracker::Seen;
use crate::model::{Bytes, PAGE_SIZE, Pages};

/// Where frames go. An error ends the round or the dump that makes them.
pub type Out<'a> = dyn FnMut(Vec<u8>) -> io::Result<()> + Send + 'a;

/// What a sender has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Pages whose bytes went out.
    pub pages: Pages,
    /// Pages told to be zero.
    pub zero: Pages,
    /// Pages told to be unchanged.
    pub unchanged: Pages,
    /// Bytes of frames.
    pub wire: Bytes,
}

/// Makes frames of pages and hands them on.
///
/// Marks are held back until their run ends; [`flush`](Self::flush) ends it.
pub struct Sender<'a> {
    encoder: Encoder,
    out: &'a mut Out<'a>,
    sent: Sent,
    mark: Option<Mark>,
}

impl std::fmt::Debug for Sender<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sender")
            .field("sent", &self.sent)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Clone, Copy)]
struct Mark {
    seen: Seen,
    space: Space,
    vaddr: u64,
    pages: u64,
}

impl<'a> Sender<'a> {
    /// A sender that compresses at a zstd level; 0 is not at all.
    pub fn new(level: i32, out: &'a mut Out<'a>) -> Result<Self, MemoryError> {
        Ok(Self {
            encoder: Encoder::new(level)?,
            out,
            sent: Sent::default(),
            mark: None,
        })
    }

    /// What has been sent.
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Sends what of these pages is news, as `seen` finds each; what a page is found to be is told once per page,
    /// in order.
    pub fn pages(
        &mut self,
        space: Space,
        vaddr: u64,
        bytes: &[u8],
        seen: &mut dyn FnMut(u64, &[u8]) -> Seen,
    ) -> Result<(), MemoryError> {
        let page = PAGE_SIZE as usize;
        // The changed pages before the current one that are not sent yet.
        let mut from = 0;
        for (number, content) in bytes.chunks_exact(page).enumerate() {
            let at = vaddr + (number * page) as u64;
            let found = seen(at, content);
            if found == Seen::Changed {
                continue;
            }
            self.run(space, vaddr, bytes, from, number)?;
            from = number + 1;
            self.mark(found, space, at)?;
        }
        self.run(space, vaddr, bytes, from, bytes.len() / page)
    }

    /// Sends the list of a space's pages.
    pub fn list(&mut self, space: Space, entries: &[Entry]) -> Result<(), MemoryError> {
        self.flush()?;
        for frame in self.encoder.list(space, entries) {
            self.send(frame)?;
        }
        Ok(())
    }

    /// Sends the mark that is held back.
    pub fn flush(&mut self) -> Result<(), MemoryError> {
        let Some(mark) = self.mark.take() else {
            return Ok(());
        };
        let frame = match mark.seen {
            Seen::Zero => {
                self.sent.zero += Pages(mark.pages);
                self.encoder.zero(mark.space, mark.vaddr, mark.pages)
            }
            _ => {
                self.sent.unchanged += Pages(mark.pages);
                self.encoder.unchanged(mark.space, mark.vaddr, mark.pages)
            }
        };
        self.send(frame)
    }

    /// The pages `from..to` of `bytes` go out.
    fn run(
        &mut self,
        space: Space,
        vaddr: u64,
        bytes: &[u8],
        from: usize,
        to: usize,
    ) -> Result<(), MemoryError> {
        let most = RUN_PAGES as usize;
        for first in (from..to).step_by(most) {
            let end = to.min(first + most);
            let part = &bytes[first * PAGE_SIZE as usize..end * PAGE_SIZE as usize];
            let at = vaddr + first as u64 * PAGE_SIZE;
            let frame = self.encoder.pages(space, at, part)?;
            self.sent.pages += Pages((end - first) as u64);
            self.send(frame)?;
        }
        Ok(())
    }

    fn mark(&mut self, seen: Seen, space: Space, vaddr: u64) -> Result<(), MemoryError> {
        // What was sent before, unasked: the store has it, nothing needs to be told.
        if seen == Seen::Known {
            return Ok(());
        }
        if let Some(mark) = &mut self.mark {
            let next = mark.vaddr + mark.pages * PAGE_SIZE;
            if (mark.seen, mark.space, next) == (seen, space, vaddr) && mark.pages < MARK_PAGES {
                mark.pages += 1;
                return Ok(());
            }
        }
        self.flush()?;
        self.mark = Some(Mark {
            seen,
            space,
            vaddr,
            pages: 1,
        });
        Ok(())
    }

    fn send(&mut self, frame: Vec<u8>) -> Result<(), MemoryError> {
        self.sent.wire += Bytes(frame.len() as u64);
        (self.out)(frame).map_err(|source| MemoryError::Send { source })
    }
}
