//! What has been done so far, and how to take it back.

use super::ContainerError;
use super::error::in_one_line;

type Step<'a> = Box<dyn FnOnce() -> Result<(), ContainerError> + 'a>;

/// A stack of undos. Dropping it forgets them: what was done stays done.
#[derive(Default)]
pub(super) struct Undo<'a>(Vec<Step<'a>>);

impl<'a> Undo<'a> {
    /// Something was done that this takes back.
    pub fn push(&mut self, step: impl FnOnce() -> Result<(), ContainerError> + 'a) {
        self.0.push(Box::new(step));
    }

    /// Takes everything back, the last first, because of `cause`. What cannot be taken back is reported beside
    /// it.
    pub fn unwind(self, cause: ContainerError) -> ContainerError {
        let failures = self.0.into_iter().rev().filter_map(|step| step().err());
        let leftovers: Vec<String> = failures.map(|error| in_one_line(&error)).collect();
        if leftovers.is_empty() {
            cause
        } else {
            let cause = Box::new(cause);
            ContainerError::Undo { cause, leftovers }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use std::cell::RefCell;

    fn missing() -> ContainerError {
        ContainerError::NotFound {
            name: "x".parse().unwrap(),
        }
    }

    #[test]
    fn the_last_thing_done_is_taken_back_first_and_failures_do_not_stop_it() {
        let order = RefCell::new(Vec::new());
        let mut undo = Undo::default();
        for (number, fails) in [(1, false), (2, true), (3, false)] {
            let order = &order;
            undo.push(move || {
                order.borrow_mut().push(number);
                if fails { Err(missing()) } else { Ok(()) }
            });
        }
        let error = undo.unwind(missing());
        assert_eq!(*order.borrow(), [3, 2, 1]);
        assert!(matches!(error, ContainerError::Undo { leftovers, .. } if leftovers.len() == 1));
        assert!(matches!(
            Undo::default().unwind(missing()),
            ContainerError::NotFound { .. }
        ));
    }
}
