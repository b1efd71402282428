//! Seccomp profiles as engines ship them, on the real kernel: what they refuse is refused with the error they name,
//! and what they allow works.
//!
//! `seccomp/docker.json` is `profiles/seccomp/default.json` of Moby 20.10.24, `seccomp/podman.json` is
//! `pkg/seccomp/seccomp.json` of containers/common 0.50.1, both under the Apache License 2.0 and as Debian 12 has them.
//! They are templates: the engine chooses from them by architecture, capabilities and kernel, and so does this test.

#![allow(clippy::unwrap_used, clippy::print_stdout)]
// Calls that no library makes.
#![allow(unsafe_code)]

use std::path::Path;

use godwit::security::seccomp::Plan;
use godwit::security::seccomp::assemble;
use oci_spec::runtime::LinuxSeccomp;
use serde_json::Value;

/// What engines leave to a container.
const CAPABILITIES: [&str; 11] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_NET_BIND_SERVICE",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

const MACHINE: (&str, &str) = if cfg!(target_arch = "x86_64") {
    ("amd64", "SCMP_ARCH_X86_64")
} else {
    ("arm64", "SCMP_ARCH_AARCH64")
};

fn strings(value: &Value) -> Vec<&str> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).collect()
}

/// The profile that an engine makes of its template for a container with these capabilities.
fn profile(template: &str, capabilities: &[&str]) -> LinuxSeccomp {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/seccomp")
        .join(template);
    let template: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let of_machine = |entry: &&Value| entry["architecture"] == MACHINE.1;
    let entry = template["archMap"]
        .as_array()
        .unwrap()
        .iter()
        .find(of_machine)
        .unwrap();
    let mut architectures = vec![MACHINE.1];
    architectures.extend(strings(&entry["subArchitectures"]));
    let has = |list: &Value| strings(list).iter().any(|name| capabilities.contains(name));
    let here = |list: &Value| strings(list).contains(&MACHINE.0);
    let chosen = |call: &&Value| {
        let (includes, excludes) = (&call["includes"], &call["excludes"]);
        let none = |list: &Value| strings(list).is_empty();
        // Every kernel that runs this is newer than what the templates ask for.
        (none(&includes["arches"]) || here(&includes["arches"]))
            && strings(&includes["caps"])
                .iter()
                .all(|name| capabilities.contains(name))
            && !here(&excludes["arches"])
            && !has(&excludes["caps"])
    };
    let calls: Vec<&Value> = template["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .filter(chosen)
        .collect();
    let mut profile = serde_json::json!({
        "defaultAction": template["defaultAction"],
        "architectures": architectures,
        "syscalls": calls,
    });
    if let Some(errno) = template.get("defaultErrnoRet") {
        profile["defaultErrnoRet"] = errno.clone();
    }
    for call in profile["syscalls"].as_array_mut().unwrap() {
        let call = call.as_object_mut().unwrap();
        call.retain(|key, value| {
            matches!(key.as_str(), "names" | "action" | "errnoRet" | "args") && !value.is_null()
        });
    }
    serde_json::from_value(profile).unwrap()
}

/// The error that the program answers, by the rules of the kernel's own interpreter.
fn refusal(plan: &Plan, number: u32) -> Option<i32> {
    let mut data = [0_u32; 16];
    (data[0], data[1]) = (
        number,
        if cfg!(target_arch = "x86_64") {
            0xc000_003e
        } else {
            0xc000_00b7
        },
    );
    let program = plan.program();
    let (mut at, mut accumulator) = (0, 0_u32);
    loop {
        let step = program[at];
        let jump = |taken| usize::from(if taken { step.jt } else { step.jf });
        at += 1;
        match step.code {
            assemble::LOAD => accumulator = data[step.k as usize / 4],
            assemble::AND => accumulator &= step.k,
            assemble::JUMP => at += step.k as usize,
            assemble::JUMP_EQUAL => at += jump(accumulator == step.k),
            assemble::JUMP_GREATER => at += jump(accumulator > step.k),
            assemble::JUMP_AT_LEAST => at += jump(accumulator >= step.k),
            _ => break (step.k >> 16 == 5).then_some((step.k & 0xffff) as i32),
        }
    }
}

/// A call whose first argument is this and the others zero; its error, 0 for none.
fn call(number: i64, first: u64) -> i32 {
    // SAFETY: the caller gives calls only that a filter refuses, or that do nothing with zeros.
    let result = unsafe { libc::syscall(number, first, 0, 0, 0, 0, 0) };
    if result < 0 {
        std::io::Error::last_os_error().raw_os_error().unwrap()
    } else {
        0
    }
}

/// Runs the body on a thread that has the filter, and ends with it.
fn under<T: Send + 'static>(
    plan: Plan,
    body: impl FnOnce(&Plan) -> T + Send + 'static,
) -> Option<T> {
    if !nix::unistd::geteuid().is_root() {
        let required = std::env::var_os("GODWIT_REQUIRE_ROOT").is_some_and(|v| v == "1");
        assert!(!required, "loading a filter needs root");
        println!("SKIP: loading a filter needs root");
        return None;
    }
    plan.check().unwrap();
    let thread = std::thread::spawn(move || {
        assert!(plan.load().unwrap().is_none());
        body(&plan)
    });
    Some(thread.join().unwrap())
}

