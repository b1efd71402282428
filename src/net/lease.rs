//! Who has which address: the book of this host's leases, in one file that is replaced as a whole.
//!
//! **Invariant:** no two names hold one address or one Ethernet address. A container that moved away keeps its
//! lease here, marked with the host it lives on now, so that its address is not given to another: until it is
//! released, or comes back.

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{NetError, NetworkConfig};
use crate::model::{Lease, Mac, Name};
use crate::sys::file;

/// A file larger than this is not ours: 65,536 leases take a quarter of it.
const LARGEST_FILE: u64 = 64 << 20;

/// How often [`Leases::take_unused`] tries another address when the network answers for one.
const TRIES: usize = 16;

/// One line of the book.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LeaseEntry {
    /// The container.
    pub name: Name,
    /// What it has.
    pub lease: Lease,
    /// The host it lives on now, where that is not this one.
    pub moved_to: Option<Name>,
}

/// The file's content.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Book {
    leases: Vec<LeaseEntry>,
}

type Entries = BTreeMap<Name, LeaseEntry>;

/// The leases of this host. Every change is on the disk before the call returns; a call that fails has changed
/// nothing.
#[derive(Debug)]
pub struct Leases {
    file: PathBuf,
    config: NetworkConfig,
    entries: Mutex<Entries>,
}

impl Leases {
    /// Reads the book; a missing file is an empty book.
    pub fn open(file: &Path, config: &NetworkConfig) -> Result<Self, NetError> {
        config.check()?;
        let entries = read(file).map_err(|source| NetError::LeaseFile {
            operation: "read",
            file: file.to_owned(),
            source,
        })?;
        Ok(Self {
            file: file.to_owned(),
            config: config.clone(),
            entries: Mutex::new(entries),
        })
    }

    /// Gives `name` an address: the wished one, or else the lowest free one of the pool. A name that holds a
    /// lease gets the same again, unless it wishes another.
    ///
    /// It looks into the book only. Whether a stranger uses the address, the network alone can tell: see
    /// [`Leases::take_unused`].
    pub fn take(&self, name: &Name, wished: Option<Ipv4Addr>) -> Result<Lease, NetError> {
        self.take_except(name, wished, &[])
    }

    /// As [`Leases::take`], and asks `in_use` ([`super::Network::answers`]) about the address, which is
    /// reserved meanwhile. Where it is in use, the next one is taken; a wished one is refused.
    pub fn take_unused(
        &self,
        name: &Name,
        wished: Option<Ipv4Addr>,
        in_use: &mut dyn FnMut(Ipv4Addr) -> Result<bool, NetError>,
    ) -> Result<Lease, NetError> {
        if let Some(held) = self.lock().get(name) {
            return held_again(held, wished);
        }
        let mut used = Vec::new();
        loop {
            let lease = self.take_except(name, wished, &used)?;
            let address = lease.address;
            let error = match in_use(address) {
                Ok(false) => return Ok(lease),
                Ok(true) if wished.is_some() || used.len() + 1 == TRIES => {
                    NetError::AddressAnswers { address }
                }
                Ok(true) => {
                    self.release(name)?;
                    used.push(address);
                    continue;
                }
                Err(error) => error,
            };
            self.release(name)?;
            return Err(error);
        }
    }

    fn take_except(
        &self,
        name: &Name,
        wished: Option<Ipv4Addr>,
        except: &[Ipv4Addr],
    ) -> Result<Lease, NetError> {
        let mut entries = self.lock();
        if let Some(held) = entries.get(name) {
            return held_again(held, wished);
        }
        let address = match wished {
            Some(address) => {
                self.config.allows(address)?;
                address
            }
            None => self
                .lowest_free(&entries, except)
                .ok_or(NetError::PoolExhausted {
                    first: self.config.pool.0,
                    last: self.config.pool.1,
                })?,
        };
        let lease = self.config.lease(address);
        check_free(&entries, name, &lease)?;
        self.put(&mut entries, name, lease)
    }

