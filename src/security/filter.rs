//! The profile as programs for the kernel.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule,
};

use super::SecurityError;
use super::profile::{ALLOWED, CONDITIONS, Group, Is, REFUSED, Test};

/// Compiled filters, in the order in which they are loaded.
pub struct Filters(Vec<BpfProgram>);

/// Compiles the profile.
pub fn compile() -> Result<Filters, SecurityError> {
    let not_there = SeccompAction::Errno(libc::ENOSYS as u32);
    let allowed = program(listed(ALLOWED), not_there, SeccompAction::Allow)?;
    let mut refused = listed(REFUSED);
    for condition in CONDITIONS {
        let tests = condition.when.iter().map(test).collect::<Result<_, _>>();
        let rule = tests.and_then(SeccompRule::new).map_err(invalid)?;
        refused.entry(condition.call).or_default().push(rule);
    }
    let forbidden = SeccompAction::Errno(libc::EPERM as u32);
    let refused = program(refused, SeccompAction::Allow, forbidden)?;
    Ok(Filters(vec![allowed, refused]))
}

impl Filters {
    /// Loads them for the calling thread and everything it becomes or makes. It also gives up new
    /// privileges for good, without which the kernel takes no filter.
    pub fn load(&self) -> Result<(), SecurityError> {
        self.0
            .iter()
            .try_for_each(|program| seccompiler::apply_filter(program))
            .map_err(|source| SecurityError::Filter {
                operation: "load",
                source: source.into(),
            })
    }
}

fn invalid(source: seccompiler::BackendError) -> SecurityError {
    SecurityError::Filter {
        operation: "compile",
        source: source.into(),
    }
}

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// The calls of all groups, whatever their arguments.
fn listed(groups: &[Group]) -> Rules {
    let calls = groups.iter().flat_map(|group| group.calls);
    calls.map(|&call| (call, Vec::new())).collect()
}

fn test(test: &Test) -> Result<SeccompCondition, seccompiler::BackendError> {
    let length = if test.narrow {
        SeccompCmpArgLen::Dword
    } else {
        SeccompCmpArgLen::Qword
    };
    let (comparison, value) = match test.is {
        Is::Equal(value) => (SeccompCmpOp::Eq, value),
        Is::Not(value) => (SeccompCmpOp::Ne, value),
        Is::Has(bits) => (SeccompCmpOp::MaskedEq(bits), bits),
    };
    SeccompCondition::new(test.argument, length, comparison, value)
}

fn program(
    rules: Rules,
    otherwise: SeccompAction,
    then: SeccompAction,
) -> Result<BpfProgram, SecurityError> {
    let architecture = std::env::consts::ARCH.try_into().map_err(invalid)?;
    SeccompFilter::new(rules, otherwise, then, architecture)
        .and_then(BpfProgram::try_from)
        .map_err(invalid)
}

#[cfg(test)]
mod test {
    use super::*;
    use libc::*;

    /// What the kernel is told: allow, an error, or to kill.
    #[derive(Debug, PartialEq, Eq)]
    enum Answer {
        Allow,
        Error(i32),
        Kill,
    }