/// Everything that the filter refuses, whatever the arguments, is refused by the kernel with the error it names.
fn check_refusals(template: &str, at_least: usize) {
    let plan = Plan::of(&profile(template, &CAPABILITIES)).unwrap();
    let seen = under(plan, |plan| {
        let refused = |number: u32| Some((number, refusal(plan, number)?));
        // A kernel's own calls, which it does not show to filters and which kill whoever makes them.
        let probes = |number: &u32| cfg!(target_arch = "x86_64") && matches!(number, 335 | 336);
        let numbers = (0..1000).filter(|number| !probes(number));
        let refused: Vec<(u32, i32)> = numbers.filter_map(refused).collect();
        let seen = |(number, errno): &(u32, i32)| (*number, *errno, call(i64::from(*number), 0));
        refused.iter().map(seen).collect::<Vec<_>>()
    });
    let Some(seen) = seen else { return };
    assert!(seen.len() >= at_least, "only {} are refused", seen.len());
    for (number, expected, errno) in seen {
        assert_eq!(errno, expected, "call {number}");
    }
}

#[test]
fn what_docker_refuses_is_refused() {
    check_refusals("docker.json", 500);
}

#[test]
fn what_podman_refuses_is_refused() {
    check_refusals("podman.json", 500);
}

#[test]
fn docker_in_the_words_of_its_documentation() {
    let plan = Plan::of(&profile("docker.json", &CAPABILITIES)).unwrap();
    let seen = under(plan, |_| {
        [
            call(libc::SYS_getpid, 0),
            call(libc::SYS_mount, 0),
            call(libc::SYS_unshare, libc::CLONE_NEWUSER as u64),
            call(libc::SYS_setns, 0),
            call(libc::SYS_bpf, 0),
            call(libc::SYS_keyctl, 0),
            call(libc::SYS_clone, libc::CLONE_NEWUSER as u64),
            call(libc::SYS_clone3, 0),
            call(libc::SYS_socket, libc::AF_VSOCK as u64),
            call(libc::SYS_personality, 0x0040_0000),
            call(libc::SYS_personality, 0xffff_ffff),
            // Newer than the profile.
            call(451, 0),
            call(5000, 0),
        ]
    });
    let (ok, perm, none) = (0, libc::EPERM, libc::ENOSYS);
    let Some(mut seen) = seen else { return };
    // A family that is not there is another error than one that is refused.
    seen[8] = if seen[8] == perm { perm } else { ok };
    let vsock = if allows_vsock() { ok } else { perm };
    assert_eq!(
        seen,
        [
            ok, perm, perm, perm, perm, perm, perm, none, vsock, perm, ok, none, none
        ]
    );
}

/// Whether the profile lets sockets to the hypervisor pass, as its condition says.
fn allows_vsock() -> bool {
    let profile = profile("docker.json", &CAPABILITIES);
    let calls = profile.syscalls().as_ref().unwrap();
    let socket = calls
        .iter()
        .find(|call| call.names().iter().any(|name| name == "socket"));
    socket.is_some_and(|call| call.args().as_ref().is_none_or(Vec::is_empty))
}

#[test]
fn capabilities_open_what_they_open() {
    let with: Vec<&str> = CAPABILITIES.into_iter().chain(["CAP_SYS_ADMIN"]).collect();
    for template in ["docker.json", "podman.json"] {
        let plan = Plan::of(&profile(template, &with)).unwrap();
        let bpf = libc::SYS_bpf as u32;
        assert_eq!(refusal(&plan, bpf), None, "{template}");
        let without = Plan::of(&profile(template, &CAPABILITIES)).unwrap();
        assert_eq!(refusal(&without, bpf), Some(libc::EPERM), "{template}");
    }
}
