//! A shim and its clients in one process, with a restorer that needs neither CRIU nor root.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::thread::JoinHandle;
use std::time::Duration;

use super::*;
use crate::container::shim::serve::Shim;

const WAIT: Duration = Duration::from_secs(20);

/// "Restores" a shell that says what it is told and then sleeps.
struct Shell;

impl Restorer for Shell {
    fn restore(
        &self,
        request: &RestoreRequest,
        stdio: &ShimStdio,
        reached: &mut dyn FnMut(Reached) -> bool,
    ) -> Result<i32, String> {
        let script = request.extra.as_str().ok_or("no script")?;
        let mut child = Command::new("/bin/sh")
            .args(["-c", script])
            .stdout(stdio.stdout.try_clone().map_err(|e| e.to_string())?)
            .spawn()
            .map_err(|e| e.to_string())?;
        let pid = child.id() as i32;
        if reached(Reached::Held(pid)) {
            reached(Reached::Running(pid));
            // A restorer cleans up for as long as there is something to clean up.
            while request.images.join("dirty").exists() {
                std::thread::sleep(Duration::from_millis(5));
            }
            return Ok(pid);
        }
        child
            .kill()
            .and_then(|()| child.wait())
            .map_err(|e| e.to_string())?;
        Err("not to be".to_owned())
    }
}

fn request(script: &str) -> RestoreRequest {
    let nowhere = || PathBuf::from("/nowhere");
    RestoreRequest {
        images: nowhere(),
        root: nowhere(),
        userns: None,
        netns: nowhere(),
        cgroup: nowhere(),
        criu: nowhere(),
        stdio_inodes: [1, 2],
        bound: Vec::new(),
        copies: Vec::new(),
        null: None,
        log: nowhere(),
        lazy: false,
        extra: script.into(),
    }
}

/// A shim that serves on a thread.
fn serving(dir: &Path) -> JoinHandle<()> {
    let owner = nix::unistd::getuid().as_raw();
    let shim = Shim::new(dir.to_owned(), dir.join("log"), Some(owner)).unwrap();
    std::thread::spawn(move || shim.serve(&Shell).unwrap())
}

#[test]
fn a_container_runs_before_its_restorer_has_cleaned_up() {
    let dir = tempfile::tempdir().unwrap();
    let dirty = dir.path().join("dirty");
    fs::write(&dirty, "").unwrap();
    let shim = serving(dir.path());
    let mut client = Client::connect(dir.path()).unwrap();
    let pid = client
        .restore(RestoreRequest {
            images: dir.path().to_owned(),
            ..request("exec sleep 1000")
        })
        .unwrap();
    client.verdict(true).unwrap();
    assert_eq!(*client.state(), ShimState::Running { pid });
    // Its output, and its process, can be had already.
    assert_eq!(client.pipes().unwrap().len(), 3);
    client.signal(libc::SIGKILL).unwrap();
    fs::remove_file(dirty).unwrap();
    let exit = client.wait_for_exit(Some(WAIT)).unwrap();
    assert_eq!(exit, Some(Exit { code: Some(137) }));
    shim.join().unwrap();
}

#[test]
fn a_restored_container_waits_for_the_verdict_whoever_gives_it() {
    let dir = tempfile::tempdir().unwrap();
    let shim = serving(dir.path());
    let mut first = Client::connect(dir.path()).unwrap();
    assert_eq!(*first.state(), ShimState::Idle);
    let pid = first
        .restore(request("echo hello; exec sleep 1000"))
        .unwrap();
    assert_eq!(*first.state(), ShimState::Held { pid });
    // It is neither left nor restored again while it waits.
    assert!(first.restore(request("true")).is_err());
    drop(first);

    let mut second = Client::connect(dir.path()).unwrap();
    assert_eq!(*second.state(), ShimState::Held { pid });
    let mut watching = Client::connect(dir.path()).unwrap();
    second.verdict(true).unwrap();
    assert_eq!(*second.state(), ShimState::Running { pid });
    assert!(second.verdict(true).is_err());
    assert_eq!(
        second
            .wait_for_exit(Some(Duration::from_millis(20)))
            .unwrap(),
        None
    );
    assert_eq!(second.pipes().unwrap().len(), 3);

    second.signal(libc::SIGKILL).unwrap();
    let exit = Exit { code: Some(137) };
    assert_eq!(watching.wait_for_exit(Some(WAIT)).unwrap(), Some(exit));
    shim.join().unwrap();
    assert_eq!(exit_of(dir.path()), Some(exit));
    let log = fs::read_to_string(dir.path().join("log")).unwrap();
    assert!(log.ends_with(" stdout F hello\n"), "{log}");
    assert!(matches!(
        Client::connect(dir.path()),
        Err(ShimError::Gone { .. })
    ));
}

