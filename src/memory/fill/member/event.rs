//! What events of an address space mean for what it still needs.

use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use super::{Keep, Member, gone};
use crate::memory::MemoryError;
use crate::memory::fill::index::WORD;
use crate::memory::fill::layout::{Layout, Piece};
use crate::memory::fill::progress::{Change, Parent, Progress, settle};
use crate::model::PAGE_SIZE;
use crate::sys::userfaultfd::{Registered, Userfaultfd};

impl Member {
    /// What an unmapped range means: its pages are gone, except where events came in another order than what they
    /// tell of. Something that has moved into a range that another thread had unmapped just before may be told first.
    /// But not where nothing was waiting to be told in between: the kernel counts a change from before it happens
    /// until it was read, and says while that count is not 0 that the space is being changed.
    pub(super) fn unmapped(
        &self,
        range: Range<u64>,
        layout: &Layout,
    ) -> Result<Vec<Change>, MemoryError> {
        let Range { start, end } = range;
        if layout.is_tail(&range) {
            return Ok(vec![Change::Told { start, end }]);
        }
        let mut changes = Vec::new();
        let since = layout.overdue_since(&range);
        if since.is_some() {
            changes.push(Change::Lapsed { start, end });
        }
        for piece in layout.within(range.clone()) {
            // Who came where somebody was of whom this tells, or is still to be told of a second time, came after it.
            if since.is_some_and(|since| piece.moved >= since) || layout.awaits_tail(piece.moved) {
                continue;
            }
            let here = piece.here..piece.here + piece.length;
            if self.may_have_come_after(&piece, &range) {
                let registered = self.uffd.registered(here.clone());
                let registered = registered.map_err(self.failed("ask about"))?;
                if matches!(registered, Registered::Yes | Registered::Changing) {
                    continue;
                }
            }
            changes.push(gone(here));
        }
        Ok(changes)
    }

    /// Whether a piece may have moved into a range after that was unmapped, although it was told before. Hardly if its
    /// mapping reached beyond the range: then it was most likely cut itself. And then it would be wrong to ask the
    /// kernel: whoever was told to have unmapped the end of a mapping may have grown it again.
    fn may_have_come_after(&self, piece: &Piece, range: &Range<u64>) -> bool {
        if self.progress.was_quiet_since(piece.moved) {
            return false;
        }
        match self.progress.destination(piece.moved) {
            Some(whole) => range.start <= whole.start && whole.end <= range.end,
            None => true,
        }
    }

    /// Takes over a child, which has what its parent has, but for what is not inherited. The parent's layout is
    /// locked: nothing is placed in it meanwhile.
    pub(super) fn born(
        &self,
        directory: &Path,
        number: u64,
        uffd: Userfaultfd,
        layout: &mut Layout,
        keep: &mut Keep<'_>,
    ) -> Result<Arc<Self>, MemoryError> {
        let source = Arc::clone(&self.source);
        let (vpid, index) = (source.vpid, &source.index);
        let parent = Parent {
            number: self.number(),
            count: self.progress.count(),
        };
        let (mut inherited, never) = layout.inherited();
        let absent = self.absent(&uffd, &inherited)?;
        let absent: Vec<_> = absent
            .into_iter()
            .flat_map(|range| inherited.remove(range))
            .collect();
        let progress = Progress::create(directory, number, vpid, index, &inherited, Some(parent))?;
        for word in 0..index.words() {
            let missing = self.done().missing(word);
            let mut at = word * WORD;
            let end = (at + WORD).min(index.pages());
            for run in missing {
                progress.done().set(at..run.start);
                at = run.end;
            }
            progress.done().set(at..end);
        }
        for home in absent.into_iter().chain(never) {
            settle(progress.done(), index, home);
        }
        for wiped in &source.wiped_on_fork {
            for home in index.within(wiped.clone()) {
                settle(progress.done(), index, home);
            }
        }
        // From here on a successor can go on with the child, and only with it.
        keep(number, uffd.as_fd())?;
        let forked = [Change::Forked { child: number }];
        self.progress.log(&forked, layout, index)?;
        Ok(Self::begin(uffd, source, progress, inherited))
    }

    /// What a child that was just born does not have of its parent's layout. Another thread of the parent may have
    /// unmapped something before the fork, and be told to have done so only after it.
    ///
    /// While the child itself is changing something this cannot be asked: its events will tell.
    fn absent(&self, child: &Userfaultfd, layout: &Layout) -> Result<Vec<Range<u64>>, MemoryError> {
        let pieces = layout.pieces();
        let mut ranges: Vec<Range<u64>> = pieces.map(|p| p.here..p.here + p.length).collect();
        let mut absent = Vec::new();
        while let Some(range) = ranges.pop() {
            let registered = child.registered(range.clone());
            match registered.map_err(self.failed("ask about a child of"))? {
                Registered::Yes => {}
                Registered::Changing | Registered::Gone => break,
                Registered::No if range.end - range.start > PAGE_SIZE => {
                    // It may be in two mappings.
                    let half = (range.end - range.start) / 2 / PAGE_SIZE * PAGE_SIZE;
                    let middle = range.start + half;
                    ranges.extend([range.start..middle, middle..range.end]);
                }
                Registered::No => absent.push(range),
            }
        }
        Ok(absent)
    }
}
