//! The ends of CRIU's page servers that send what they are told.

use std::collections::{BTreeMap, HashSet};

use super::page_server::PageSink;
use super::space::{Entry, PageFlags, Space};
use super::tracker::SentPages;
use super::{MemoryError, Sender};
use crate::model::PAGE_SIZE;

/// The end of a dump's page server that sends what the dump tells: pages that are news since the rounds before,
/// marks for the others, and every space's list.
#[derive(Debug)]
pub struct DumpSink<'a, 'b> {
    sender: &'b mut Sender<'a>,
    sent: &'b SentPages,
    parent: Parent<'b>,
    owned: BTreeMap<Space, Vec<Entry>>,
    space: Option<Space>,
    list: Vec<Entry>,
}

/// Which spaces have been sent in earlier rounds.
#[derive(Debug, Clone, Copy)]
enum Parent<'a> {
    Any(bool),
    Of(&'a HashSet<Space>),
}

impl Parent<'_> {
    fn is_parent_of(self, space: Space) -> bool {
        match self {
            Self::Any(any) => any,
            Self::Of(spaces) => spaces.contains(&space),
        }
    }
}

impl<'a, 'b> DumpSink<'a, 'b> {
    /// A sink that knows what the rounds before have sent.
    ///
    /// `parent` is what CRIU is told of every space: yes only for a dump with a parent directory that tracks
    /// memory, where we cleared the soft-dirty bits of every task ourselves after its last page was sent. After
    /// CRIU's own pre-dumps use [`after`](Self::after).
    pub fn new(sender: &'b mut Sender<'a>, sent: &'b SentPages, parent: bool) -> Self {
        Self {
            sender,
            sent,
            parent: Parent::Any(parent),
            owned: BTreeMap::new(),
            space: None,
            list: Vec::new(),
        }
    }

    /// A sink for the dump after these pre-dumps, whose images directory is the last one's child.
    #[must_use]
    pub fn after(mut self, rounds: &'b PreDumped) -> Self {
        self.parent = Parent::Of(&rounds.spaces);
        self
    }

    /// Pages that CRIU does not see, and that are listed beside those it tells: a tracker's own.
    #[must_use]
    pub fn with_owned(mut self, lists: impl IntoIterator<Item = (Space, Vec<Entry>)>) -> Self {
        self.owned = lists.into_iter().collect();
        self
    }

    fn note(&mut self, vaddr: u64, mut pages: u64, flags: PageFlags) {
        if let Some(last) = self.list.last_mut() {
            let whole = u64::from(last.pages) + pages;
            if last.end() == vaddr && last.flags == flags && u32::try_from(whole).is_ok() {
                last.pages = whole as u32;
                return;
            }
        }
        let mut vaddr = vaddr;
        while pages > 0 {
            let now = u32::try_from(pages).unwrap_or(u32::MAX);
            self.list.push(Entry {
                vaddr,
                pages: now,
                flags,
            });
            pages -= u64::from(now);
            vaddr += u64::from(now) * PAGE_SIZE;
        }
    }

    /// Ends the space that is open.
    fn end_space(&mut self) -> Result<(), MemoryError> {
        let Some(space) = self.space.take() else {
            return Ok(());
        };
        let mut list = std::mem::take(&mut self.list);
        list.extend(self.owned.remove(&space).unwrap_or_default());
        // The two are of different mappings; were they not, the destination would refuse the list.
        list.sort_by_key(|entry| entry.vaddr);
        self.sender.list(space, &list)
    }
}

impl PageSink for DumpSink<'_, '_> {
    fn open(&mut self, space: Space) -> Result<bool, MemoryError> {
        self.end_space()?;
        self.space = Some(space);
        Ok(self.parent.is_parent_of(space))
    }

    fn parent(&mut self, space: Space) -> Result<bool, MemoryError> {
        Ok(self.parent.is_parent_of(space))
    }

    fn pages(
        &mut self,
        space: Space,
        vaddr: u64,
        flags: PageFlags,
        bytes: &[u8],
    ) -> Result<(), MemoryError> {
        self.note(vaddr, bytes.len() as u64 / PAGE_SIZE, flags);
        let sent = self.sent;
        let mut seen = |at, page: &[u8]| sent.compare(space, at, page);
        self.sender.pages(space, vaddr, bytes, &mut seen)
    }

