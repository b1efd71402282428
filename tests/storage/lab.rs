//! Two trees, a pass between them, and witnesses that are not ours.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;

use godwit::storage::{self, Receiver, Snapshot, Totals};

/// A source and a destination beside each other. What is made in the test is removed by `rm`, which
/// copes with any depth.
pub struct Lab {
    dir: Option<tempfile::TempDir>,
    pub source: PathBuf,
    pub destination: PathBuf,
}

impl Lab {
    pub fn new() -> Self {
        Self::within(&std::env::temp_dir())
    }

    pub fn within(place: &Path) -> Self {
        let dir = tempfile::tempdir_in(place).unwrap();
        let (source, destination) = (dir.path().join("source"), dir.path().join("destination"));
        std::fs::create_dir(&source).unwrap();
        std::fs::create_dir(&destination).unwrap();
        Self {
            dir: Some(dir),
            source,
            destination,
        }
    }

    pub fn send_all(&self) -> (Snapshot, Totals) {
        self.pass(|sink| storage::send_all(&self.source, sink))
    }

    pub fn send_again(&self, since: &Snapshot) -> (Snapshot, Totals) {
        self.pass(|sink| storage::send_again(&self.source, since, sink))
    }

    pub fn send_changes(&self, since: &Snapshot) -> Totals {
        self.send_suspects(since, &[])
    }

    pub fn send_suspects(&self, since: &Snapshot, suspects: &[&str]) -> Totals {
        let suspects: HashSet<_> = suspects.iter().map(PathBuf::from).collect();
        self.pass(|sink| {
            storage::send_changes(&self.source, since, &suspects, sink).map(|totals| ((), totals))
        })
        .1
    }

    /// Runs one pass into a receiver, and checks that both sides counted alike.
    pub fn pass<T>(
        &self,
        send: impl FnOnce(
            &mut dyn FnMut(Vec<u8>) -> io::Result<()>,
        ) -> Result<(T, Totals), storage::StorageError>,
    ) -> (T, Totals) {
        let mut receiver = Receiver::new(&self.destination).unwrap();
        let (value, sent) =
            send(&mut |batch| receiver.apply(&batch).map_err(io::Error::other)).unwrap();
        assert_eq!(receiver.finish().unwrap(), sent);
        (value, sent)
    }

    /// The two trees are the same, says a program that shares no code with us.
    #[track_caller]
    pub fn check_equal(&self) {
        let (source, destination) = (witness(&self.source), witness(&self.destination));
        for (one, other) in source.lines().zip(destination.lines()) {
            assert_eq!(one, other, "the source's line, and the destination's");
        }
        assert_eq!(source.lines().count(), destination.lines().count());
    }

    /// Runs a script of the shell in the source.
    #[track_caller]
    pub fn sh(&self, script: &str) {
        run(&self.source, &["sh", "-ec", script]);
    }
}

/// What a program prints; it has to succeed.
#[track_caller]
pub fn run(place: &Path, words: &[&str]) -> String {
    let mut command = Command::new(words[0]);
    let done = command
        .args(&words[1..])
        .current_dir(place)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{words:?}: {error}");
    String::from_utf8_lossy(&done.stdout).into_owned()
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(dir) = self.dir.take() {
            let path = dir.keep();
            let _ = Command::new("rm").arg("-rf").arg(path).status();
        }
    }
}

/// Everything that can be seen of a tree.
pub fn witness(root: &Path) -> String {
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/storage/oracle.py");
    let seen = Command::new("python3")
        .arg(script)
        .arg(root)
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&seen.stderr);
    assert!(seen.status.success(), "{error}");
    String::from_utf8(seen.stdout).unwrap()
}

/// Whether the test can run; says so if it cannot, and fails if that is not allowed.
pub fn ready(test: &str) -> bool {
    let missing = if !nix::unistd::geteuid().is_root() {
        "root"
    } else if Command::new("python3").arg("--version").output().is_err() {
        "python3"
    } else {
        return true;
    };
    assert!(
        std::env::var_os("GODWIT_REQUIRE_ROOT").is_none_or(|value| value != "1"),
        "{test} needs {missing}"
    );
    println!("SKIP {test}: needs {missing}");
    false
}

/// Waits until what was written is clearly older than now, so that it is not sent again for that.
pub fn settle() {
    std::thread::sleep(std::time::Duration::from_millis(120));
}

/// Until when a test with a die may go on: `GODWIT_FUZZ_SECONDS`, or a moment.
pub fn deadline() -> std::time::Instant {
    let seconds = std::env::var("GODWIT_FUZZ_SECONDS").ok();
    let seconds = seconds.and_then(|text| text.parse().ok()).unwrap_or(3);
    std::time::Instant::now() + std::time::Duration::from_secs(seconds)
}

/// Where the seeds begin: `GODWIT_FUZZ_SEED`, to have a failure again.
pub fn first_seed() -> u64 {
    let seed = std::env::var("GODWIT_FUZZ_SEED").ok();
    seed.and_then(|text| text.parse().ok()).unwrap_or(1)
}
