//! Our end of a dump's page server: takes what CRIU sends and hands it, run by run, to a sink.

use std::io::{self, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use super::MemoryError;
use super::frame::RUN_PAGES;
use super::space::{PageFlags, Space};
use super::wire::{self, Command, LONGEST_HEADER, Layout};
use crate::model::{CriuVersion, PAGE_SIZE, Pages};
use crate::sys::socket_buffer;

/// How much may be under way between CRIU and us, in each direction.
const BUFFER: usize = 4 << 20;

/// Where the pages of a dump go. Any error ends the dump: CRIU finds its connection broken and lets the tasks
/// run on.
pub trait PageSink {
    /// Runs of `space` follow. The answer says whether it has a parent: then CRIU, asked to track memory, sends
    /// pages that are not soft-dirty as holes. Only a dump request with a parent directory may be answered yes.
    fn open(&mut self, space: Space) -> Result<bool, MemoryError>;

    /// Whether a pre-dump of `space` has a parent.
    fn parent(&mut self, space: Space) -> Result<bool, MemoryError>;

    /// Pages with their bytes, a whole number of pages. One run of CRIU's may come in several such calls.
    fn pages(
        &mut self,
        space: Space,
        vaddr: u64,
        flags: PageFlags,
        bytes: &[u8],
    ) -> Result<(), MemoryError>;

    /// Pages without bytes: the parent has them, or they are to come later.
    fn hole(
        &mut self,
        space: Space,
        vaddr: u64,
        pages: u64,
        flags: PageFlags,
    ) -> Result<(), MemoryError>;

    /// That was all of every space. CRIU waits for the end of this call before it believes its memory dumped.
    fn close(&mut self) -> Result<(), MemoryError>;
}

/// What went through a page server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Served {
    /// Address spaces.
    pub spaces: u64,
    /// Pages with their bytes.
    pub pages: Pages,
    /// Pages without.
    pub holes: Pages,
}

/// Our end of the socket pair.
#[derive(Debug)]
pub struct PageServer {
    socket: UnixStream,
    layout: Layout,
}

/// Ends a page server's work from another thread, and so the dump.
#[derive(Debug)]
pub struct Stopper(UnixStream);

impl Stopper {
    /// Breaks the connection; the dump fails and the tasks run on.
    pub fn stop(&self) {
        // Fails only where the connection is gone already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl PageServer {
    /// A page server for a CRIU of this version, and the end to give to that CRIU.
    ///
    /// A unix socket pair and nothing else: over TCP CRIU corks its last command and waits 200 ms for it.
    pub fn pair(version: CriuVersion) -> Result<(Self, OwnedFd), MemoryError> {
        let failed = |source| MemoryError::PageServer {
            operation: "make its socket pair",
            source,
        };
        let (socket, theirs) = UnixStream::pair().map_err(failed)?;
        socket_buffer::enlarge(&socket, BUFFER).map_err(failed)?;
        socket_buffer::enlarge(&theirs, BUFFER).map_err(failed)?;
        let layout = Layout::new(version.wide_page_counts());
        Ok((Self { socket, layout }, theirs.into()))
    }

    /// A way to stop it from another thread.
    pub fn stopper(&self) -> Result<Stopper, MemoryError> {
        let socket = self.socket.try_clone();
        socket
            .map(Stopper)
            .map_err(|source| MemoryError::PageServer {
                operation: "share its socket",
                source,
            })
    }

    /// Serves until CRIU has said that this was all. Blocks; give it a thread of its own.
    ///
    /// On success every page of the dump went through `sink`. On failure CRIU fails too.
    pub fn serve(self, sink: &mut dyn PageSink) -> Result<Served, MemoryError> {
        let result = self.run(sink);
        // Whoever else holds a copy of the socket: CRIU is not to wait for a server that has left.
        let _ = self.socket.shutdown(Shutdown::Both);
        result
    }

    fn run(&self, sink: &mut dyn PageSink) -> Result<Served, MemoryError> {
        let mut input = BufReader::with_capacity(64 << 10, &self.socket);
        let mut buffer = vec![0; RUN_PAGES as usize * PAGE_SIZE as usize];
        let mut served = Served::default();
        let mut open = None;
        loop {
            let mut header = [0; LONGEST_HEADER];
            let header = &mut header[..self.layout.header_length()];
            input.read_exact(header).map_err(unfinished)?;
            match wire::decode(self.layout, header)? {
                Command::Open { space, answer } => {
                    let parent = sink.open(space)?;
                    open = Some(space);
                    served.spaces += 1;
                    if answer {
                        self.answer(&[parent.into()])?;
                    }
                }
                Command::Parent { space } => {
                    let parent = i32::from(sink.parent(space)?);
                    self.answer(&parent.to_ne_bytes())?;
                }
                Command::Add { space, .. } if open != Some(space) => {
                    return Err(MemoryError::PageServerNotOpen { space });
                }
                Command::Add {
                    space,
                    vaddr,
                    pages,
                    flags,
                } if flags.contains(PageFlags::PRESENT) => {
                    served.pages += Pages(pages);
                    pass_on(&mut input, &mut buffer, pages, vaddr, &mut |at, bytes| {
                        sink.pages(space, at, flags, bytes)
                    })?;
                }
                Command::Add {
                    space,
                    vaddr,
                    pages,
                    flags,
                } => {
                    served.holes += Pages(pages);
                    sink.hole(space, vaddr, pages, flags)?;
                }
                Command::Close => {
                    sink.close()?;
                    self.answer(&0i32.to_ne_bytes())?;
                    return Ok(served);
                }
            }
        }
    }

    fn answer(&self, bytes: &[u8]) -> Result<(), MemoryError> {
        let mut socket = &self.socket;
        socket
            .write_all(bytes)
            .map_err(|source| MemoryError::PageServer {
                operation: "answer CRIU",
                source,
            })
    }
}

type PieceTo<'a> = dyn FnMut(u64, &[u8]) -> Result<(), MemoryError> + 'a;

/// Reads the bytes of a run and passes them on in pieces of at most [`RUN_PAGES`], cut at multiples of it, so
/// that pieces of different rounds cover the same pages.
fn pass_on(
    input: &mut dyn Read,
    buffer: &mut [u8],
    mut pages: u64,
    mut vaddr: u64,
    to: &mut PieceTo<'_>,
) -> Result<(), MemoryError> {
    while pages > 0 {
        let until_border = RUN_PAGES - vaddr / PAGE_SIZE % RUN_PAGES;
        let now = pages.min(until_border);
        let bytes = &mut buffer[..(now * PAGE_SIZE) as usize];
        input.read_exact(bytes).map_err(unfinished)?;
        to(vaddr, bytes)?;
        pages -= now;
        vaddr += now * PAGE_SIZE;
    }
    Ok(())
}

fn unfinished(source: io::Error) -> MemoryError {
    if source.kind() == io::ErrorKind::UnexpectedEof {
        MemoryError::PageServerUnfinished
    } else {
        MemoryError::PageServer {
            operation: "read what CRIU sends",
            source,
        }
    }
}

#[cfg(test)]
mod test;
