//! A CRIU that is a thread: what a session does about every way a conversation can go.

use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use prost::Message;

use super::rpc::{Kind, Notification, Request, Response, Restored};
use super::{CriuError, DumpRequest, Notify, RestoreRequest, Session, Verdict};
use crate::sys::packet::{pair, receive_packet, send_packet};

/// The other end of a session's socket.
struct Fake(OwnedFd);

impl Fake {
    fn request(&self) -> Request {
        let packet = receive_packet(self.0.as_fd(), 1 << 20).unwrap();
        Request::decode(&packet.bytes[..]).unwrap()
    }

    fn say(&self, response: &Response) {
        send_packet(self.0.as_fd(), &response.encode_to_vec()).unwrap();
    }

    /// Comes to a step; whether the client says to go on.
    fn step(&self, script: &str, pid: Option<i32>) -> bool {
        self.say(&Response {
            kind: Kind::Notify as i32,
            success: true,
            notify: Some(Notification {
                script: Some(script.to_owned()),
                pid,
            }),
            ..Response::default()
        });
        let answer = self.request();
        assert_eq!(answer.kind, Kind::Notify as i32);
        answer.notify_success.unwrap()
    }

    fn end(&self, kind: Kind, success: bool) {
        self.say(&answer(kind, success));
    }
}

fn answer(kind: Kind, success: bool) -> Response {
    Response {
        kind: kind as i32,
        success,
        ..Response::default()
    }
}

/// A dump against a fake that does `play` after it has read the request.
fn dump_with(
    play: impl FnOnce(&Fake) + Send,
    on: &mut dyn FnMut(Notify) -> Verdict,
) -> Result<(), CriuError> {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = pair().unwrap();
    thread::scope(|scope| {
        let fake = scope.spawn(move || {
            let fake = Fake(theirs);
            let request = fake.request();
            assert_eq!(request.kind, Kind::Dump as i32);
            let options = request.opts.unwrap();
            assert_eq!(options.pid, Some(77));
            assert_eq!(options.network_lock, Some(3));
            // What CRIU does with it: a directory of the client, through /proc.
            let path = format!("/proc/self/fd/{}", options.images_dir_fd);
            assert!(std::fs::metadata(path).unwrap().is_dir());
            play(&fake);
        });
        let request = DumpRequest::new(77, directory.path());
        let result = Session::over(ours).dump(&request, on);
        fake.join().unwrap();
        result.map(drop)
    })
}

fn agree(_: Notify) -> Verdict {
    Verdict::Continue
}

#[test]
fn a_dump_comes_through_its_steps() {
    let mut steps = Vec::new();
    let result = dump_with(
        |fake| {
            assert!(fake.step("pre-dump", None));
            assert!(fake.step("network-lock", None));
            assert!(fake.step("query-ext-files", None));
            assert!(fake.step("post-dump", None));
            fake.end(Kind::Dump, true);
        },
        &mut |step| {
            steps.push(format!("{step:?}"));
            Verdict::Continue
        },
    );
    assert!(result.is_ok(), "{result:?}");
    assert_eq!(
        steps,
        ["PreDump", "NetworkLock", "QueryExternalFiles", "PostDump"]
    );
}

#[test]
fn a_refusal_is_told_as_ours_and_not_as_criu_s() {
    let result = dump_with(
        |fake| {
            assert!(!fake.step("post-dump", None));
            // CRIU undoes its work, and tells of the steps on the way.
            assert!(fake.step("network-unlock", None));
            let mut response = answer(Kind::Dump, false);
            response.cr_errmsg = Some("RPC client reported script error".to_owned());
            fake.say(&response);
        },
        &mut |step| match step {
            Notify::PostDump => Verdict::Refuse,
            _ => Verdict::Continue,
        },
    );
    assert!(
        matches!(&result, Err(CriuError::Refused { request: "dump", step }) if step == "post-dump"),
        "{result:?}"
    );
}