    /// Enters the lease of a container that arrives from another host: it keeps what it has. The name may hold
    /// this very lease already, or one that moved away.
    pub fn adopt(&self, name: &Name, lease: &Lease) -> Result<(), NetError> {
        let mut entries = self.lock();
        self.config.allows(lease.address)?;
        if lease.prefix != self.config.prefix {
            return Err(NetError::PrefixDiffers {
                theirs: lease.prefix,
                ours: self.config.prefix,
            });
        }
        let Mac(bytes) = lease.mac;
        if bytes[0] & 1 == 1 || bytes == [0; 6] {
            return Err(NetError::NotAStation { mac: lease.mac });
        }
        if let Some(held) = entries.get(name)
            && held.moved_to.is_none()
        {
            return if held.lease == *lease {
                Ok(())
            } else {
                Err(NetError::NameHolds {
                    name: name.clone(),
                    address: held.lease.address,
                })
            };
        }
        check_free(&entries, name, lease)?;
        self.put(&mut entries, name, *lease).map(drop)
    }

    /// Notes that the container lives on the host `to` now.
    pub fn moved_away(&self, name: &Name, to: &Name) -> Result<(), NetError> {
        let mut entries = self.lock();
        let mut next = entries.clone();
        let entry = next
            .get_mut(name)
            .ok_or_else(|| NetError::NoLease { name: name.clone() })?;
        entry.moved_to = Some(to.clone());
        self.save(&mut entries, next)
    }

    /// Gives the address back, whether the container is here or away. A name without a lease is no error.
    pub fn release(&self, name: &Name) -> Result<(), NetError> {
        let mut entries = self.lock();
        let mut next = entries.clone();
        match next.remove(name) {
            Some(_) => self.save(&mut entries, next),
            None => Ok(()),
        }
    }

    /// Every lease, by name.
    pub fn list(&self) -> Vec<LeaseEntry> {
        self.lock().values().cloned().collect()
    }

    fn lowest_free(&self, entries: &Entries, except: &[Ipv4Addr]) -> Option<Ipv4Addr> {
        let mut taken: Vec<_> = entries.values().map(|e| e.lease.address).collect();
        taken.extend_from_slice(except);
        taken.sort_unstable();
        self.config
            .candidates()
            .find(|address| taken.binary_search(address).is_err())
    }

    fn put(&self, entries: &mut Entries, name: &Name, lease: Lease) -> Result<Lease, NetError> {
        let mut next = entries.clone();
        let entry = LeaseEntry {
            name: name.clone(),
            lease,
            moved_to: None,
        };
        next.insert(name.clone(), entry);
        self.save(entries, next)?;
        Ok(lease)
    }

