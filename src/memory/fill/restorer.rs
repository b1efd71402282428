//! What CRIU says on its lazy-pages socket while it restores.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::wire::FromCriu;
use crate::sys::fdpass;
use crate::sys::userfaultfd::Userfaultfd;

/// The connection with a CRIU that restores.
#[derive(Debug)]
pub struct Restorer {
    socket: OwnedFd,
    word: [u8; 4],
    /// How much of a word is here.
    here: usize,
    /// The task whose userfaultfd follows.
    task: Option<u32>,
}

/// What was heard.
#[derive(Debug)]
pub enum Heard {
    /// Nothing yet.
    Nothing,
    /// A task, and its userfaultfd.
    Task(u32, Userfaultfd),
    /// Every task stands at its first instruction.
    Finished,
    /// CRIU has left.
    End,
    /// Something that makes no sense.
    Nonsense,
}

impl AsFd for Restorer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Restorer {
    /// On this connection.
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            word: [0; 4],
            here: 0,
            task: None,
        }
    }

    /// Hears without waiting.
    pub fn hear(&mut self) -> io::Result<Heard> {
        loop {
            let mut one = [0];
            let into = match self.task {
                // The byte that carries the descriptor.
                Some(_) => &mut one[..],
                None => &mut self.word[self.here..],
            };
            let received = match fdpass::receive_some(self.socket.as_fd(), into) {
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {
                    return Ok(Heard::End);
                }
                other => other?,
            };
            let Some((length, mut fds)) = received else {
                return Ok(Heard::Nothing);
            };
            if length == 0 {
                return Ok(Heard::End);
            }
            if let Some(task) = self.task.take() {
                return Ok(match fds.pop() {
                    Some(fd) => Heard::Task(task, fd.into()),
                    None => Heard::Nonsense,
                });
            }
            self.here += length;
            if self.here < self.word.len() {
                continue;
            }
            self.here = 0;
            match FromCriu::of(self.word) {
                Some(FromCriu::Task(vpid)) => self.task = Some(vpid),
                Some(FromCriu::Zombie) => {}
                Some(FromCriu::Finished) => return Ok(Heard::Finished),
                None => return Ok(Heard::Nonsense),
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use nix::sys::socket::{
        AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, sendmsg, socketpair,
    };
    use std::io::IoSlice;
    use std::os::fd::AsRawFd;

    fn pair() -> (OwnedFd, Restorer) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (theirs, ours) =
            socketpair(AddressFamily::Unix, SockType::Stream, None, flags).unwrap();
        (theirs, Restorer::new(ours))
    }

    fn say(to: &OwnedFd, bytes: &[u8], fd: Option<&OwnedFd>) {
        let raw: Vec<i32> = fd.iter().map(|fd| fd.as_raw_fd()).collect();
        let rights = [ControlMessage::ScmRights(&raw)];
        let control = if raw.is_empty() { &[] } else { &rights[..] };
        let parts = [IoSlice::new(bytes)];
        sendmsg::<()>(to.as_raw_fd(), &parts, control, MsgFlags::empty(), None).unwrap();
    }

    #[test]
    fn tasks_come_with_their_descriptors_however_the_bytes_come() {
        let (criu, mut restorer) = pair();
        let (some, _other) = fdpass::pair().unwrap();
        assert!(matches!(restorer.hear().unwrap(), Heard::Nothing));
        say(&criu, &7i32.to_ne_bytes()[..3], None);
        assert!(matches!(restorer.hear().unwrap(), Heard::Nothing));
        say(&criu, &7i32.to_ne_bytes()[3..], None);
        say(&criu, &[0], Some(&some));
        say(&criu, &(-9i32).to_ne_bytes(), None);
        say(&criu, &8i32.to_ne_bytes(), None);
        assert!(matches!(restorer.hear().unwrap(), Heard::Task(7, _)));
        assert!(matches!(restorer.hear().unwrap(), Heard::Nothing));
        say(&criu, &[0], Some(&some));
        say(&criu, &0x5253_5446i32.to_ne_bytes(), None);
        assert!(matches!(restorer.hear().unwrap(), Heard::Task(8, _)));
        assert!(matches!(restorer.hear().unwrap(), Heard::Finished));
        drop(criu);
        assert!(matches!(restorer.hear().unwrap(), Heard::End));
    }

    #[test]
    fn what_makes_no_sense_is_said_to_make_none() {
        let (criu, mut restorer) = pair();
        say(&criu, &0i32.to_ne_bytes(), None);
        assert!(matches!(restorer.hear().unwrap(), Heard::Nonsense));
        let (criu, mut restorer) = pair();
        say(&criu, &5i32.to_ne_bytes(), None);
        say(&criu, &[0], None);
        assert!(matches!(restorer.hear().unwrap(), Heard::Nonsense));
    }
}