    const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") {
        0xC000_003E
    } else {
        0xC000_00B7
    };

    /// Runs a program as the kernel would, on `struct seccomp_data`.
    fn run(program: &BpfProgram, data: &[u32; 16]) -> u32 {
        let (mut at, mut accumulator) = (0, 0_u32);
        loop {
            let step = &program[at];
            let code = u32::from(step.code);
            let jump = |taken: bool| usize::from(if taken { step.jt } else { step.jf });
            at += 1;
            match (code & 0x07, code & 0xf0) {
                (BPF_LD, _) => accumulator = data[step.k as usize / 4],
                (BPF_ALU, BPF_AND) => accumulator &= step.k,
                (BPF_JMP, BPF_JA) => at += step.k as usize,
                (BPF_JMP, BPF_JEQ) => at += jump(accumulator == step.k),
                (BPF_JMP, BPF_JGT) => at += jump(accumulator > step.k),
                (BPF_JMP, BPF_JGE) => at += jump(accumulator >= step.k),
                (BPF_RET, _) => return step.k,
                other => panic!("the program has {other:?}"),
            }
        }
    }

    fn answer_on(architecture: u32, call: i64, arguments: &[u64]) -> Answer {
        let mut data = [0; 16];
        data[0] = call as u32;
        data[1] = architecture;
        for (index, argument) in arguments.iter().enumerate() {
            data[4 + 2 * index] = *argument as u32;
            data[5 + 2 * index] = (argument >> 32) as u32;
        }
        // The filter loaded last is asked first, and of two equal actions the first answer counts.
        let filters = compile().unwrap().0;
        let answers: Vec<u32> = filters
            .iter()
            .rev()
            .map(|filter| run(filter, &data))
            .collect();
        let strictest = answers
            .iter()
            .copied()
            .min_by_key(|a| (a & 0xffff_0000).cast_signed());
        match strictest.unwrap() {
            SECCOMP_RET_ALLOW => Answer::Allow,
            SECCOMP_RET_KILL_PROCESS | SECCOMP_RET_KILL_THREAD => Answer::Kill,
            other => Answer::Error((other & 0xffff) as i32),
        }
    }

    fn answer(call: i64, arguments: &[u64]) -> Answer {
        answer_on(ARCHITECTURE, call, arguments)
    }

    #[test]
    fn the_kernel_can_take_the_programs() {
        let filters = compile().unwrap();
        assert_eq!(filters.0.len(), 2);
        assert!(
            filters
                .0
                .iter()
                .all(|program| (10..4096).contains(&program.len()))
        );
    }

    #[test]
    fn ordinary_calls_pass() {
        for call in [
            SYS_read,
            SYS_openat,
            SYS_mmap,
            SYS_futex,
            SYS_execve,
            SYS_io_setup,
        ] {
            assert_eq!(answer(call, &[1, 2, 3]), Answer::Allow, "{call}");
        }
        let thread = (CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD) as u64;
        assert_eq!(answer(SYS_clone, &[thread]), Answer::Allow);
        assert_eq!(answer(SYS_socket, &[AF_INET6 as u64, 1, 0]), Answer::Allow);
        assert_eq!(answer(SYS_ioctl, &[0, TIOCGWINSZ]), Answer::Allow);
    }

    #[test]
    fn what_cannot_be_moved_is_not_there_and_what_is_new_neither() {
        for call in [
            SYS_io_uring_setup,
            SYS_clone3,
            SYS_memfd_secret,
            SYS_mseal,
            9999,
        ] {
            assert_eq!(answer(call, &[]), Answer::Error(ENOSYS), "{call}");
        }
        // The x32 form of read.
        assert_eq!(answer(0x4000_0000, &[]), Answer::Error(ENOSYS));
    }

    #[test]
    fn what_is_refused_is_refused() {
        for call in [
            SYS_mount,
            SYS_setns,
            SYS_unshare,
            SYS_bpf,
            SYS_keyctl,
            SYS_ptrace,
            SYS_userfaultfd,
        ] {
            assert_eq!(answer(call, &[]), Answer::Error(EPERM), "{call}");
        }
        for flag in [
            CLONE_NEWUSER,
            CLONE_NEWNS,
            CLONE_NEWPID,
            CLONE_NEWNET,
            CLONE_NEWIPC,
        ] {
            let flags = (flag | SIGCHLD) as u64;
            assert_eq!(
                answer(SYS_clone, &[flags]),
                Answer::Error(EPERM),
                "{flag:x}"
            );
        }
        // The upper half of an int is nobody's: it must not hide the lower one.
        let hidden = 0xdead_0000_0000_0000;
        assert_eq!(
            answer(SYS_socket, &[hidden | AF_VSOCK as u64]),
            Answer::Error(EPERM)
        );
        assert_eq!(
            answer(SYS_ioctl, &[0, hidden | TIOCSTI]),
            Answer::Error(EPERM)
        );
        assert_eq!(
            answer(SYS_personality, &[0x0040_0000]),
            Answer::Error(EPERM)
        );
        assert_eq!(answer(SYS_personality, &[0xffff_ffff]), Answer::Allow);
        let listener = SECCOMP_FILTER_FLAG_NEW_LISTENER;
        assert_eq!(answer(SYS_seccomp, &[1, listener]), Answer::Error(EPERM));
        assert_eq!(answer(SYS_seccomp, &[1, 0]), Answer::Allow);
    }

    #[test]
    fn a_program_of_another_architecture_is_killed() {
        let i386 = 0x4000_0003;
        assert_eq!(answer_on(i386, SYS_read, &[]), Answer::Kill);
    }
}
