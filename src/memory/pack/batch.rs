//! Pages on their way to be packed.

use super::super::frame::{BATCH_FRAMES, HEADER, LONGEST_BATCH, RUN_PAGES, seal_pages};
use super::super::space::Space;
use super::PAGE;

/// Pages on their way to be packed, laid out as their frames will be: nothing is copied where they go out as they are.
#[derive(Debug, Default)]
pub(in super::super) struct Batch {
    pub(super) bytes: Vec<u8>,
    pub(super) runs: Vec<Run>,
    pub(super) pages: usize,
    pub(super) frames: usize,
}

/// A run of pages in a batch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Run {
    pub(super) space: Space,
    pub(super) vaddr: u64,
    /// Where its frame begins.
    pub(super) at: usize,
    pub(super) pages: usize,
}

/// Pages behind a batch that may become its own.
#[derive(Debug)]
pub(in super::super) struct Draft {
    space: Space,
    vaddr: u64,
    /// How long the batch was without them, and where they begin: behind the room for a header, if they need one.
    before: usize,
    from: usize,
    continues: bool,
}

impl Batch {
    /// An empty batch in an old buffer.
    pub(in super::super) fn new(mut bytes: Vec<u8>) -> Self {
        bytes.clear();
        bytes.reserve(LONGEST_BATCH);
        Self {
            bytes,
            ..Self::default()
        }
    }

    pub(in super::super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Takes as many of these pages as there is room for, and says how many bytes that is: 0 when it is full.
    pub(in super::super) fn take(&mut self, space: Space, vaddr: u64, bytes: &[u8]) -> usize {
        let room = RUN_PAGES as usize - self.pages;
        let pages = room.min(bytes.len() / PAGE);
        let taken = pages * PAGE;
        if pages == 0 {
            return 0;
        }
        match self.runs.last_mut() {
            Some(run) if run.continues(self.bytes.len(), space, vaddr) => run.pages += pages,
            // A run may be split by zeros, and then has twice as many frames as pages at most.
            _ if self.frames + 1 >= BATCH_FRAMES / 2 => return 0,
            _ => {
                let at = self.bytes.len();
                self.bytes.extend_from_slice(&[0; HEADER]);
                self.runs.push(Run {
                    space,
                    vaddr,
                    at,
                    pages,
                });
                self.frames += 1;
            }
        }
        self.bytes.extend_from_slice(&bytes[..taken]);
        self.pages += pages;
        taken
    }

    /// Takes as many pages as there is room for, `wanted` bytes are asked of, and `read` appends. They are not of the
    /// batch before they are [kept](Self::keep). None when it is full.
    pub(in super::super) fn draft(
        &mut self,
        space: Space,
        vaddr: u64,
        wanted: usize,
        read: &mut dyn FnMut(usize, &mut Vec<u8>) -> usize,
    ) -> Option<Draft> {
        let before = self.bytes.len();
        let pages = (RUN_PAGES as usize - self.pages).min(wanted / PAGE);
        let continues = self.continues(space, vaddr);
        // As in `take`.
        if pages == 0 || !continues && self.frames + 1 >= BATCH_FRAMES / 2 {
            return None;
        }
        if !continues {
            self.bytes.extend_from_slice(&[0; HEADER]);
        }
        let from = self.bytes.len();
        let length = read(pages * PAGE, &mut self.bytes).min(pages * PAGE);
        self.bytes.truncate(from + length - length % PAGE);
        Some(Draft {
            space,
            vaddr,
            before,
            from,
            continues,
        })
    }

    /// The pages of a draft.
    pub(in super::super) fn drafted(&self, draft: &Draft) -> &[u8] {
        &self.bytes[draft.from..]
    }

    /// They are of the batch.
    pub(in super::super) fn keep(&mut self, draft: &Draft) {
        let pages = self.drafted(draft).len() / PAGE;
        match self.runs.last_mut() {
            Some(run) if draft.continues => run.pages += pages,
            _ => {
                self.runs.push(Run {
                    space: draft.space,
                    vaddr: draft.vaddr,
                    at: draft.before,
                    pages,
                });
                self.frames += 1;
            }
        }
        self.pages += pages;
    }

    /// They are not.
    pub(in super::super) fn discard(&mut self, draft: &Draft) {
        self.bytes.truncate(draft.before);
    }

    fn continues(&self, space: Space, vaddr: u64) -> bool {
        let last = self.runs.last();
        last.is_some_and(|run| run.continues(self.bytes.len(), space, vaddr))
    }

    /// Takes a frame without a payload; false when it is full.
    pub(in super::super) fn mark(&mut self, frame: &[u8; HEADER]) -> bool {
        let fits = self.frames < BATCH_FRAMES / 2;
        if fits {
            self.bytes.extend_from_slice(frame);
            self.frames += 1;
        }
        fits
    }

    pub(super) fn bytes_of(&self, run: &Run) -> &[u8] {
        &self.bytes[run.at + HEADER..][..run.pages * PAGE]
    }
}

impl Run {
    /// Whether a page at this place in the batch would be the next one of this run.
    fn continues(&self, end: usize, space: Space, vaddr: u64) -> bool {
        let length = self.pages * PAGE;
        self.at + HEADER + length == end
            && self.space == space
            && self.vaddr + length as u64 == vaddr
    }
}

impl Batch {
    /// Adds a run of pages, its header to be filled in.
    pub(super) fn whole(&mut self, space: Space, vaddr: u64, bytes: &[u8]) {
        let (at, pages) = (self.bytes.len(), bytes.len() / PAGE);
        self.bytes.extend_from_slice(&[0; HEADER]);
        self.bytes.extend_from_slice(bytes);
        self.runs.push(Run {
            space,
            vaddr,
            at,
            pages,
        });
        self.pages += pages;
        self.frames += 1;
    }

    /// Fills in the headers of the pages' frames.
    pub(super) fn seal(&mut self) {
        for run in &self.runs {
            let frame = &mut self.bytes[run.at..][..HEADER + run.pages * PAGE];
            seal_pages(frame, run.space, run.vaddr);
        }
    }
}
