//! Pages become frames: marks for what has not changed, batches of pages for the pool.

use std::io;
use std::ops::Range;
use std::sync::mpsc::{self, Receiver, TryRecvError};
use std::time::Instant;

use super::MemoryError;
use super::frame::{self, MARK_PAGES};
use super::pack::{Batch, Done};
use super::pool::Pool;
use super::space::{Entry, Space};
use super::tracker::Seen;
use crate::model::{Bytes, PAGE_SIZE, Pages};

/// Where batches of frames go. An error ends the round or the dump that makes them.
pub type Out<'a> = dyn FnMut(Vec<u8>) -> io::Result<()> + Send + 'a;

/// What a sender has sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sent {
    /// Pages whose bytes went out.
    pub pages: Pages,
    /// Those of them of which only what had changed did.
    pub changed: Pages,
    /// Pages told to be zero.
    pub zero: Pages,
    /// Pages told to be unchanged.
    pub unchanged: Pages,
    /// Pages told to come later.
    pub behind: Pages,
    /// Bytes of frames.
    pub wire: Bytes,
}

impl Sent {
    /// This and what another sender has sent.
    #[must_use]
    pub fn with(self, other: Self) -> Self {
        Self {
            pages: self.pages + other.pages,
            changed: self.changed + other.changed,
            zero: self.zero + other.zero,
            unchanged: self.unchanged + other.unchanged,
            behind: self.behind + other.behind,
            wire: self.wire + other.wire,
        }
    }
}

