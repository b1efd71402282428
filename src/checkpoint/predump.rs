//! Rounds by CRIU's own pre-dumps: the conservative way to copy memory, as other tools have it.
//!
//! CRIU stops the tasks in each round, for as long as it takes to find and to note what has changed, and finds that by
//! soft-dirty bits, which it clears itself (`criu/mem.c`, `criu/cr-dump.c`: `cr_pre_dump_tasks`). Its final dump sees all memory, and
//! tells what the rounds have sent as holes. Nothing of Godwit's own touches the tasks.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::thread;

use super::image::failed;
use super::precopy::{SharedOut, memory};
use super::{CheckpointError, Subject};
use crate::criu::{Criu, DumpRequest, Leave, Session, Spawn, Verdict, may_read_limits};
use crate::memory::{
    MemoryError, PageServer, Pool, PreDumpSink, PreDumped, RoundStats, Sender, SentPages,
};

/// The name, beside the rounds, of the last of them: the parent of the final dump, which is asked for before there is
/// any.
const LAST: &str = "last";

/// CRIU's rounds of one migration.
#[derive(Debug)]
pub(super) struct PreDumps {
    criu: Criu,
    subject: Subject,
    directory: PathBuf,
    done: u32,
    /// The spaces that they have sent.
    pub(super) spaces: PreDumped,
    /// Nothing is known of single pages.
    pub(super) sent: SentPages,
}

impl PreDumps {
    /// No round yet. The images of each go into a directory of its own beside those of the subject, and stay there: each
    /// is the parent of the next.
    pub(super) fn new(criu: &Criu, subject: &Subject) -> Result<Self, CheckpointError> {
        let directory = subject.images.with_file_name("rounds");
        // CRIU looks whether it is there when it is asked for the final dump, and into it when the tasks stand still.
        let none = directory.join("none");
        fs::create_dir_all(&none).map_err(failed("make", &none))?;
        let dumps = Self {
            criu: criu.clone(),
            subject: subject.clone(),
            directory,
            done: 0,
            spaces: PreDumped::default(),
            sent: SentPages::default(),
        };
        dumps.point_at(&none).map_err(failed("point at", &none))?;
        Ok(dumps)
    }

    /// The parent of the final dump, as seen from its images.
    pub(super) fn parent(&self) -> PathBuf {
        let rounds = self.directory.file_name().unwrap_or(OsStr::new("rounds"));
        Path::new("..").join(rounds).join(LAST)
    }

    /// One round: what CRIU finds changed goes through `out` as frames. The tasks run on, whatever comes of it.
    pub(super) fn round(
        &mut self,
        pool: &Pool,
        out: &SharedOut<'_>,
    ) -> Result<RoundStats, CheckpointError> {
        let images = self.directory.join(self.done.to_string());
        fs::create_dir_all(&images).map_err(failed("make", &images))?;
        let (server, theirs) = PageServer::pair(self.criu.version()).map_err(memory)?;
        let mut spawn = Spawn {
            limits_from_proc: !may_read_limits(),
            ..Spawn::default()
        };
        let page_server = spawn.pass(theirs);
        let session = Session::start(&self.criu, spawn).map_err(criu)?;
        let before = self.done.checked_sub(1);
        let request = DumpRequest {
            images: images.clone(),
            log_file: "pre-dump.log".to_owned(),
            leave: Leave::Running,
            track_mem: true,
            parent: before.map(|number| Path::new("..").join(number.to_string())),
            // CRIU would wait for it in steps of 100 ms (`criu/seize.c`, `freeze_processes`).
            freeze_cgroup: None,
            ..self.subject.request(page_server)
        };
        let mut piece = |frame| out(frame);
        let mut sender = Sender::new(pool, &mut piece);
        let mut sink = PreDumpSink::new(&mut sender, &mut self.spaces);
        let (served, dumped) = thread::scope(|scope| {
            let dump = scope.spawn(|| session.pre_dump(&request, &mut |_| Verdict::Continue));
            (server.serve(&mut sink), dump.join())
        });
        let dumped = dumped.map_err(|_| CheckpointError::Silent)?;
        // CRIU says why it ended more clearly than its broken connection does; our own failure is the cause of CRIU's,
        // though.
        let served = match (served, dumped) {
            (Err(source @ MemoryError::Send { .. }), _) | (Err(source), Ok(_)) => {
                return Err(memory(source));
            }
            (_, Err(source)) => return Err(criu(source)),
            (Ok(served), Ok(_)) => served,
        };
        self.point_at(&images)
            .map_err(failed("point at", &images))?;
        self.done += 1;
        Ok(RoundStats {
            scanned: served.pages + served.holes,
            changed: served.pages,
        })
    }

    /// That one is the last now.
    fn point_at(&self, images: &Path) -> io::Result<()> {
        let last = self.directory.join(LAST);
        let next = self.directory.join("next");
        symlink(images.file_name().unwrap_or_default(), &next)?;
        fs::rename(next, last)
    }
}

fn criu(source: crate::criu::CriuError) -> CheckpointError {
    CheckpointError::Criu {
        operation: "pre-dump",
        source,
    }
}
