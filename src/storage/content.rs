//! The contents of regular files: data and holes, whole or only the blocks that changed.

use std::fs::File;
use std::io;
use std::iter::Peekable;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::{Whence, lseek};

use super::error::{StorageError, failed};
use super::outbox::{Outbox, tree_path};
use super::scan::truncated;
use super::snapshot::{Blocks, Hash};
use super::wire::{MAX_DATA, Record};

/// What is compared, and sent again if it differs, in bytes.
pub(super) const BLOCK: u64 = 64 * 1024;
/// Hashes are kept of files of at least this many bytes.
pub(super) const HASHED_FROM: u64 = 1 << 20;
/// What is read at once: some whole blocks, and not more than a record can carry.
const WINDOW: u64 = MAX_DATA as u64;

/// How contents are sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Manner<'a> {
    /// All of it, into a new file.
    Whole,
    /// All of it, and the hashes of the blocks are kept.
    Hashed,
    /// What differs from these blocks, into the file that the destination has.
    Changed(&'a [(u64, Hash)]),
}

/// What has been sent.
#[derive(Debug, Default)]
pub(super) struct Sent {
    /// The hashes of the blocks, unless the file was to be sent without.
    pub blocks: Blocks,
    /// The file ended before its size: somebody shortened it.
    pub short: bool,
}

/// Sends the first `size` bytes of `file` for `path`, holding one window of them at a time.
///
/// The hashes speak of what was *sent*, which is what the destination has, even if the file was
/// written to meanwhile.
pub(super) fn send(
    file: &File,
    path: &[u8],
    size: u64,
    manner: Manner<'_>,
    out: &mut Outbox<'_>,
) -> Result<Sent, StorageError> {
    let old: &[(u64, Hash)] = match manner {
        Manner::Changed(blocks) => blocks,
        Manner::Whole | Manner::Hashed => &[],
    };
    let mut sender = Sender {
        path,
        size,
        manner,
        old: old.iter().peekable(),
        out,
        sent: Sent::default(),
    };
    let mut window = Window::default();
    let mut extents = Extents::new(file, size);
    let reading = || failed("read", path);
    while let Some(next) = extents.next_data().map_err(reading())? {
        window
            .fill(file, next.start / BLOCK * BLOCK, size, &mut extents)
            .map_err(reading())?;
        sender.window(&window)?;
        sender.sent.short |= window.short;
    }
    sender.holes_before(u64::MAX)?;
    Ok(sender.sent)
}

struct Sender<'a, 'out, 'sink> {
    path: &'a [u8],
    size: u64,
    manner: Manner<'a>,
    old: Peekable<std::slice::Iter<'a, (u64, Hash)>>,
    out: &'out mut Outbox<'sink>,
    sent: Sent,
}

impl Sender<'_, '_, '_> {
    fn window(&mut self, window: &Window) -> Result<(), StorageError> {
        match self.manner {
            Manner::Whole => {}
            Manner::Hashed | Manner::Changed(_) => {
                for range in window.blocks() {
                    self.block(window, range)?;
                }
            }
        }
        if !matches!(self.manner, Manner::Changed(_)) {
            for data in &window.data {
                self.data(window, data.clone())?;
            }
        }
        Ok(())
    }

    /// Keeps the hash of one block, and sends it if it differs.
    fn block(&mut self, window: &Window, range: Range<u64>) -> Result<(), StorageError> {
        let parts: Vec<_> = window.data_in(&range).collect();
        let filled: u64 = parts.iter().map(|part| part.end - part.start).sum();
        if filled == 0 {
            return Ok(());
        }
        let index = range.start / BLOCK;
        let hash = truncated(blake3::hash(window.bytes(&range)));
        self.sent.blocks.0.push((index, hash));
        if !matches!(self.manner, Manner::Changed(_)) {
            return Ok(());
        }
        self.holes_before(index)?;
        if self.old.next_if(|(old, _)| *old == index) == Some(&(index, hash)) {
            return Ok(());
        }
        if filled < range.end - range.start {
            self.hole(range)?;
        }
        parts
            .into_iter()
            .try_for_each(|part| self.data(window, part))
    }

    /// Blocks that had data before and have none now.
    fn holes_before(&mut self, index: u64) -> Result<(), StorageError> {
        while let Some((old, _)) = self.old.next_if(|(old, _)| *old < index) {
            let start = old * BLOCK;
            if start < self.size {
                self.hole(start..self.size.min(start + BLOCK))?;
            }
        }
        Ok(())
    }

    fn hole(&mut self, range: Range<u64>) -> Result<(), StorageError> {
        self.out.put(&Record::Hole {
            path: tree_path(self.path)?,
            offset: range.start,
            length: range.end - range.start,
        })
    }

    fn data(&mut self, window: &Window, range: Range<u64>) -> Result<(), StorageError> {
        self.out.put(&Record::Data {
            path: tree_path(self.path)?,
            offset: range.start,
            bytes: window.bytes(&range),
        })
    }
}

