//! What events of an address space mean for what it still needs.

use std::ops::Range;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;

use super::{Keep, Member, gone};
use crate::memory::MemoryError;
use crate::memory::fill::index::WORD;
use crate::memory::fill::layout::Layout;
use crate::memory::fill::progress::{Change, Parent, Progress, settle};
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
        let mut changes = Vec::new();
        for piece in layout.within(range) {
            let here = piece.here..piece.here + piece.length;
            if !self.progress.was_quiet_since(piece.moved) {
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
        let inherited = layout.inherited();
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
}
