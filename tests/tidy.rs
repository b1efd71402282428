//! The architecture, read off the source: which room imports which, which files are pure, where unsafe code is.
//!
//! The table below is the one of the crate's documentation; changing the design means changing both.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::fs;
use std::path::{Path, PathBuf};

/// Which rooms a room may import. A room may always import itself.
const ARROWS: &[(&str, &[&str])] = &[
    ("model", &[]),
    ("sys", &[]),
    ("storage", &["model", "sys"]),
    ("oci", &["model", "sys"]),
    ("rootfs", &["model", "sys", "oci", "storage"]),
    ("namespace", &["model", "sys", "oci"]),
    ("cgroup", &["model", "sys"]),
    ("net", &["model", "sys"]),
    ("security", &["model", "sys", "oci"]),
    ("criu", &["model", "sys"]),
    ("memory", &["model", "sys"]),
    ("peer", &["model", "sys"]),
    (
        "container",
        &[
            "model",
            "sys",
            "oci",
            "rootfs",
            "namespace",
            "cgroup",
            "net",
            "security",
        ],
    ),
    (
        "checkpoint",
        &["model", "sys", "cgroup", "container", "criu", "memory"],
    ),
    // It speaks to no daemon, and knows no container of one.
    (
        "runtime",
        &[
            "model", "sys", "oci", "rootfs", "storage", "cgroup", "net", "security", "criu",
        ],
    ),
    // Not criu, not container, not checkpoint: a migration moves values and bytes, and sees a container through
    // the traits of its file `movable`.
    ("migration", &["model", "sys"]),
    // The daemon assembles the rooms; it speaks the API's types.
    (
        "daemon",
        &[
            "model",
            "sys",
            "oci",
            "rootfs",
            "storage",
            "cgroup",
            "net",
            "criu",
            "memory",
            "peer",
            "container",
            "checkpoint",
            "migration",
            "runtime",
            "api",
        ],
    ),
    ("metrics", &["model"]),
    ("api", &["model", "daemon", "container", "metrics"]),
    ("cli", &["model", "sys", "api", "daemon", "runtime"]),
];

/// Files of these names think and do nothing else.
const PURE: &[&str] = &[
    "plan",
    "policy",
    "placement",
    "affinity",
    "evacuation",
    "preflight",
    "requests",
    "state",
    "wire",
    "frame",
    "codec",
];

/// What a pure file does not contain.
const IMPURE: &[&str] = &[
    "crate::sys",
    "std::fs",
    "tokio::",
    "Instant::now",
    "SystemTime::now",
    "std::process",
];

/// The longest a file may be, tests apart, in lines.
const LONGEST: usize = 450;

struct Source {
    path: PathBuf,
    room: String,
    /// Everything before the tests.
    code: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    walk(&root, &mut found);
    assert!(found.len() > 50, "only {} files found", found.len());
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        let relative = path.strip_prefix(&root).unwrap().to_owned();
        let room = relative.components().next().unwrap();
        Source {
            room: room.as_os_str().to_string_lossy().into_owned(),
            code: text.split("#[cfg(test)]\nmod ").next().unwrap().to_owned(),
            path: relative,
        }
    };
    found.into_iter().map(read).collect()
}

fn walk(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let is_test = path.file_stem().is_some_and(|stem| stem == "test");
        if path.is_dir() && !is_test {
            walk(&path, found);
        } else if path.extension().is_some_and(|e| e == "rs") && !is_test {
            found.push(path);
        }
    }
}

/// The code without its comments, line by line.
fn lines(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let numbered = code.lines().enumerate().map(|(i, line)| (i + 1, line));
    numbered.filter(|(_, line)| !line.trim_start().starts_with("//"))
}

fn check(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

#[test]
fn a_room_imports_only_what_the_design_allows() {
    let mut wrong = Vec::new();
    for source in sources() {
        let Some((_, allowed)) = ARROWS.iter().find(|(room, _)| *room == source.room) else {
            continue;
        };
        for (number, line) in lines(&source.code) {
            for part in line.split("crate::").skip(1) {
                let named = |c: char| c.is_ascii_lowercase() || c == '_';
                let room: String = part.chars().take_while(|&c| named(c)).collect();
                let known = ARROWS.iter().any(|(name, _)| *name == room);
                if known && room != source.room && !allowed.contains(&room.as_str()) {
                    let at = source.path.display();
                    wrong.push(format!("src/{at}:{number}: {} imports {room}", source.room));
                }
            }
        }
    }
    check(&wrong);
}

#[test]
fn every_room_is_in_the_table() {
    for source in sources() {
        let known = ARROWS.iter().any(|(room, _)| *room == source.room);
        let top = source.path.components().count() == 1;
        assert!(known || top, "src/{} is in no room", source.path.display());
    }
}

#[test]
fn pure_files_do_nothing_but_think() {
    let mut wrong = Vec::new();
    for source in sources() {
        let stem = source.path.file_stem().unwrap().to_string_lossy();
        if !PURE.contains(&stem.as_ref()) {
            continue;
        }
        for (number, line) in lines(&source.code) {
            for word in IMPURE.iter().filter(|word| line.contains(*word)) {
                wrong.push(format!("src/{}:{number}: {word}", source.path.display()));
            }
        }
    }
    check(&wrong);
}

#[test]
fn unsafe_code_is_in_sys_alone() {
    let mut wrong = Vec::new();
    for source in sources().iter().filter(|source| source.room != "sys") {
        for (number, line) in lines(&source.code) {
            if line.contains("unsafe {")
                || line.contains("unsafe fn")
                || line.contains("unsafe impl")
            {
                wrong.push(format!("src/{}:{number}", source.path.display()));
            }
        }
    }
    check(&wrong);
}

#[test]
fn a_file_is_one_room_and_not_a_house() {
    let long = |source: &&Source| source.code.lines().count() > LONGEST;
    let wrong: Vec<String> = sources()
        .iter()
        .filter(long)
        .map(|s| format!("src/{}: {} lines", s.path.display(), s.code.lines().count()))
        .collect();
    check(&wrong);
}

#[test]
fn nothing_is_left_for_later() {
    let words = ["todo!(", "unimplemented!(", "#[ignore", "FIXME", "XXX"];
    let mut wrong = Vec::new();
    for source in sources() {
        for (number, line) in source.code.lines().enumerate() {
            for word in words.iter().filter(|word| line.contains(*word)) {
                wrong.push(format!(
                    "src/{}:{}: {word}",
                    source.path.display(),
                    number + 1
                ));
            }
        }
    }
    check(&wrong);
}
