//! CRIU itself: real dumps and restores. Needs root and CRIU.

use std::process::Command;

use godwit::criu::Criu;

/// Whether the tests that need root run; says so where they do not.
fn root(name: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(
            std::env::var_os("GODWIT_REQUIRE_ROOT").is_none(),
            "{name} needs root"
        );
        println!("SKIP {name}: needs root");
    }
    root
}

#[test]
fn criu_works_on_this_host() {
    if !root("criu_works_on_this_host") {
        return;
    }
    let criu = Criu::find(None).unwrap();
    println!("CRIU {} at {}", criu.version(), criu.program().display());
    criu.check().unwrap();
    println!("{:?}", criu.features().unwrap());
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    let mut task = Command::new("sleep");
    task.arg("1000");
    println!("{:?}", criu.self_test(scratch.path(), task).unwrap());
}
