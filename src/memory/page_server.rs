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
mod test {
    use super::*;
    use std::thread;

    #[derive(Default)]
    struct Record {
        said: Vec<String>,
        bytes: usize,
        fail: bool,
    }

    impl PageSink for Record {
        fn open(&mut self, space: Space) -> Result<bool, MemoryError> {
            self.said.push(format!("open {space}"));
            Ok(space == Space::Task(2))
        }
        fn parent(&mut self, _: Space) -> Result<bool, MemoryError> {
            Ok(true)
        }
        fn pages(
            &mut self,
            _: Space,
            vaddr: u64,
            flags: PageFlags,
            bytes: &[u8],
        ) -> Result<(), MemoryError> {
            if self.fail {
                return Err(MemoryError::NoList);
            }
            self.bytes += bytes.len();
            let pages = bytes.len() as u64 / PAGE_SIZE;
            self.said
                .push(format!("{vaddr:#x}+{pages} {}", flags.bits()));
            Ok(())
        }
        fn hole(
            &mut self,
            _: Space,
            vaddr: u64,
            pages: u64,
            _: PageFlags,
        ) -> Result<(), MemoryError> {
            self.said.push(format!("hole {vaddr:#x}+{pages}"));
            Ok(())
        }
        fn close(&mut self) -> Result<(), MemoryError> {
            self.said.push("close".to_owned());
            Ok(())
        }
    }

    fn version(text: &str) -> CriuVersion {
        text.parse().unwrap()
    }

    fn add(space: Space, vaddr: u64, pages: u64, flags: PageFlags) -> Command {
        Command::Add {
            space,
            vaddr,
            pages,
            flags,
        }
    }

    #[test]
    fn a_dump_of_either_layout_is_served_to_its_end() {
        for text in ["4.1.1", "4.2.1"] {
            let (server, theirs) = PageServer::pair(version(text)).unwrap();
            let layout = Layout::new(version(text).wide_page_counts());
            let space = Space::Task(2);
            let criu = thread::spawn(move || {
                let mut socket = UnixStream::from(theirs);
                let mut say = |command| socket.write_all(&wire::encode(layout, command)).unwrap();
                say(Command::Open {
                    space,
                    answer: true,
                });
                let mut answer = [9];
                socket.read_exact(&mut answer).unwrap();
                assert_eq!(answer, [1], "the sink's answer");
                let mut say = |command| socket.write_all(&wire::encode(layout, command)).unwrap();
                // Crosses a border of 128 pages: two pieces.
                say(add(space, 127 * PAGE_SIZE, 2, PageFlags::PRESENT));
                socket.write_all(&[5; 2 * PAGE_SIZE as usize]).unwrap();
                let mut say = |command| socket.write_all(&wire::encode(layout, command)).unwrap();
                say(add(space, 0x9_0000_0000, 7, PageFlags::PARENT));
                say(Command::Close);
                let mut end = [9; 4];
                socket.read_exact(&mut end).unwrap();
                assert_eq!(end, [0; 4]);
            });
            let mut record = Record::default();
            let served = server.serve(&mut record).unwrap();
            criu.join().unwrap();
            assert_eq!(served.pages, Pages(2));
            assert_eq!(served.holes, Pages(7));
            assert_eq!(
                record.said,
                [
                    "open task 2",
                    "0x7f000+1 4",
                    "0x80000+1 4",
                    "hole 0x900000000+7",
                    "close"
                ]
            );
        }
    }

    #[test]
    fn a_connection_that_ends_early_is_an_error() {
        let space = Space::Task(1);
        let layout = Layout::Wide;
        let mut bytes = wire::encode(
            layout,
            Command::Open {
                space,
                answer: false,
            },
        );
        bytes.extend(wire::encode(layout, add(space, 0, 1, PageFlags::PRESENT)));
        bytes.extend([1; PAGE_SIZE as usize]);
        for cut in [0, 5, 32, 40, 64, 65, bytes.len() - 1, bytes.len()] {
            let (server, theirs) = PageServer::pair(version("4.2")).unwrap();
            UnixStream::from(theirs).write_all(&bytes[..cut]).unwrap();
            let result = server.serve(&mut Record::default());
            assert!(
                matches!(result, Err(MemoryError::PageServerUnfinished)),
                "{cut}: {result:?}"
            );
        }
    }

    #[test]
    fn a_sink_that_fails_breaks_the_connection() {
        let (server, theirs) = PageServer::pair(version("4.2")).unwrap();
        let space = Space::Task(1);
        let mut socket = UnixStream::from(theirs);
        let mut bytes = wire::encode(
            Layout::Wide,
            Command::Open {
                space,
                answer: false,
            },
        );
        bytes.extend(wire::encode(
            Layout::Wide,
            add(space, 0, 1, PageFlags::PRESENT),
        ));
        bytes.extend([1; PAGE_SIZE as usize]);
        socket.write_all(&bytes).unwrap();
        let mut sink = Record {
            fail: true,
            ..Record::default()
        };
        assert!(server.serve(&mut sink).is_err());
        assert_eq!(socket.read(&mut [0]).unwrap(), 0);
        assert!(socket.write_all(b"more").is_err());
    }

    #[test]
    fn pages_of_a_space_that_is_not_open_are_refused() {
        let (server, theirs) = PageServer::pair(version("4.2")).unwrap();
        let header = wire::encode(Layout::Wide, add(Space::Task(1), 0, 1, PageFlags::PRESENT));
        UnixStream::from(theirs).write_all(&header).unwrap();
        let result = server.serve(&mut Record::default());
        assert!(matches!(result, Err(MemoryError::PageServerNotOpen { .. })));
    }

    #[test]
    fn a_stopper_ends_a_server_that_waits() {
        let (server, _theirs) = PageServer::pair(version("4.2")).unwrap();
        let stopper = server.stopper().unwrap();
        let waiting = thread::spawn(move || server.serve(&mut Record::default()));
        stopper.stop();
        assert!(waiting.join().unwrap().is_err());
    }
}