    /// The disk first, then the memory.
    fn save(&self, entries: &mut Entries, next: Entries) -> Result<(), NetError> {
        let book = Book {
            leases: next.values().cloned().collect(),
        };
        serde_json::to_vec_pretty(&book)
            .map_err(io::Error::from)
            .and_then(|bytes| file::replace(&self.file, &bytes))
            .map_err(|source| NetError::LeaseFile {
                operation: "write",
                file: self.file.clone(),
                source,
            })?;
        *entries = next;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Entries> {
        // A panic elsewhere cannot have left half a change: the map is replaced as a whole.
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What a name that is in the book already gets when it asks again.
fn held_again(held: &LeaseEntry, wished: Option<Ipv4Addr>) -> Result<Lease, NetError> {
    let name = held.name.clone();
    match (&held.moved_to, wished) {
        (Some(host), _) => Err(NetError::NameMovedAway {
            name,
            host: host.clone(),
        }),
        (None, Some(address)) if address != held.lease.address => Err(NetError::NameHolds {
            name,
            address: held.lease.address,
        }),
        _ => Ok(held.lease),
    }
}

/// Whether nobody but `name` itself holds the lease's addresses.
fn check_free(entries: &Entries, name: &Name, lease: &Lease) -> Result<(), NetError> {
    let (address, mac) = (lease.address, lease.mac);
    for other in entries.values().filter(|entry| entry.name != *name) {
        let holder = other.name.clone();
        if other.lease.address == address {
            return Err(match &other.moved_to {
                Some(host) => NetError::AddressHeldAway {
                    address,
                    holder,
                    host: host.clone(),
                },
                None => NetError::AddressHeld { address, holder },
            });
        }
        if other.lease.mac == mac {
            return Err(NetError::MacHeld { mac, holder });
        }
    }
    Ok(())
}

fn read(path: &Path) -> io::Result<Entries> {
    let text = match std::fs::metadata(path) {
        Ok(facts) if facts.len() > LARGEST_FILE => return Err(io::ErrorKind::FileTooLarge.into()),
        Ok(_) => std::fs::read_to_string(path)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Entries::new()),
        Err(error) => return Err(error),
    };
    let book: Book = serde_json::from_str(&text)?;
    let mut entries = Entries::new();
    for entry in book.leases {
        if let Err(error) = check_free(&entries, &entry.name, &entry.lease) {
            return Err(io::Error::new(io::ErrorKind::InvalidData, error));
        }
        entries.insert(entry.name.clone(), entry);
    }
    Ok(entries)
}

#[cfg(test)]
mod test {
    use super::*;
    use tempfile::TempDir;

    fn given_config() -> NetworkConfig {
        NetworkConfig {
            bridge: "godwit0".into(),
            uplink: None,
            subnet: Ipv4Addr::new(10, 88, 0, 0),
            prefix: 24,
            bridge_address: Some(Ipv4Addr::new(10, 88, 0, 2)),
            gateway: Some(Ipv4Addr::new(10, 88, 0, 1)),
            pool: (Ipv4Addr::new(10, 88, 0, 1), Ipv4Addr::new(10, 88, 0, 5)),
        }
    }

    fn given_leases() -> (TempDir, Leases) {
        let dir = tempfile::tempdir().unwrap();
        let leases = Leases::open(&dir.path().join("leases.json"), &given_config()).unwrap();
        (dir, leases)
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 88, 0, last)
    }

    fn reopened(leases: &Leases) -> Leases {
        Leases::open(&leases.file, &leases.config).unwrap()
    }

    #[test]
    fn the_lowest_free_address_is_given_and_survives_a_restart() {
        let (_dir, leases) = given_leases();
        for (who, last) in [("a", 3), ("b", 4), ("c", 5)] {
            assert_eq!(leases.take(&name(who), None).unwrap().address, ip(last));
        }
        assert!(matches!(
            leases.take(&name("d"), None),
            Err(NetError::PoolExhausted { .. })
        ));
        let leases = reopened(&leases);
        assert_eq!(leases.list().len(), 3);
        leases.release(&name("b")).unwrap();
        leases.release(&name("b")).unwrap();
        let lease = reopened(&leases).take(&name("d"), None).unwrap();
        assert_eq!((lease.address, lease.mac), (ip(4), Mac::of(ip(4))));
        assert_eq!((lease.prefix, lease.gateway), (24, Some(ip(1))));
    }

    #[test]
    fn a_wish_is_refused_with_its_own_reason() {
        let (_dir, leases) = given_leases();
        leases.take(&name("a"), Some(ip(77))).unwrap();
        let refused = |wished| leases.take(&name("b"), Some(wished)).unwrap_err();
        let text = |wished| refused(wished).to_string();
        assert!(
            text(Ipv4Addr::new(10, 89, 0, 7))
                .contains("outside the container network 10.88.0.0/24")
        );
        assert!(text(ip(0)).contains("network address"));
        assert!(text(ip(255)).contains("broadcast address"));
        assert!(text(ip(1)).contains("gateway"));
        assert!(text(ip(2)).contains("bridge's own address"));
        assert!(
            matches!(refused(ip(77)), NetError::AddressHeld { holder, .. } if holder == name("a"))
        );
        assert_eq!(leases.list().len(), 1);
    }

    #[test]
    fn a_name_gets_the_same_address_again_and_no_second_one() {
        let (_dir, leases) = given_leases();
        let lease = leases.take(&name("a"), None).unwrap();
        assert_eq!(leases.take(&name("a"), None).unwrap(), lease);
        assert_eq!(leases.take(&name("a"), Some(lease.address)).unwrap(), lease);
        assert!(matches!(
            leases.take(&name("a"), Some(ip(9))),
            Err(NetError::NameHolds { .. })
        ));
    }

    #[test]
    fn an_address_that_moved_away_stays_reserved_until_released_or_back() {
        let (_dir, leases) = given_leases();
        let lease = leases.take(&name("a"), None).unwrap();
        leases.moved_away(&name("a"), &name("beta")).unwrap();
        let leases = reopened(&leases);
        assert!(matches!(
            leases.take(&name("a"), None),
            Err(NetError::NameMovedAway { host, .. }) if host == name("beta")
        ));
        assert!(matches!(
            leases.take(&name("b"), Some(lease.address)),
            Err(NetError::AddressHeldAway { .. })
        ));
        assert_ne!(
            leases.take(&name("b"), None).unwrap().address,
            lease.address
        );
        leases.adopt(&name("a"), &lease).unwrap();
        assert_eq!(leases.list()[0].moved_to, None);
        leases.moved_away(&name("a"), &name("beta")).unwrap();
        leases.release(&name("a")).unwrap();
        assert_eq!(leases.take(&name("c"), None).unwrap(), lease);
        assert!(matches!(
            leases.moved_away(&name("nobody"), &name("beta")),
            Err(NetError::NoLease { .. })
        ));
    }

    #[test]
    fn a_newcomer_keeps_what_it_has_unless_another_holds_it() {
        let (_dir, leases) = given_leases();
        let config = given_config();
        let (lease, other) = (config.lease(ip(100)), config.lease(ip(101)));
        leases.adopt(&name("a"), &lease).unwrap();
        leases.adopt(&name("a"), &lease).unwrap();
        let refused = |who, lease: Lease| leases.adopt(&name(who), &lease).unwrap_err();
        assert!(matches!(refused("a", other), NetError::NameHolds { .. }));
        assert!(matches!(refused("b", lease), NetError::AddressHeld { .. }));
        let same_mac = Lease {
            mac: lease.mac,
            ..other
        };
        assert!(matches!(refused("b", same_mac), NetError::MacHeld { .. }));
        for bytes in [[0; 6], [0xff; 6], [1, 0, 0x5e, 0, 0, 1]] {
            let lease = Lease {
                mac: Mac(bytes),
                ..other
            };
            assert!(matches!(refused("b", lease), NetError::NotAStation { .. }));
        }
        let narrow = Lease {
            prefix: 25,
            ..other
        };
        assert!(matches!(
            refused("b", narrow),
            NetError::PrefixDiffers { .. }
        ));
        assert!(matches!(
            refused("b", config.lease(ip(2))),
            NetError::Reserved { .. }
        ));
        let far = config.lease(Ipv4Addr::new(10, 89, 0, 3));
        assert!(matches!(refused("b", far), NetError::OutsideNetwork { .. }));
        assert_eq!(leases.list().len(), 1);
    }

    #[test]
    fn an_address_that_answers_is_passed_over_and_a_wished_one_refused() {
        let (_dir, leases) = given_leases();
        let mut asked = Vec::new();
        let mut in_use = |address| {
            asked.push(address);
            Ok(address != ip(5))
        };
        let lease = leases.take_unused(&name("a"), None, &mut in_use).unwrap();
        assert_eq!(lease.address, ip(5));
        assert_eq!(asked, [ip(3), ip(4), ip(5)]);
        let wished = leases.take_unused(&name("b"), Some(ip(9)), &mut |_| Ok(true));
        assert!(matches!(wished, Err(NetError::AddressAnswers { .. })));
        let exhausted = leases.take_unused(&name("b"), None, &mut |_| Ok(true));
        assert!(matches!(exhausted, Err(NetError::PoolExhausted { .. })));
        // Who has the address already is not asked about: it would be the container itself that answers.
        let again = leases.take_unused(&name("a"), None, &mut |_| panic!("asked"));
        assert_eq!(again.unwrap(), lease);
        assert_eq!(leases.list().len(), 1);
    }

    #[test]
    fn a_book_that_cannot_be_written_changes_nothing() {
        let (dir, leases) = given_leases();
        leases.take(&name("a"), None).unwrap();
        let before = leases.list();
        drop(dir);
        assert!(matches!(
            leases.take(&name("b"), None),
            Err(NetError::LeaseFile {
                operation: "write",
                ..
            })
        ));
        assert!(leases.release(&name("a")).is_err());
        assert_eq!(leases.list(), before);
    }

    #[test]
    fn a_damaged_book_is_refused() {
        let (dir, leases) = given_leases();
        leases.take(&name("a"), None).unwrap();
        let path = dir.path().join("leases.json");
        let good = std::fs::read_to_string(&path).unwrap();
        let twice = good.replace("\"leases\": [", "\"leases\": [{\"name\": \"b\", \"lease\": {\"address\": \
            \"10.88.0.3\", \"prefix\": 24, \"gateway\": null, \"mac\": \"02:00:00:00:00:01\"}, \"moved_to\": null},");
        for bad in ["", "[]", &good[..good.len() / 2], &twice] {
            std::fs::write(&path, bad).unwrap();
            let error = Leases::open(&path, &given_config()).unwrap_err();
            assert!(matches!(
                error,
                NetError::LeaseFile {
                    operation: "read",
                    ..
                }
            ));
        }
    }
}