/// A piece of a file that begins at a block, in memory; holes in it are zeros.
#[derive(Default)]
struct Window {
    start: u64,
    end: u64,
    bytes: Vec<u8>,
    /// Where the file had data.
    data: Vec<Range<u64>>,
    short: bool,
}

impl Window {
    fn fill(
        &mut self,
        file: &File,
        start: u64,
        size: u64,
        extents: &mut Extents<'_>,
    ) -> io::Result<()> {
        self.start = start;
        self.end = size.min(start + WINDOW);
        self.data.clear();
        self.bytes.clear();
        self.bytes.resize((self.end - start) as usize, 0);
        while let Some(next) = extents.next_data()? {
            if next.start >= self.end {
                break;
            }
            let end = next.end.min(self.end);
            let place = (next.start - start) as usize..(end - start) as usize;
            let read = read_up_to(file, next.start, &mut self.bytes[place])?;
            if read > 0 {
                self.data.push(next.start..next.start + read);
            }
            self.short |= next.start + read < end;
            extents.skip_to(end);
        }
        Ok(())
    }

    fn bytes(&self, range: &Range<u64>) -> &[u8] {
        &self.bytes[(range.start - self.start) as usize..(range.end - self.start) as usize]
    }

    fn blocks(&self) -> impl Iterator<Item = Range<u64>> + use<> {
        let end = self.end;
        (self.start..end)
            .step_by(BLOCK as usize)
            .map(move |start| start..end.min(start + BLOCK))
    }

    fn data_in(&self, range: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        self.data.iter().filter_map(|data| {
            let part = data.start.max(range.start)..data.end.min(range.end);
            (part.start < part.end).then_some(part)
        })
    }
}

/// Reads until the buffer is full or the file ends; says how many bytes.
fn read_up_to(file: &File, offset: u64, buffer: &mut [u8]) -> io::Result<u64> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done as u64)
}

/// The ranges of a file that are not holes, in order, as the filesystem tells them.
struct Extents<'a> {
    file: &'a File,
    size: u64,
    present: Range<u64>,
}

impl<'a> Extents<'a> {
    fn new(file: &'a File, size: u64) -> Self {
        Self {
            file,
            size,
            present: 0..0,
        }
    }

    /// The present range, or the next one; none after the last.
    fn next_data(&mut self) -> io::Result<Option<Range<u64>>> {
        let at = self.present.end;
        if self.present.start < at {
            return Ok(Some(self.present.clone()));
        }
        if at >= self.size {
            return Ok(None);
        }
        let Some(start) = self.seek(at, Whence::SeekData)? else {
            self.present = self.size..self.size;
            return Ok(None);
        };
        let end = self.seek(start, Whence::SeekHole)?.unwrap_or(self.size);
        // In a file that shrinks, the two answers may speak of different files.
        self.present = start.min(self.size)..end.min(self.size).max(start.min(self.size));
        match self.present.is_empty() {
            true => {
                self.present = self.size..self.size;
                Ok(None)
            }
            false => Ok(Some(self.present.clone())),
        }
    }

    fn skip_to(&mut self, place: u64) {
        self.present.start = place.min(self.present.end);
    }

    fn seek(&self, from: u64, whence: Whence) -> io::Result<Option<u64>> {
        let from = i64::try_from(from).map_err(|_| Errno::EOVERFLOW)?;
        match lseek(self.file, from, whence) {
            Ok(place) => Ok(u64::try_from(place).ok()),
            Err(Errno::ENXIO) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}
