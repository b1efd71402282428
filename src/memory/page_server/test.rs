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
    fn hole(&mut self, _: Space, vaddr: u64, pages: u64, _: PageFlags) -> Result<(), MemoryError> {
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
