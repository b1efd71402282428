//! Connections that wait to be taken by the program that listens. CRIU cannot dump them ("In-flight connection",
//! `criu/sk-inet.c`): a server takes them in a moment, if it may run.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::cgroup::Cgroup;
use crate::migration::Cause;
use crate::sys::netns::NetNs;
use crate::sys::socket_diag::{self, Dump};

/// How often a container may run for a moment, to take what waits.
const TURNS: u32 = 4;
/// How long each of these moments may be: as long as a busy host may keep a program waiting for its processor.
const MOMENT: Duration = Duration::from_millis(50);
/// How long a program that runs may leave a connection waiting, before it is said of it.
const PATIENCE: Duration = Duration::from_millis(500);
/// The time between two looks.
const GLANCE: Duration = Duration::from_micros(300);

/// A container's sockets that listen, and who asks the kernel about them.
pub struct Listeners {
    pid: i32,
    /// None where the kernel does not tell (without CONFIG_INET_DIAG): its tables do, slowly.
    dump: Option<Dump>,
}

impl Listeners {
    /// Those of a process's network namespace.
    pub fn of(pid: i32) -> Self {
        let path = format!("/proc/{pid}/ns/net");
        let opened = NetNs::open(Path::new(&path)).and_then(|net| net.run(Dump::open)?);
        let tells = |dump: &Dump| socket_diag::listeners(dump).is_ok();
        Self {
            pid,
            dump: opened.ok().filter(tells),
        }
    }

    /// Those whose connections nobody has taken yet, by inode number, each with how many.
    pub fn waiting(&self) -> HashMap<u64, usize> {
        let told = self.dump.as_ref().map(socket_diag::listeners);
        match told {
            Some(Ok(mut all)) => {
                all.retain(|_, count| *count > 0);
                all
            }
            _ => tables(self.pid),
        }
    }
}

/// The same, as `/proc/PID/net` has it.
fn tables(pid: i32) -> HashMap<u64, usize> {
    let tables = ["tcp", "tcp6"].map(|name| File::open(format!("/proc/{pid}/net/{name}")));
    // A table that is not there has none.
    let tables = tables.into_iter().flatten();
    tables
        .flat_map(|table| listeners(BufReader::new(table)).unwrap_or_default())
        .collect()
}

/// The same, but for those that are being taken: only what waits at every look.
pub fn left_waiting(pid: i32) -> HashMap<u64, usize> {
    let listeners = Listeners::of(pid);
    let mut all = listeners.waiting();
    let end = Instant::now() + PATIENCE;
    while !all.is_empty() && Instant::now() < end {
        thread::sleep(GLANCE * 10);
        let now = listeners.waiting();
        all.retain(|socket, _| now.contains_key(socket));
    }
    all
}

/// Lets a frozen container that no frame reaches take what waits; it is frozen again afterwards. What still waits then
/// is left to CRIU, which says where. Whether the container has run for that.
///
/// # Errors
/// When the container cannot be thawed or frozen.
pub fn let_accept(cgroup: &Cgroup, listeners: &Listeners, within: Duration) -> Result<bool, Cause> {
    let nobody_waits = || listeners.waiting().is_empty();
    for turn in 0..TURNS {
        if nobody_waits() {
            // The last frames before the gate closed may still be on their way through the kernel.
            thread::sleep(GLANCE);
            if nobody_waits() {
                return Ok(turn > 0);
            }
        }
        cgroup.thaw()?;
        let end = Instant::now() + MOMENT;
        while !nobody_waits() && Instant::now() < end {
            thread::sleep(GLANCE);
        }
        cgroup.freeze(within)?;
    }
    Ok(true)
}

/// The lines of `/proc/net/tcp` about sockets that listen, which come first.
fn listeners(table: impl BufRead) -> io::Result<Vec<(u64, usize)>> {
    let mut found = Vec::new();
    for line in table.lines().skip(1) {
        match listener(&line?) {
            Some((socket, count)) if count > 0 => found.push((socket, count)),
            Some(_) => {}
            None => break,
        }
    }
    Ok(found)
}

/// A line of `/proc/net/tcp` about a socket that listens: its number, and how many connections wait to be taken.
fn listener(line: &str) -> Option<(u64, usize)> {
    const LISTEN: &str = "0A";
    let words: Vec<&str> = line.split_whitespace().collect();
    let (state, queues, inode) = (words.get(3)?, words.get(4)?, words.get(9)?);
    let waiting = usize::from_str_radix(queues.split_once(':')?.1, 16).ok()?;
    (*state == LISTEN).then_some((inode.parse().ok()?, waiting))
}

#[cfg(test)]
mod test {
    use super::*;
    use std::net::{TcpListener, TcpStream};

    #[test]
    fn only_a_listening_socket_with_connections_waits() {
        let line = |state, queue| {
            format!(
                "   0: 00000000:1B58 00000000:0000 {state} 00000000:{queue} 00:00000000 00000000     0        0 4711 1 0 100 0 0 10 0\n"
            )
        };
        let table = |lines: &[String]| {
            let text = format!("  sl  local_address rem_address   st\n{}", lines.concat());
            listeners(text.as_bytes()).unwrap()
        };
        let busy = line("0A", "00000002");
        assert_eq!(table(&[line("0A", "00000000"), busy.clone()]), [(4711, 2)]);
        assert_eq!(table(&[line("01", "00000002"), busy]), []);
        assert_eq!(table(&[]), []);
    }

    #[test]
    fn a_connection_waits_until_it_is_taken() {
        let own = std::process::id().cast_signed();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = nix::sys::stat::fstat(&listener).unwrap().st_ino;
        let told =
            || [Listeners::of(own).waiting(), tables(own)].map(|all| all.get(&inode).copied());
        assert_eq!(told(), [None, None]);
        let address = listener.local_addr().unwrap();
        let _clients = [address; 2].map(|address| TcpStream::connect(address).unwrap());
        assert_eq!(told(), [Some(2), Some(2)]);
        assert!(left_waiting(own).contains_key(&inode));
        for _ in 0..2 {
            listener.accept().unwrap();
        }
        assert_eq!(told(), [None, None]);
        assert_eq!(left_waiting(own).get(&inode), None);
    }

    #[test]
    fn what_is_taken_in_time_is_not_left_waiting() {
        let own = std::process::id().cast_signed();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = nix::sys::stat::fstat(&listener).unwrap().st_ino;
        let _client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let server = thread::spawn(move || {
            thread::sleep(PATIENCE / 5);
            listener.accept().unwrap();
            listener
        });
        assert_eq!(left_waiting(own).get(&inode), None);
        drop(server.join().unwrap());
    }
}
