//! Where a filler says for which pages somebody waits, and hears that something came.
//!
//! A word of the filler's is a process id and an address, 12 bytes little-endian; the answer is a byte, without
//! meaning but for its coming. Nothing is lost with a connection: who still waits asks again.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use std::os::fd::AsRawFd;

use super::directory;
use crate::sys::fdpass;

/// The name of the socket.
pub const NAME: &str = "desk";
/// How soon it is asked again where nobody was, or is any more.
const AGAIN: Duration = Duration::from_millis(50);

/// A page that somebody waits for: process id, address when it was dumped.
pub type Wanted = (u32, u64);

/// A word.
pub fn word((vpid, home): Wanted) -> [u8; 12] {
    let mut word = [0; 12];
    word[..4].copy_from_slice(&vpid.to_le_bytes());
    word[4..].copy_from_slice(&home.to_le_bytes());
    word
}

/// What a word says; none where it is not one.
pub fn meaning(word: &[u8]) -> Option<Wanted> {
    let (vpid, home) = word.split_first_chunk::<4>()?;
    Some((
        u32::from_le_bytes(*vpid),
        u64::from_le_bytes(home.try_into().ok()?),
    ))
}

/// Takes what has come of answers; false: nobody is there any more.
pub fn drain(socket: BorrowedFd<'_>) -> bool {
    let mut byte = [0; 16];
    loop {
        match recv(socket.as_raw_fd(), &mut byte, MsgFlags::MSG_DONTWAIT) {
            Ok(0) => return false,
            Ok(_) | Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return true,
            Err(_) => return false,
        }
    }
}

/// A filler's end.
#[derive(Debug)]
pub struct Desk {
    path: PathBuf,
    socket: Option<OwnedFd>,
    asked: BTreeSet<Wanted>,
    tried: Option<Instant>,
}

/// What is to be done about a connection.
#[derive(Debug)]
pub enum Waiting {
    /// Nothing.
    Same,
    /// It is a new one, to be watched.
    New,
}

impl Desk {
    /// That of the daemon that serves these images, whether it is there or not.
    pub fn of(images: &Path) -> Self {
        Self {
            path: directory(images).join(NAME),
            socket: None,
            asked: BTreeSet::new(),
            tried: None,
        }
    }

    /// The connection, where there is one.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// These pages are waited for, and no others: asks for those that were not asked for. Where nobody is there it does
    /// so later, when it is called again.
    pub fn wait_for(&mut self, wanted: &BTreeSet<Wanted>) -> Waiting {
        self.asked.retain(|page| wanted.contains(page));
        let mut waiting = Waiting::Same;
        if wanted.is_empty() {
            return waiting;
        }
        if self.socket.is_none() {
            if self.tried.is_some_and(|tried| tried.elapsed() < AGAIN) {
                return waiting;
            }
            self.tried = Some(Instant::now());
            self.asked.clear();
            self.socket = fdpass::connect_to(&self.path).ok();
            if self.socket.is_some() {
                waiting = Waiting::New;
            }
        }
        if let Some(socket) = &self.socket {
            let new: Vec<Wanted> = wanted.difference(&self.asked).copied().collect();
            for page in new {
                match fdpass::send(socket.as_fd(), &word(page), &[], false) {
                    Ok(()) => {
                        self.asked.insert(page);
                    }
                    // It has much to read; later.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(_) => {
                        self.lost();
                        return Waiting::Same;
                    }
                }
            }
        }
        waiting
    }

    /// Takes what was said.
    pub fn hear(&mut self) {
        if !self
            .socket
            .as_ref()
            .is_some_and(|socket| drain(socket.as_fd()))
        {
            self.lost();
        }
    }

    /// With the last descriptor of it what watches it forgets it.
    fn lost(&mut self) {
        self.socket = None;
        self.asked.clear();
    }
}