#[test]
fn an_unknown_step_is_refused_without_asking_anybody() {
    let result = dump_with(
        |fake| {
            assert!(!fake.step("pre-breakfast", None));
            fake.end(Kind::Dump, false);
        },
        &mut |step| panic!("{step:?} was asked"),
    );
    assert!(
        matches!(&result, Err(CriuError::UnknownNotification { name }) if name == "pre-breakfast"),
        "{result:?}"
    );
}

#[test]
fn a_failure_carries_criu_s_words_or_its_error_number() {
    let with = |errno, text: Option<&str>| {
        let mut response = answer(Kind::Dump, false);
        response.cr_errno = errno;
        response.cr_errmsg = text.map(str::to_owned);
        dump_with(|fake| fake.say(&response), &mut agree)
            .unwrap_err()
            .to_string()
    };
    let text = with(Some(17), Some("Can't do it"));
    assert!(text.contains("Can't do it"), "{text}");
    let text = with(Some(17), None);
    assert!(text.contains("17") && text.contains("exists"), "{text}");
    assert!(with(None, None).contains("does not say why"));
}

#[test]
fn an_end_without_an_answer_is_an_error() {
    let ended = |result| {
        matches!(
            result,
            Err(CriuError::Ended {
                request: "dump",
                ..
            })
        )
    };
    assert!(ended(dump_with(|_| {}, &mut agree)));
    assert!(ended(dump_with(
        |fake| assert!(fake.step("pre-dump", None)),
        &mut agree
    )));
}

#[test]
fn what_is_no_message_or_answers_something_else_is_an_error() {
    let result = dump_with(
        |fake| send_packet(fake.0.as_fd(), &[0xff; 20]).unwrap(),
        &mut agree,
    );
    assert!(matches!(result, Err(CriuError::Garbled { .. })));
    let result = dump_with(|fake| fake.end(Kind::Restore, true), &mut agree);
    assert!(matches!(result, Err(CriuError::Unexpected { .. })));
    let result = dump_with(
        |fake| {
            fake.say(&Response {
                kind: Kind::Dump as i32,
                cr_errmsg: Some("x".repeat(100_000)),
                ..Response::default()
            })
        },
        &mut agree,
    );
    assert!(result.unwrap_err().to_string().len() < 1000);
}

#[test]
fn a_callback_that_panics_hangs_up_on_criu() {
    let (ours, theirs) = pair().unwrap();
    let directory = tempfile::tempdir().unwrap();
    let client = thread::spawn(move || {
        let request = RestoreRequest::new(directory.path());
        Session::over(ours).restore(&request, &mut |_| panic!("on purpose"))
    });
    let fake = Fake(theirs);
    fake.request();
    fake.say(&Response {
        kind: Kind::Notify as i32,
        success: true,
        notify: Some(Notification {
            script: Some("post-restore".to_owned()),
            pid: Some(5),
        }),
        ..Response::default()
    });
    assert!(client.join().is_err());
    let end = receive_packet(fake.0.as_fd(), 100).unwrap();
    assert!(end.bytes.is_empty());
}

#[test]
fn a_restore_without_a_process_is_an_error() {
    for (pid, good) in [
        (Some(5), true),
        (Some(0), false),
        (Some(-1), false),
        (None, false),
    ] {
        let (ours, theirs) = pair().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let client = thread::spawn(move || {
            let request = RestoreRequest::new(directory.path());
            Session::over(ours).restore(&request, &mut agree)
        });
        let fake = Fake(theirs);
        assert_eq!(fake.request().kind, Kind::Restore as i32);
        let mut response = answer(Kind::Restore, true);
        response.restore = pid.map(|pid| Restored { pid });
        fake.say(&response);
        let result = client.join().unwrap();
        assert_eq!(result.is_ok(), good, "{pid:?}: {result:?}");
    }
}