#[test]
fn a_restored_container_that_may_not_run_is_gone() {
    let dir = tempfile::tempdir().unwrap();
    let shim = serving(dir.path());
    let mut client = Client::connect(dir.path()).unwrap();
    let pid = client.restore(request("exec sleep 1000")).unwrap();
    client.verdict(false).unwrap();
    let why = "not to be".to_owned();
    assert_eq!(*client.state(), ShimState::Failed { why });
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(exit_of(dir.path()), None);
    client.leave().unwrap();
    shim.join().unwrap();
}

#[test]
fn a_restore_that_fails_says_why() {
    let dir = tempfile::tempdir().unwrap();
    let shim = serving(dir.path());
    let mut client = Client::connect(dir.path()).unwrap();
    let mut impossible = request("");
    impossible.extra = serde_json::Value::Null;
    let error = client.restore(impossible).unwrap_err();
    assert_eq!(error.to_string(), "no script");
    client.leave().unwrap();
    shim.join().unwrap();
}

#[test]
fn a_container_whose_end_comes_with_the_verdict_has_ended() {
    let dir = tempfile::tempdir().unwrap();
    let shim = serving(dir.path());
    let mut client = Client::connect(dir.path()).unwrap();
    client.restore(request("exit 3")).unwrap();
    client.verdict(true).unwrap();
    let exit = client.wait_for_exit(Some(WAIT)).unwrap();
    assert_eq!(exit, Some(Exit { code: Some(3) }));
    shim.join().unwrap();
}

#[test]
fn what_makes_no_sense_is_refused_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let shim = serving(dir.path());
    let mut client = Client::connect(dir.path()).unwrap();
    let refused = |result: Result<(), ShimError>| matches!(result, Err(ShimError::Refused { why }) if why.contains("no process yet"));
    assert!(refused(client.start().map(drop)));
    assert!(refused(client.signal(9)));
    assert!(refused(client.verdict(true)));
    let raw = crate::sys::fdpass::connect_to(&socket(dir.path())).unwrap();
    crate::sys::fdpass::send(std::os::fd::AsFd::as_fd(&raw), b"\xff\0", &[], true).unwrap();
    drop(raw);
    assert_eq!(
        *Client::connect(dir.path()).unwrap().state(),
        ShimState::Idle
    );
    client.leave().unwrap();
    shim.join().unwrap();
}

#[test]
fn a_shim_can_adopt_what_is_not_its_child() {
    let dir = tempfile::tempdir().unwrap();
    let shim = Shim::new(dir.path().to_owned(), dir.path().join("log"), None).unwrap();
    let shim = std::thread::spawn(move || shim.serve(&Shell).unwrap());
    let mut child = Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let pid = child.id() as i32;
    let mut client = Client::connect(dir.path()).unwrap();
    assert!(client.restore(request("true")).is_err());
    client.adopt(pid, &[]).unwrap();
    assert_eq!(*client.state(), ShimState::Running { pid });
    client.signal(libc::SIGTERM).unwrap();
    child.wait().unwrap();
    let exit = client.wait_for_exit(Some(WAIT)).unwrap().unwrap();
    // Kernels before 6.15 do not tell.
    assert!(matches!(exit.code, None | Some(143)), "{exit:?}");
    shim.join().unwrap();
}