    fn hole(
        &mut self,
        _: Space,
        vaddr: u64,
        pages: u64,
        flags: PageFlags,
    ) -> Result<(), MemoryError> {
        self.note(vaddr, pages, flags);
        Ok(())
    }

    fn close(&mut self) -> Result<(), MemoryError> {
        self.end_space()?;
        while let Some((space, list)) = self.owned.pop_first() {
            self.sender.list(space, &list)?;
        }
        self.sender.flush()
    }
}

/// The spaces that CRIU's pre-dumps have sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PreDumped {
    spaces: HashSet<Space>,
}

/// The end of a pre-dump's page server: pages go out, and no lists, for tasks that run on have none yet.
///
/// A space has a parent from its second round on. CRIU then tells only what its soft-dirty bits say has changed.
#[derive(Debug)]
pub struct PreDumpSink<'a, 'b> {
    sender: &'b mut Sender<'a>,
    rounds: &'b mut PreDumped,
    opened: Vec<Space>,
}

impl<'a, 'b> PreDumpSink<'a, 'b> {
    /// A sink for the next round.
    pub fn new(sender: &'b mut Sender<'a>, rounds: &'b mut PreDumped) -> Self {
        Self {
            sender,
            rounds,
            opened: Vec::new(),
        }
    }
}

impl PageSink for PreDumpSink<'_, '_> {
    fn open(&mut self, space: Space) -> Result<bool, MemoryError> {
        self.opened.push(space);
        Ok(self.rounds.spaces.contains(&space))
    }

    fn parent(&mut self, space: Space) -> Result<bool, MemoryError> {
        Ok(self.rounds.spaces.contains(&space))
    }

    fn pages(
        &mut self,
        space: Space,
        vaddr: u64,
        _: PageFlags,
        bytes: &[u8],
    ) -> Result<(), MemoryError> {
        let nothing = SentPages::default();
        let mut seen = |at, page: &[u8]| nothing.compare(space, at, page);
        self.sender.pages(space, vaddr, bytes, &mut seen)
    }

    fn hole(&mut self, _: Space, _: u64, _: u64, _: PageFlags) -> Result<(), MemoryError> {
        Ok(())
    }

