use super::*;
use crate::sys::fdpass;
use std::os::unix::net::UnixStream;

#[test]
fn who_has_left_is_not_listened_to_for_ever() {
    let directory = tempfile::tempdir().unwrap();
    let place = Place {
        images: directory.path().into(),
        directory: directory.path().into(),
        cgroup: directory.path().into(),
    };
    let path = directory.path().join("lazy-pages.socket");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let _of_the_shim = listener.try_clone().unwrap();
    let (guard, shim) = fdpass::pair().unwrap();
    let work = Work::default();
    let mut filler = Filler::listening(place, guard, listener, &work).unwrap();
    let mut woken_by = || {
        let mut events = [EpollEvent::empty(); 8];
        let tokens = filler.wait(&mut events, TICK).unwrap();
        tokens.iter().for_each(|token| filler.take(*token).unwrap());
        tokens
    };

    let criu = UnixStream::connect(&path).unwrap();
    assert_eq!(woken_by(), [LISTENER]);
    let (_, duplicate) = fdpass::receive(shim.as_fd()).unwrap().unwrap();
    assert_eq!(duplicate.len(), 1, "the guard has no duplicate");
    drop(criu);
    assert_eq!(woken_by(), [RESTORER]);
    let _another = UnixStream::connect(&path).unwrap();
    assert_eq!(woken_by(), [0; 0]);
}
