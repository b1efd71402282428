//! Which level pages are compressed at: as much as the wire rewards and the processor affords. Pure.
//!
//! With a wire that takes `W` bytes per second and a compressor that at level `l` takes `C(l)` bytes per second and
//! leaves `r(l)` of them, memory moves at `min(W / r(l), C(l))`. `W` is known when the sender had to wait for the wire;
//! `C` and `r` are known of the levels that were tried, and of the others estimated from those. A level that was tried
//! and was not better is left alone for a while.

use std::time::Duration;

use crate::model::{Bytes, Rate};

/// The levels that are tried, from none to slow.
pub const LEVELS: [i32; 8] = [0, -5, -1, 1, 3, 6, 9, 15];
/// Where it begins.
const FIRST: usize = 3;
/// How fast each level is roughly, compared with level 1, and what it leaves of ordinary memory. Only the proportions
/// between neighbours count.
const SPEED: [f64; 8] = [50.0, 2.6, 1.4, 1.0, 0.55, 0.2, 0.11, 0.03];
const LEAVES: [f64; 8] = [1.0, 0.46, 0.4, 0.36, 0.33, 0.31, 0.3, 0.28];
/// Another level must promise so much more.
const WORTH: f64 = 1.04;
/// For so many measurements a level that was tried is not tried again.
const MEMORY: u32 = 12;

/// What was measured since the last time.
#[derive(Debug, Clone, Copy, Default)]
pub struct Measured {
    /// How long that was.
    pub time: Duration,
    /// For how much of it the sender waited for the wire.
    pub waited: Duration,
    /// Bytes before they were compressed, also of batches that were not.
    pub plain: Bytes,
    /// Bytes handed to the wire.
    pub wire: Bytes,
    /// For how long workers compressed, all together.
    pub compressing: Duration,
    /// How many workers there are.
    pub workers: usize,
}

/// Chooses levels.
#[derive(Debug, Clone)]
pub struct Policy {
    at: usize,
    /// Bytes per second the wire takes: known, or a lower bound that is raised until it is one.
    wire: f64,
    /// Bytes per second that were moved at each level, and how many measurements ago.
    moved: [Option<(f64, u32)>; LEVELS.len()],
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            at: FIRST,
            wire: 0.0,
            moved: [None; LEVELS.len()],
        }
    }
}

impl Policy {
    /// The level now.
    pub fn level(&self) -> i32 {
        LEVELS[self.at]
    }

    /// What the wire takes, as far as that is known.
    pub fn wire(&self) -> Rate {
        Rate(self.wire as u64)
    }

    /// The level from now on.
    pub fn next(&mut self, measured: &Measured) -> i32 {
        let time = measured.time.as_secs_f64();
        let (plain, wire) = (measured.plain.0 as f64, measured.wire.0 as f64);
        if time <= 0.0 || plain <= 0.0 {
            return self.level();
        }
        let waited = measured.waited.as_secs_f64() / time;
        let busy = measured.compressing.as_secs_f64() / (time * measured.workers.max(1) as f64);
        if waited > 0.2 {
            self.wire = wire / time;
        } else {
            // It was not in the way: it takes more than this.
            self.wire = (self.wire * 1.25).max(wire / time * 1.25);
        }
        if waited < 0.1 && busy < 0.3 && self.at != 0 {
            // Neither wire nor compressor: whoever reads the memory is the slowest, and no level helps him. But
            // work that is in nobody's way may still be in the way of the reader's processor.
            return self.level();
        }
        let now = plain / time;
        for moved in self.moved.iter_mut().flatten() {
            moved.1 += 1;
        }
        for moved in &mut self.moved {
            *moved = moved.filter(|moved| moved.1 < MEMORY);
        }
        self.moved[self.at] = Some((now, 0));
        let (leaves, speed) = self.known(measured, wire / plain);
        let mut best = (self.at, now * WORTH);
        for at in 0..LEVELS.len() {
            // One step at a time upwards, where the estimate is weakest.
            if at == self.at || at > self.at + 1 {
                continue;
            }
            let left = (leaves * LEAVES[at] / LEAVES[self.at]).min(1.0);
            let left = if at == 0 { 1.0 } else { left };
            let promised = (self.wire / left).min(speed * SPEED[at] / SPEED[self.at]);
            let promised = self.moved[at].map_or(promised, |(moved, _)| moved.min(promised));
            if promised > best.1 {
                best = (at, promised);
            }
        }
        self.at = best.0;
        self.level()
    }

