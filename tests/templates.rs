//! Templates and the image store from outside: what ships is in order, a build is whole or nothing.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use godwit::model::{Digest, Lease, Mac, Name};
use godwit::oci::{self, Overrides, Template, catalogue};
use godwit::rootfs::{ImageStore, StoreError};
use godwit::storage;

fn shipped() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("rootfs-templates")
}

/// Whether a test that needs root (and the archive) can run; where skips are forbidden, it must.
fn root(test: &str) -> bool {
    let is_root = nix::unistd::Uid::effective().is_root();
    let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some_and(|v| v == "1");
    assert!(is_root || !required, "{test} needs root");
    if !is_root {
        println!("SKIP {test}: needs root");
    }
    is_root
}

/// A template in a directory of its own whose tree is the directory `tree`.
fn given_template(dir: &Path) -> Template {
    fs::create_dir_all(dir.join("tree/bin")).unwrap();
    fs::write(dir.join("tree/bin/tool"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(dir.join("tree/bin/tool"), Permissions::from_mode(0o755)).unwrap();
    let text = "[rootfs]\ndirectory = \"tree\"\n[container]\ncommand = [\"tool\"]\n";
    oci::parse(text, "local").unwrap()
}

fn packages(text: &str) -> Template {
    let text = format!("[rootfs]\n{text}\n[container]\ncommand = [\"x\"]\n");
    oci::parse(&text, "test").unwrap()
}

/// What a store holds besides its images and locks: nothing, when nobody builds.
#[track_caller]
fn check_tidy(state: &Path) {
    for entry in fs::read_dir(state.join("images")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let known = [".lock", ".build-lock"].contains(&name.as_str());
        assert!(
            known || name.parse::<Digest>().is_ok(),
            "left behind: {name}"
        );
    }
}

fn quiet() -> impl FnMut(&str) {
    |_: &str| {}
}

#[test]
fn every_shipped_template_is_in_order() {
    let names = catalogue::list(&shipped()).unwrap();
    let names: Vec<&str> = names.iter().map(Name::as_str).collect();
    assert_eq!(names, ["busybox", "nginx", "python", "redis"]);
    for name in names {
        catalogue::load(&shipped(), &name.parse().unwrap()).unwrap();
    }
}

#[test]
fn a_directory_becomes_an_image_once() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = ImageStore::open(state.path()).unwrap();
    let template = given_template(dir.path());
    let image = store.build(&template, dir.path(), &mut quiet()).unwrap();
    let lower = store.lower(image);
    assert_eq!(storage::digest(&lower).unwrap(), image);
    for made in [
        "proc",
        "sys",
        "dev",
        "run",
        "tmp",
        "etc/hostname",
        "etc/machine-id",
    ] {
        assert!(lower.join(made).exists(), "{made}");
    }
    let mut steps = 0;
    let again = store.build(&template, dir.path(), &mut |_| steps += 1);
    assert_eq!((again.unwrap(), steps), (image, 0));

    fs::write(dir.path().join("tree/more"), "x").unwrap();
    let other = store.build(&template, dir.path(), &mut quiet()).unwrap();
    assert_ne!(other, image);
    let mut both = vec![image, other];
    both.sort();
    assert_eq!(store.list().unwrap(), both);
    store.remove(image).unwrap();
    assert!(!store.has(image) && store.has(other));
    assert!(matches!(
        store.remove(image),
        Err(StoreError::NoImage { .. })
    ));
    check_tidy(state.path());
}

#[test]
fn an_image_from_a_peer_is_believed_only_if_its_digest_is_right() {
    let state = tempfile::tempdir().unwrap();
    let store = ImageStore::open(state.path()).unwrap();
    let fill = || {
        let staging = store.stage().unwrap();
        fs::write(staging.path().join("file"), "content").unwrap();
        staging
    };
    let staging = fill();
    let digest = storage::digest(staging.path()).unwrap();
    staging.commit(digest).unwrap();
    assert!(store.has(digest));
    // Arriving once more is no error.
    fill().commit(digest).unwrap();

    let staging = fill();
    fs::write(staging.path().join("file"), "Content").unwrap();
    let error = staging.commit(digest).unwrap_err();
    assert!(matches!(error, StoreError::Mismatch { .. }), "{error}");
    drop(fill());
    assert_eq!(store.list().unwrap(), [digest]);
    check_tidy(state.path());
}

#[test]
fn an_image_survives_the_way_to_another_host() {
    let test = "an_image_survives_the_way_to_another_host";
    let (here, there) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let (source, destination) = (
        ImageStore::open(here.path()).unwrap(),
        ImageStore::open(there.path()).unwrap(),
    );
    let tree = dir.path().join("tree");
    let template = given_template(dir.path());
    fs::hard_link(tree.join("bin/tool"), tree.join("bin/other")).unwrap();
    std::os::unix::fs::symlink("/nowhere", tree.join("link")).unwrap();
    fs::set_permissions(tree.join("bin"), Permissions::from_mode(0o2555)).unwrap();
    if root(test) {
        let capability = "setcap cap_net_raw+ep bin/tool; mknod zero c 1 5; mkfifo -m 620 pipe; chown 7:8 bin/tool";
        let _ = Command::new("sh")
            .args(["-c", capability])
            .current_dir(&tree)
            .status();
    }
    let image = source.build(&template, dir.path(), &mut quiet()).unwrap();

    let staging = destination.stage().unwrap();
    let mut receiver = storage::Receiver::new(staging.path()).unwrap();
    let mut sink = |record: Vec<u8>| receiver.apply(&record).map_err(std::io::Error::other);
    storage::send_all(&source.lower(image), &mut sink).unwrap();
    receiver.finish().unwrap();
    staging.commit(image).unwrap();
    assert!(destination.has(image));
    check_tidy(there.path());
}

#[test]
fn a_second_store_serves_the_first() {
    let (state, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let template = given_template(dir.path());
    let shared = ImageStore::open(cache.path()).unwrap();
    let image = shared.build(&template, dir.path(), &mut quiet()).unwrap();
    let inode = |store: &ImageStore| {
        fs::metadata(store.lower(image).join("bin/tool"))
            .unwrap()
            .ino()
    };

    let open = || ImageStore::open(state.path()).unwrap();
    let store = open().with_cache(Some(cache.path().to_owned()));
    let mut steps = Vec::new();
    let taken = store.build(&template, dir.path(), &mut |step| {
        steps.push(step.to_owned())
    });
    assert_eq!(taken.unwrap(), image);
    assert_eq!(steps, ["taking the image from the cache"]);
    assert_eq!(inode(&store), inode(&shared), "copied, not linked");

    // By digest, as a migration asks.
    store.remove(image).unwrap();
    assert!(!open().fetch(image).unwrap());
    assert!(store.fetch(image).unwrap() && store.has(image));
    assert!(shared.has(image));

    // What is built here is there for others, by recipe.
    let other = ImageStore::open(dir.path()).unwrap();
    let other = other.with_cache(Some(cache.path().to_owned()));
    fs::write(dir.path().join("tree/more"), "x").unwrap();
    let more = other.build(&template, dir.path(), &mut quiet()).unwrap();
    let mut steps = Vec::new();
    let taken = store.build(&template, dir.path(), &mut |step| {
        steps.push(step.to_owned())
    });
    assert_eq!(taken.unwrap(), more);
    assert_eq!(steps, ["taking the image from the cache"]);
    fs::remove_file(dir.path().join("tree/more")).unwrap();

    // A damaged cache costs a build.
    store.remove(image).unwrap();
    fs::write(shared.lower(image).join("bin/tool"), "damaged").unwrap();
    assert_eq!(
        store.build(&template, dir.path(), &mut quiet()).unwrap(),
        image
    );
    for whole in [&store, &shared] {
        assert_eq!(storage::digest(&whole.lower(image)).unwrap(), image);
    }
    check_tidy(state.path());
    check_tidy(cache.path());
}

#[test]
fn an_imported_tree_is_an_image_with_its_hard_links() {
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    fs::create_dir(dir.path().join("d")).unwrap();
    fs::write(dir.path().join("a"), "x").unwrap();
    fs::hard_link(dir.path().join("a"), dir.path().join("d/b")).unwrap();
    std::os::unix::fs::symlink("/etc/passwd", dir.path().join("link")).unwrap();
    fs::set_permissions(dir.path().join("a"), Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(dir.path().join("d"), Permissions::from_mode(0o1700)).unwrap();
    let store = ImageStore::open(state.path()).unwrap();
    let image = store.import_tree(dir.path()).unwrap();
    assert_eq!(image, storage::digest(dir.path()).unwrap());
    let meta = |path: &str| fs::symlink_metadata(store.lower(image).join(path)).unwrap();
    assert_eq!(meta("a").ino(), meta("d/b").ino());
    let original = fs::symlink_metadata(dir.path().join("a")).unwrap();
    assert_ne!(meta("a").ino(), original.ino());
    assert_eq!(meta("a").modified().unwrap(), original.modified().unwrap());
    store.remove(image).unwrap();
    check_tidy(state.path());
}

#[test]
fn what_a_dead_build_left_is_swept_and_a_live_one_is_not() {
    let state = tempfile::tempdir().unwrap();
    let store = ImageStore::open(state.path()).unwrap();
    let dead = state.path().join("images/.staging-00000000deadbeef");
    fs::create_dir_all(dead.join("tree/usr/bin")).unwrap();
    fs::write(dead.join("tree/usr/bin/half"), "x").unwrap();
    fs::create_dir_all(state.path().join("images/.removed-0000000000000000/etc")).unwrap();
    let live = store.stage().unwrap();
    fs::write(live.path().join("file"), "x").unwrap();

    ImageStore::open(state.path()).unwrap();
    assert!(live.path().join("file").exists() && !dead.exists());
    live.discard().unwrap();
    check_tidy(state.path());
}

#[test]
fn no_user_of_the_host_reaches_into_an_image() {
    let state = tempfile::tempdir().unwrap();
    ImageStore::open(state.path()).unwrap();
    let mode = fs::metadata(state.path().join("images"))
        .unwrap()
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn an_unknown_package_is_named_and_nothing_is_left() {
    if !root("an_unknown_package_is_named_and_nothing_is_left") {
        return;
    }
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = ImageStore::open(state.path()).unwrap();
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    for (asked, named) in [
        (
            "packages = [\"busybox-static\", \"no-such-thing\"]",
            "\"no-such-thing\"",
        ),
        (
            "packages = [\"busybox-static=1:0\"]",
            "\"busybox-static=1:0\"",
        ),
    ] {
        let template = packages(&format!("{asked}\nvariant = \"extract\""));
        let error = store
            .build(&template, dir.path(), &mut quiet())
            .unwrap_err();
        assert!(
            matches!(error, StoreError::UnknownPackage { .. }),
            "{error:?}"
        );
        let error = error.to_string();
        assert!(
            error.contains(named) && error.contains("template test"),
            "{error}"
        );
    }
    assert!(store.list().unwrap().is_empty());
    check_tidy(state.path());
    assert_eq!(mounts, fs::read_to_string("/proc/self/mountinfo").unwrap());
}

#[test]
fn a_build_without_a_network_says_so() {
    if !root("a_build_without_a_network_says_so") {
        return;
    }
    // In a child, with a network namespace that has nothing in it.
    if std::env::var_os("GODWIT_TEST_NO_NETWORK").is_none() {
        let status = Command::new("unshare")
            .arg("--net")
            .arg(std::env::current_exe().unwrap())
            .args(["--exact", "a_build_without_a_network_says_so"])
            .env("GODWIT_TEST_NO_NETWORK", "1")
            .stdout(Stdio::null())
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let (state, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = ImageStore::open(state.path()).unwrap();
    let template = packages("packages = [\"busybox-static\"]\nvariant = \"extract\"");
    let error = store
        .build(&template, dir.path(), &mut quiet())
        .unwrap_err();
    assert!(matches!(error, StoreError::Unreachable { .. }), "{error:?}");
    check_tidy(state.path());
}

#[test]
fn a_build_killed_half_way_leaves_no_process_and_no_mount() {
    let test = "a_build_killed_half_way_leaves_no_process_and_no_mount";
    if !root(test) {
        return;
    }
    if let Some(state) = std::env::var_os("GODWIT_TEST_BUILD_IN") {
        // The child that is killed.
        let store = ImageStore::open(Path::new(&state)).unwrap();
        let template = packages("packages = [\"busybox-static\"]");
        let _ = store.build(&template, Path::new("/"), &mut quiet());
        return;
    }
    let state = tempfile::tempdir().unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env("GODWIT_TEST_BUILD_IN", state.path())
        .stdout(Stdio::null())
        .process_group(0)
        .spawn()
        .unwrap();
    let images = state.path().join("images");
    let begun = || {
        let entries = fs::read_dir(&images).ok()?;
        let staging = entries.flatten().map(|entry| entry.path());
        staging
            .into_iter()
            .find(|path| path.join("tree/usr/bin").is_dir())
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    let staging = loop {
        if let Some(staging) = begun() {
            break staging;
        }
        assert!(Instant::now() < deadline, "the build did not begin");
        std::thread::sleep(Duration::from_millis(20));
    };
    child.kill().unwrap();
    child.wait().unwrap();

    let text = staging.to_str().unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    while users(text) > 0 {
        assert!(Instant::now() < deadline, "the build lives on");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(staging.exists(), "the build was not interrupted half-way");
    ImageStore::open(state.path()).unwrap();
    check_tidy(state.path());
    assert!(Path::new("/dev/null").exists());
}

/// How many processes name `text` in their command line, or have it as a mount or root directory.
fn users(text: &str) -> usize {
    let own = std::process::id().to_string();
    let processes = fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    processes
        .filter(|path| path.join("cmdline").exists() && !path.ends_with(&own))
        .filter(|path| {
            let read = |file: &str| fs::read(path.join(file)).unwrap_or_default();
            let link = fs::read_link(path.join("root")).unwrap_or_default();
            String::from_utf8_lossy(&read("cmdline")).contains(text)
                || String::from_utf8_lossy(&read("mountinfo")).contains(text)
                || link.to_string_lossy().contains(text)
        })
        .count()
}

/// The store in which the shipped templates' images stay from one run of the tests to the next.
fn lasting_store() -> ImageStore {
    ImageStore::open(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("images")).unwrap()
}

/// Builds a shipped template (or finds it built) and runs `command` in it, as the container's user would.
#[track_caller]
fn check_shipped(name: &str, command: &[&str], says: &str, most_megabytes: u64) {
    let store = lasting_store();
    let (template, dir) = catalogue::load(&shipped(), &name.parse().unwrap()).unwrap();
    let began = Instant::now();
    let image = store.build(&template, &dir, &mut quiet()).unwrap();
    let built = began.elapsed();
    let lower = store.lower(image);
    let began = Instant::now();
    assert_eq!(storage::digest(&lower).unwrap(), image);
    let hashed = began.elapsed();

    let address = [10, 88, 0, 2].into();
    let lease = Lease {
        address,
        prefix: 24,
        gateway: None,
        mac: Mac::of(address),
    };
    let spec = oci::resolve(
        &template,
        image,
        &lower,
        "c-1".parse().unwrap(),
        lease,
        &Overrides::default(),
    )
    .unwrap();
    let output = Command::new("chroot")
        .arg(format!("--userspec={}:{}", spec.user.uid, spec.user.gid))
        .arg(&lower)
        .args(command)
        .env_clear()
        .envs(spec.env.iter().map(|line| line.split_once('=').unwrap()))
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains(says), "{said}");

    let size = Command::new("du").arg("-sk").arg(&lower).output().unwrap();
    let size = String::from_utf8(size.stdout).unwrap();
    let kilobytes: u64 = size.split_whitespace().next().unwrap().parse().unwrap();
    println!("{name}: {kilobytes} KiB, built in {built:.1?}, hashed in {hashed:.1?}, {image}");
    assert!(
        kilobytes / 1024 < most_megabytes,
        "{name} has {kilobytes} KiB"
    );
    assert_eq!(fs::read_dir(lower.join("dev")).unwrap().count(), 0);
    assert_eq!(fs::read(lower.join("etc/machine-id")).unwrap(), b"");
}

#[test]
fn the_busybox_template_runs_its_shell() {
    if root("the_busybox_template_runs_its_shell") {
        let command = ["/bin/sh", "-c", "echo ok | grep -c ok && id -u"];
        check_shipped("busybox", &command, "1\n0", 5);
    }
}

#[test]
fn two_builds_of_one_recipe_are_equal() {
    if !root("two_builds_of_one_recipe_are_equal") {
        return;
    }
    let store = lasting_store();
    // Any shipped template does; this one builds in seconds.
    let name = std::env::var("GODWIT_TEST_TEMPLATE").unwrap_or_else(|_| "busybox".to_owned());
    let (template, dir) = catalogue::load(&shipped(), &name.parse().unwrap()).unwrap();
    let first = store.build(&template, &dir, &mut quiet()).unwrap();
    let began = Instant::now();
    let mut show = |step: &str| println!("{:6.1?} {step}", began.elapsed());
    let second = store.rebuild(&template, &dir, &mut show).unwrap();
    show("done");
    assert_eq!(first, second);
}

#[test]
fn the_redis_template_runs_redis() {
    if root("the_redis_template_runs_redis") {
        check_shipped(
            "redis",
            &["redis-server", "--version"],
            "Redis server v=",
            150,
        );
    }
}

#[test]
fn the_nginx_template_runs_nginx() {
    if root("the_nginx_template_runs_nginx") {
        check_shipped("nginx", &["nginx", "-v"], "nginx version", 150);
    }
}

#[test]
fn the_python_template_runs_python() {
    if root("the_python_template_runs_python") {
        let code = "import http.server, ssl, sqlite3, os; print('uid', os.getuid())";
        check_shipped("python", &["python3", "-c", code], "uid 65534", 200);
    }
}
