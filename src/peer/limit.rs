//! How many connections of one kind may be open at once: in all, and from one neighbourhood.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Counts who is inside. The second bound keeps one stranger from shutting out everybody else.
#[derive(Debug)]
pub(super) struct Limit {
    total: usize,
    each: usize,
    inside: Mutex<HashMap<IpAddr, usize>>,
}

/// A place inside; dropping it frees the place.
#[derive(Debug)]
pub(super) struct Slot {
    limit: Arc<Limit>,
    neighbourhood: IpAddr,
}

impl Limit {
    pub(super) fn new(total: usize, each: usize) -> Arc<Self> {
        Arc::new(Self {
            total,
            each,
            inside: Mutex::default(),
        })
    }

    /// A place for `from`, if there is one.
    pub(super) fn enter(self: &Arc<Self>, from: IpAddr) -> Option<Slot> {
        let neighbourhood = neighbourhood(from);
        let mut inside = self.inside.lock().unwrap_or_else(PoisonError::into_inner);
        if inside.values().sum::<usize>() >= self.total {
            return None;
        }
        let count = inside.entry(neighbourhood).or_default();
        if *count >= self.each {
            return None;
        }
        *count += 1;
        Some(Slot {
            limit: self.clone(),
            neighbourhood,
        })
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut inside = self
            .limit
            .inside
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = inside.get_mut(&self.neighbourhood) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.neighbourhood);
            }
        }
    }
}

/// One IPv4 address; of IPv6 the /64, which one machine owns as a whole.
fn neighbourhood(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6((u128::from(v6) >> 64 << 64).into()),
        v4 => v4,
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn one_neighbourhood_cannot_fill_the_house() {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let limit = Limit::new(3, 2);
        let first = limit.enter(ip("fd00::1"));
        let second = limit.enter(ip("fd00::2"));
        assert!(first.is_some() && second.is_some());
        assert!(limit.enter(ip("fd00::3")).is_none());
        let third = limit.enter(ip("10.0.0.1"));
        assert!(third.is_some());
        assert!(limit.enter(ip("10.0.0.2")).is_none());
        drop(second);
        assert!(limit.enter(ip("::ffff:10.0.0.1")).is_some());
        drop((first, third));
        assert!(limit.inside.lock().unwrap().is_empty());
    }
}