    fn close(&mut self) -> Result<(), MemoryError> {
        self.rounds.spaces.extend(self.opened.drain(..));
        self.sender.flush()
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::memory::{Decoder, Frame, Pool};
    use crate::model::Compress;

    const PAGE: usize = PAGE_SIZE as usize;
    const ONE: Space = Space::Task(1);
    const TWO: Space = Space::Task(2);

    fn text(frame: &Frame<'_>) -> String {
        match frame {
            Frame::Pages {
                space,
                vaddr,
                bytes,
            } => {
                format!("{space}: {} pages at {vaddr:#x}", bytes.len() / PAGE)
            }
            Frame::Changes(changes) => {
                format!(
                    "{}: {} changed at {:#x}",
                    changes.space,
                    changes.pages(),
                    changes.vaddr
                )
            }
            Frame::List {
                space,
                entries,
                last,
                ..
            } => {
                let run = |e: &Entry| (e.vaddr, e.pages, e.flags.bits());
                let runs: Vec<_> = entries.iter().map(run).collect();
                format!("{space}: list {runs:x?} {last}")
            }
            Frame::Zero {
                space,
                vaddr,
                pages,
            } => format!("{space}: {pages} zero at {vaddr:#x}"),
            Frame::Behind {
                space,
                vaddr,
                pages,
            } => format!("{space}: {pages} behind at {vaddr:#x}"),
            Frame::Unchanged {
                space,
                vaddr,
                pages,
            } => {
                format!("{space}: {pages} unchanged at {vaddr:#x}")
            }
        }
    }

    /// What `act` sends, as text.
    fn sent(act: impl FnOnce(&mut Sender<'_>)) -> Vec<String> {
        let mut said = Vec::new();
        let mut decoder = Decoder::new().unwrap();
        let mut out = |batch: Vec<u8>| {
            let decoded = decoder.decode(&batch, &mut |frame| {
                said.push(text(frame));
                Ok(())
            });
            decoded.map_err(std::io::Error::other)
        };
        let pool = Pool::with_workers(Compress::Level(1), 1).unwrap();
        act(&mut Sender::new(&pool, &mut out));
        said
    }

    #[test]
    fn a_dump_sends_what_is_news_and_every_space_s_list() {
        let mut before = SentPages::default();
        before.update(ONE, 0x2000, &[2; PAGE]);
        before.update(ONE, 0x3000, &[3; PAGE]);
        before.update(ONE, 0x4000, &[0; PAGE]);
        let said = sent(|sender| {
            let mut sink = DumpSink::new(sender, &before, false);
            assert!(!sink.open(ONE).unwrap());
            let mut bytes = vec![1; PAGE];
            bytes.extend([2; PAGE]);
            bytes.extend([3; PAGE]);
            bytes.extend([0; 2 * PAGE]);
            bytes.extend([9; PAGE]);
            sink.pages(ONE, 0x1000, PageFlags::PRESENT, &bytes).unwrap();
            sink.pages(ONE, 0x7000, PageFlags::PRESENT, &[7; PAGE])
                .unwrap();
            sink.hole(ONE, 0x9000, 2, PageFlags::PARENT).unwrap();
            sink.open(TWO).unwrap();
            sink.close().unwrap();
        });
        // A mark comes when its run has ended.
        assert_eq!(
            said,
            [
                "task 1: 1 pages at 0x1000",
                "task 1: 3 unchanged at 0x2000",
                "task 1: 2 pages at 0x6000",
                "task 1: 1 zero at 0x5000",
                "task 1: list [(1000, 7, 4), (9000, 2, 1)] true",
                "task 2: list [] true",
            ]
        );
    }

    #[test]
    fn pages_that_criu_does_not_see_are_listed_beside_its_own() {
        let lazy = PageFlags::PRESENT.with(PageFlags::LAZY);
        let entry = |vaddr| Entry {
            vaddr,
            pages: 2,
            flags: lazy,
        };
        let nothing = SentPages::default();
        let said = sent(|sender| {
            let owned = [(ONE, vec![entry(0x5000)]), (TWO, vec![entry(0x1000)])];
            let mut sink = DumpSink::new(sender, &nothing, false).with_owned(owned);
            sink.open(ONE).unwrap();
            for at in [0x1000, 0x9000] {
                sink.pages(ONE, at, PageFlags::PRESENT, &[7; PAGE]).unwrap();
            }
            sink.close().unwrap();
        });
        assert_eq!(
            said[2..],
            [
                "task 1: list [(1000, 1, 4), (5000, 2, 6), (9000, 1, 4)] true",
                "task 2: list [(1000, 2, 6)] true",
            ]
        );
    }

    #[test]
    fn a_space_has_a_parent_from_its_second_round_on() {
        let mut rounds = PreDumped::default();
        let said = sent(|sender| {
            let mut sink = PreDumpSink::new(sender, &mut rounds);
            assert!(!sink.parent(ONE).unwrap());
            assert!(!sink.open(ONE).unwrap());
            sink.pages(ONE, 0x1000, PageFlags::PRESENT, &[1; PAGE])
                .unwrap();
            sink.pages(ONE, 0x2000, PageFlags::PRESENT, &[0; PAGE])
                .unwrap();
            sink.close().unwrap();
            let mut sink = PreDumpSink::new(sender, &mut rounds);
            assert!(sink.parent(ONE).unwrap() && !sink.parent(TWO).unwrap());
            sink.hole(ONE, 0x1000, 1, PageFlags::PARENT).unwrap();
            sink.open(TWO).unwrap();
            // A round that breaks off has sent nothing that may be relied upon.
        });
        assert_eq!(
            said,
            ["task 1: 1 pages at 0x1000", "task 1: 1 zero at 0x2000"]
        );
        let nothing = SentPages::default();
        sent(|sender| {
            let mut sink = DumpSink::new(sender, &nothing, false).after(&rounds);
            assert!(sink.open(ONE).unwrap() && !sink.open(TWO).unwrap());
        });
    }
}