    /// What the level now leaves of the bytes, and how many of them it takes per second with all workers.
    fn known(&self, measured: &Measured, leaves: f64) -> (f64, f64) {
        if self.at == 0 {
            // Nothing is compressed: what it would leave is not known, and taken for ordinary.
            let speed = 400e6 * SPEED[0] * measured.workers.max(1) as f64;
            return (1.0, speed);
        }
        let compressing = measured.compressing.as_secs_f64().max(1e-6);
        let speed = measured.plain.0 as f64 / compressing * measured.workers.max(1) as f64;
        (leaves, speed)
    }
}

#[cfg(test)]
mod test {
    use super::*;

    /// A wire and a processor, and memory that compresses as `LEAVES` says, or not at all.
    struct Machine {
        wire: f64,
        read: f64,
        compress_at_1: f64,
        workers: usize,
        compressible: bool,
    }

    impl Machine {
        fn moves_at(&self, at: usize) -> (f64, f64) {
            let left = if self.compressible { LEAVES[at] } else { 1.0 };
            let speed = if self.compressible || at == 0 {
                self.compress_at_1 * SPEED[at] * self.workers as f64
            } else {
                // Samples alone.
                self.compress_at_1 * 30.0
            };
            (left, (self.wire / left).min(speed).min(self.read))
        }

        /// What is moved per second in the end, compared with the best single level.
        fn settles(&self, policy: &mut Policy, steps: usize) -> f64 {
            let mut total = 0.0;
            for step in 0..steps {
                let (left, moved) = self.moves_at(policy.at);
                let speed = if self.compressible && policy.at > 0 {
                    self.compress_at_1 * SPEED[policy.at]
                } else {
                    self.compress_at_1 * 30.0
                };
                if step >= steps / 2 {
                    total += moved;
                }
                let wire_bound = moved * left >= self.wire * 0.999;
                policy.next(&Measured {
                    time: Duration::from_secs(1),
                    waited: Duration::from_secs_f64(if wire_bound { 0.6 } else { 0.0 }),
                    plain: Bytes(moved as u64),
                    wire: Bytes((moved * left) as u64),
                    compressing: Duration::from_secs_f64(moved / speed),
                    workers: self.workers,
                });
            }
            let best = (0..LEVELS.len()).map(|at| self.moves_at(at).1);
            total / (steps - steps / 2) as f64 / best.fold(0.0, f64::max)
        }
    }

    fn machine() -> Machine {
        Machine {
            wire: 125e6,
            read: 3e9,
            compress_at_1: 500e6,
            workers: 2,
            compressible: true,
        }
    }

    #[test]
    fn it_settles_near_the_best_level_on_any_wire() {
        for wire in [1e6, 12.5e6, 125e6, 312e6, 1.25e9, 5e9] {
            for workers in [1, 2, 4] {
                let machine = Machine {
                    wire,
                    workers,
                    ..machine()
                };
                let mut policy = Policy::default();
                let reached = machine.settles(&mut policy, 60);
                assert!(
                    reached > 0.75,
                    "{reached} at {wire} with {workers}: {policy:?}"
                );
            }
        }
    }

    #[test]
    fn what_does_not_compress_is_not_compressed_the_harder_for_it() {
        let machine = Machine {
            compressible: false,
            ..machine()
        };
        let mut policy = Policy::default();
        assert!(machine.settles(&mut policy, 40) > 0.95, "{policy:?}");
    }

    #[test]
    fn a_wire_that_becomes_slow_is_noticed_within_a_few_measurements() {
        let fast = Machine {
            wire: 5e9,
            ..machine()
        };
        let slow = Machine {
            wire: 12.5e6,
            ..machine()
        };
        let mut policy = Policy::default();
        fast.settles(&mut policy, 40);
        let before = policy.level();
        slow.settles(&mut policy, 30);
        assert!(
            policy.level() > before && policy.level() >= 3,
            "{} then {}",
            before,
            policy.level()
        );
        fast.settles(&mut policy, 60);
        assert!(policy.level() <= 1, "{}", policy.level());
    }

    #[test]
    fn nothing_measured_changes_nothing() {
        let mut policy = Policy::default();
        assert_eq!(policy.next(&Measured::default()), policy.level());
    }
}
