//! Faults on pages that have not come yet.

use std::collections::BTreeSet;

use super::{DESK, Filler};
use crate::memory::MemoryError;
use crate::memory::fill::later::{Waiting, Wanted};

impl Filler<'_> {
    /// Somebody waits for a page that has not come: says so, and looks again when something has.
    pub(super) fn wait_for(&mut self, fault: (u64, u64), page: Wanted) -> Result<(), MemoryError> {
        self.later.push_back((fault, page));
        self.say_what_is_waited_for()
    }

    /// Something has come, or nobody is at the desk any more.
    pub(super) fn came(&mut self) -> Result<(), MemoryError> {
        self.desk.hear();
        self.ask_again()
    }

    /// Tries again what waits. Whoever does not wait any more, because its process is gone or has moved what it waits
    /// for, is found out with that.
    pub(super) fn ask_again(&mut self) -> Result<(), MemoryError> {
        if self.later.is_empty() {
            return Ok(());
        }
        for ((number, address), _) in std::mem::take(&mut self.later) {
            self.answer(number, address)?;
        }
        self.say_what_is_waited_for()
    }

    fn say_what_is_waited_for(&mut self) -> Result<(), MemoryError> {
        let wanted: BTreeSet<Wanted> = self.later.iter().map(|(_, page)| *page).collect();
        if let (Waiting::New, Some(socket)) = (self.desk.wait_for(&wanted), self.desk.socket()) {
            self.watch(socket, DESK)?;
        }
        Ok(())
    }
}
