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
    #[test]
    fn the_profile_compiles_to_programs_the_kernel_can_take() {
        let filters = super::compile().unwrap();
        assert_eq!(filters.0.len(), 2);
        assert!(
            filters
                .0
                .iter()
                .all(|program| (10..4096).contains(&program.len()))
        );
    }
}
