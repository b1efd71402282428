//! The memory of tasks that stand still and never go on, read when somebody elsewhere wants it.

use std::collections::HashMap;
use std::ops::Range;

use super::tracker::send_still;
use super::{MemoryError, Pool, Sender, Space, Target};
use crate::model::{Bytes, Compress};
use crate::sys::process_memory::ProcessMemory;

/// The memory of frozen tasks.
///
/// **Invariant:** what is sent of a page stands for itself: never what has changed in it, so that it may be sent again.
#[derive(Debug)]
pub struct Frozen {
    tasks: HashMap<u32, (i32, ProcessMemory)>,
    pool: Pool,
}

impl Frozen {
    /// Opens the memory of these tasks, which stand still.
    ///
    /// # Errors
    /// When that of one of them cannot be opened.
    pub fn open(targets: &[Target]) -> Result<Self, MemoryError> {
        let mut tasks = HashMap::new();
        for Target { pid, vpid } in targets {
            let memory = ProcessMemory::open(*pid).map_err(|source| MemoryError::Task {
                operation: "open the memory",
                pid: *pid,
                source,
            })?;
            tasks.insert(*vpid, (*pid, memory));
        }
        Ok(Self {
            tasks,
            // Without copies of what was sent.
            pool: Pool::with_copies(Compress::Auto, 1, Bytes(0))?,
        })
    }

    /// How many there are.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// Makes batches of frames of a run of pages, each of which must be readable.
    ///
    /// # Errors
    /// When there is no such task, or a page cannot be read; when `out` fails.
    pub fn send(
        &self,
        vpid: u32,
        range: Range<u64>,
        out: &mut (dyn FnMut(Vec<u8>) -> std::io::Result<()> + Send),
    ) -> Result<(), MemoryError> {
        let vaddr = range.start;
        let (pid, memory) = self.tasks.get(&vpid).ok_or(MemoryError::PageMissing {
            space: Space::Task(vpid),
            vaddr,
        })?;
        let mut hand_on = |batch| out(batch);
        let mut sender = Sender::new(&self.pool, &mut hand_on);
        let space = Space::Task(vpid);
        let unread = send_still(memory, space, range, &mut sender)?;
        sender.flush()?;
        match unread.first() {
            None => Ok(()),
            Some(run) => Err(MemoryError::Unreadable {
                pid: *pid,
                vaddr: run.start,
            }),
        }
    }
}