/// Makes frames of the pages of one round, or of the dump, and hands them on.
///
/// What was given to it is on its way only after [`flush`](Self::flush), in any order.
pub struct Sender<'a> {
    pool: &'a Pool,
    out: &'a mut Out<'a>,
    sent: Sent,
    mark: Option<Mark>,
    batch: Batch,
    reply: mpsc::Sender<Result<Done, MemoryError>>,
    packed: Receiver<Result<Done, MemoryError>>,
    /// Batches that the pool has.
    away: usize,
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
    /// A sender for a round, whose pages `pool` packs.
    pub fn new(pool: &'a Pool, out: &'a mut Out<'a>) -> Self {
        let (reply, packed) = mpsc::channel();
        pool.level().begin();
        Self {
            batch: pool.batch(),
            pool,
            out,
            sent: Sent::default(),
            mark: None,
            reply,
            packed,
            away: 0,
        }
    }

    /// What has been sent; of pages that are on their way only after [`flush`](Self::flush).
    pub fn sent(&self) -> Sent {
        self.sent
    }

    /// Sends what of these pages is news, as `seen` finds each; what a page is found to be is told once per page,
    /// in order. Of what is said to have changed, pages that are all zero need not be told apart.
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

    /// As [`pages`](Self::pages), of what `read` appends, which is asked for `wanted` bytes or fewer. How many bytes that
    /// were, in whole pages: none where the first of them could not be read.
    pub fn read(
        &mut self,
        space: Space,
        vaddr: u64,
        wanted: usize,
        read: &mut dyn FnMut(usize, &mut Vec<u8>) -> usize,
        seen: &mut dyn FnMut(u64, &[u8]) -> Seen,
    ) -> Result<usize, MemoryError> {
        let draft = loop {
            match self.batch.draft(space, vaddr, wanted, read) {
                Some(draft) => break draft,
                None => self.dispatch()?,
            }
        };
        let pages = self.batch.drafted(&draft);
        let length = pages.len();
        let each = (vaddr..).step_by(PAGE_SIZE as usize);
        let found = each.zip(pages.chunks_exact(PAGE_SIZE as usize));
        let found: Vec<Seen> = found.map(|(at, page)| seen(at, page)).collect();
        // Most often it is one or the other throughout, and nothing is copied.
        if length > 0 && found.iter().all(|seen| *seen == Seen::Changed) {
            self.batch.keep(&draft);
        } else if found.contains(&Seen::Changed) {
            let pages = pages.to_vec();
            self.batch.discard(&draft);
            let mut found = found.into_iter();
            let mut again = |_: u64, _: &[u8]| found.next().unwrap_or(Seen::Changed);
            self.pages(space, vaddr, &pages, &mut again)?;
        } else {
            self.batch.discard(&draft);
            for (seen, at) in found.into_iter().zip((vaddr..).step_by(PAGE_SIZE as usize)) {
                self.mark(seen, space, at)?;
            }
        }
        Ok(length)
    }

    /// Says of these pages that they come later.
    pub fn behind(&mut self, space: Space, range: Range<u64>) -> Result<(), MemoryError> {
        let pages = range.step_by(PAGE_SIZE as usize);
        pages
            .into_iter()
            .try_for_each(|vaddr| self.mark(Seen::Behind, space, vaddr))
    }

    /// Sends the list of a space's pages.
    pub fn list(&mut self, space: Space, entries: &[Entry]) -> Result<(), MemoryError> {
        self.flush()?;
        for frame in frame::list(space, entries) {
            self.send(frame)?;
        }
        Ok(())
    }

    /// Sends what is held back, and waits until everything is handed on.
    pub fn flush(&mut self) -> Result<(), MemoryError> {
        self.end_mark()?;
        if !self.batch.is_empty() {
            self.dispatch()?;
        }
        while self.away > 0 {
            self.hand_on_next()?;
        }
        Ok(())
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
        let (mut at, end) = (from * PAGE_SIZE as usize, to * PAGE_SIZE as usize);
        while at < end {
            let taken = self.batch.take(space, vaddr + at as u64, &bytes[at..end]);
            if taken == 0 {
                self.dispatch()?;
            }
            at += taken;
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
        self.end_mark()?;
        self.mark = Some(Mark {
            seen,
            space,
            vaddr,
            pages: 1,
        });
        Ok(())
    }

    /// The mark that is held back joins the batch.
    fn end_mark(&mut self) -> Result<(), MemoryError> {
        let Some(mark) = self.mark.take() else {
            return Ok(());
        };
        let frame = match mark.seen {
            Seen::Zero => {
                self.sent.zero += Pages(mark.pages);
                let copies = self.pool.copies();
                copies.forget(mark.space, mark.vaddr, mark.pages);
                frame::zero(mark.space, mark.vaddr, mark.pages)
            }
            Seen::Behind => {
                self.sent.behind += Pages(mark.pages);
                // The store drops what it has of them.
                let copies = self.pool.copies();
                copies.forget(mark.space, mark.vaddr, mark.pages);
                frame::behind(mark.space, mark.vaddr, mark.pages)
            }
            _ => {
                self.sent.unchanged += Pages(mark.pages);
                frame::unchanged(mark.space, mark.vaddr, mark.pages)
            }
        };
        if !self.batch.mark(&frame) {
            self.dispatch()?;
            self.batch.mark(&frame);
        }
        Ok(())
    }

    /// Gives the batch to the pool, and hands on what comes out of it meanwhile.
    fn dispatch(&mut self) -> Result<(), MemoryError> {
        while self.away >= self.pool.most() {
            self.hand_on_next()?;
        }
        let batch = std::mem::replace(&mut self.batch, self.pool.batch());
        self.pool.pack(batch, self.reply.clone());
        self.away += 1;
        loop {
            match self.packed.try_recv() {
                Ok(done) => self.hand_on(done)?,
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return Ok(()),
            }
        }
    }

    /// Waits for the next batch and hands it on.
    fn hand_on_next(&mut self) -> Result<(), MemoryError> {
        let done = self.packed.recv().unwrap_or(Err(MemoryError::WorkerLost));
        self.hand_on(done)
    }

    fn hand_on(&mut self, done: Result<Done, MemoryError>) -> Result<(), MemoryError> {
        self.away -= 1;
        let done = done?;
        self.sent.pages += done.pages;
        self.sent.changed += done.changed;
        self.sent.zero += done.zero;
        self.send(done.bytes)
    }

    fn send(&mut self, batch: Vec<u8>) -> Result<(), MemoryError> {
        let length = batch.len();
        let begin = Instant::now();
        let handed = (self.out)(batch);
        self.pool.level().sent(length, begin.elapsed());
        self.sent.wire += Bytes(length as u64);
        handed.map_err(|source| MemoryError::Send { source })
    }
}

#[cfg(test)]
mod test;
