//! What the book holds, and how it may change. Pure: the clock and the randomness come from outside.

use serde::{Deserialize, Serialize};

use crate::model::{Digest, Name};

use super::address::Address;
use super::token::Secret;
use super::wire::Refusal;

/// More hosts than one host ever moves containers between.
const MOST_PEERS: usize = 1024;
/// Good tokens at one time.
const MOST_TOKENS: usize = 64;
/// How long a token that is over is remembered, in seconds, to tell its bearer why it is refused.
const REMEMBERED: u64 = 24 * 3600;

/// A host that is known here by its certificate.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Peer {
    /// Its name.
    pub name: Name,
    /// Where it listens.
    pub address: Address,
    /// Its certificate.
    pub fingerprint: Digest,
    /// When it was pinned, in seconds since the epoch.
    pub added_at: u64,
}

/// Why a host cannot be pinned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PinError {
    /// It has the name of this host.
    #[error("this host has that name itself; give one of the two another name")]
    SameName,
    /// It has the certificate of this host.
    #[error("it has the certificate of this host: it is this host, or a copy of it")]
    SameCertificate,
    /// Another host has its name.
    #[error(
        "another peer has that name, with certificate {fingerprint}; if it is gone, remove it with `godwit peer remove`"
    )]
    NameTaken {
        /// The certificate of the other.
        fingerprint: Digest,
    },
    /// No more room.
    #[error("there are {MOST_PEERS} peers already; remove one with `godwit peer remove`")]
    Full,
}

impl From<PinError> for Refusal {
    fn from(error: PinError) -> Self {
        match error {
            PinError::SameName | PinError::SameCertificate => Self::SameName,
            PinError::NameTaken { .. } => Self::NameTaken,
            PinError::Full => Self::Full,
        }
    }
}

/// This host, as far as it may not be mixed up with another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Own {
    pub(super) name: Name,
    pub(super) fingerprint: Digest,
}

/// What is kept of a token.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenRecord {
    /// Hash of its secret.
    hash: Digest,
    /// When it ends, in seconds since the epoch.
    expires_at: u64,
    used: bool,
}

impl TokenRecord {
    fn is_good(&self, now: u64) -> bool {
        !self.used && now < self.expires_at
    }
}

/// The book. Every change makes a new one, so that it can be written before it counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Contents {
    peers: Vec<Peer>,
    tokens: Vec<TokenRecord>,
}

impl Contents {
    pub(super) fn peers(&self) -> &[Peer] {
        &self.peers
    }

    pub(super) fn find(&self, name: &Name) -> Option<&Peer> {
        self.peers.iter().find(|peer| peer.name == *name)
    }

    pub(super) fn pinned(&self, fingerprint: Digest) -> Option<&Peer> {
        self.peers
            .iter()
            .find(|peer| peer.fingerprint == fingerprint)
    }

    /// The name that two entries share, or the certificate: one of them could never be meant.
    pub(super) fn ambiguous(&self) -> Option<&Name> {
        self.peers.iter().enumerate().find_map(|(i, peer)| {
            let clash =
                |other: &Peer| other.name == peer.name || other.fingerprint == peer.fingerprint;
            self.peers[..i].iter().any(clash).then_some(&peer.name)
        })
    }

    /// The book with this host in it. A host that is known already by the same certificate takes its new name and
    /// address; the entry it had is returned beside.
    pub(super) fn pin(&self, own: &Own, peer: Peer) -> Result<(Self, Option<Peer>), PinError> {
        if peer.name == own.name {
            return Err(PinError::SameName);
        }
        if peer.fingerprint == own.fingerprint {
            return Err(PinError::SameCertificate);
        }
        if let Some(other) = self
            .find(&peer.name)
            .filter(|p| p.fingerprint != peer.fingerprint)
        {
            return Err(PinError::NameTaken {
                fingerprint: other.fingerprint,
            });
        }
        let mut next = self.clone();
        let known = next
            .peers
            .iter()
            .position(|p| p.fingerprint == peer.fingerprint);
        let before = match known {
            Some(at) => Some(std::mem::replace(&mut next.peers[at], peer)),
            None if next.peers.len() >= MOST_PEERS => return Err(PinError::Full),
            None => {
                next.peers.push(peer);
                None
            }
        };
        Ok((next, before))
    }

    /// The book without this host, and its entry.
    pub(super) fn unpin(&self, name: &Name) -> Option<(Self, Peer)> {
        let mut next = self.clone();
        let at = next.peers.iter().position(|peer| peer.name == *name)?;
        let peer = next.peers.remove(at);
        Some((next, peer))
    }

    /// The book as it was before `peer` was pinned in place of `before`; none if it has changed since.
    pub(super) fn undo_pin(&self, peer: &Peer, before: Option<Peer>) -> Option<Self> {
        let mut next = self.clone();
        let at = next.peers.iter().position(|p| p == peer)?;
        match before {
            Some(before) => next.peers[at] = before,
            None => {
                next.peers.remove(at);
            }
        }
        next.ambiguous().is_none().then_some(next)
    }

    /// The book with one more token; none if there are too many good ones. What is long over is forgotten.
    pub(super) fn issue(&self, secret: &Secret, expires_at: u64, now: u64) -> Option<Self> {
        let mut next = self.clone();
        next.tokens
            .retain(|token| now < token.expires_at.saturating_add(REMEMBERED));
        let good = next
            .tokens
            .iter()
            .filter(|token| token.is_good(now))
            .count();
        if good >= MOST_TOKENS {
            return None;
        }
        // Those that are over are remembered out of kindness only: the oldest make room.
        let mut surplus = next.tokens.len().saturating_sub(4 * MOST_TOKENS);
        next.tokens.retain(|token| {
            let drop = surplus > 0 && !token.is_good(now);
            surplus -= usize::from(drop);
            !drop
        });
        next.tokens.push(TokenRecord {
            hash: secret.hash(),
            expires_at,
            used: false,
        });
        Some(next)
    }

    /// The book with the token of this secret spent.
    pub(super) fn spend(&self, secret: &Secret, now: u64) -> Result<Self, Refusal> {
        let mut next = self.clone();
        // blake3's comparison takes the same time wherever two hashes differ, and no token is left out.
        let offered = blake3::Hash::from(secret.hash().0);
        let mut found = None;
        for (i, token) in next.tokens.iter().enumerate() {
            if blake3::Hash::from(token.hash.0) == offered {
                found = Some(i);
            }
        }
        let token = &mut next.tokens[found.ok_or(Refusal::UnknownToken)?];
        if token.used {
            Err(Refusal::UsedToken)
        } else if !token.is_good(now) {
            Err(Refusal::ExpiredToken)
        } else {
            token.used = true;
            Ok(next)
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;

    fn own() -> Own {
        Own {
            name: "alpha".parse().unwrap(),
            fingerprint: Digest([0; 32]),
        }
    }

    fn peer(name: &str, mark: u8) -> Peer {
        Peer {
            name: name.parse().unwrap(),
            address: "10.0.0.2:7447".parse().unwrap(),
            fingerprint: Digest([mark; 32]),
            added_at: 5,
        }
    }

    #[test]
    fn names_and_certificates_stay_unique() {
        let empty = Contents::default();
        assert_eq!(empty.pin(&own(), peer("alpha", 1)), Err(PinError::SameName));
        assert_eq!(
            empty.pin(&own(), peer("beta", 0)),
            Err(PinError::SameCertificate)
        );
        let (one, before) = empty.pin(&own(), peer("beta", 1)).unwrap();
        assert_eq!(before, None);
        let taken = one.pin(&own(), peer("beta", 2)).unwrap_err();
        assert_eq!(
            taken,
            PinError::NameTaken {
                fingerprint: Digest([1; 32])
            }
        );
        let (renamed, before) = one.pin(&own(), peer("gamma", 1)).unwrap();
        assert_eq!(before, Some(peer("beta", 1)));
        assert_eq!(renamed.peers(), [peer("gamma", 1)]);
        assert_eq!(
            renamed.undo_pin(&peer("gamma", 1), before),
            Some(one.clone())
        );
        assert_eq!(one.undo_pin(&peer("beta", 1), None), Some(empty));
        assert_eq!(one.undo_pin(&peer("beta", 2), None), None);
    }

    #[test]
    fn a_full_book_takes_no_more_hosts_but_still_updates_them() {
        let mut book = Contents::default();
        for i in 0..MOST_PEERS {
            let mut peer = peer(&format!("p{i}"), 1);
            peer.fingerprint.0[..8].copy_from_slice(&(i as u64).to_le_bytes());
            book.peers.push(peer);
        }
        assert_eq!(book.pin(&own(), peer("beta", 9)), Err(PinError::Full));
        let known = book.peers[7].clone();
        assert!(book.pin(&own(), known).is_ok());
    }

    #[test]
    fn a_token_opens_once_and_in_time() {
        let (secret, other) = (Secret([1; 32]), Secret([2; 32]));
        let book = Contents::default().issue(&secret, 100, 0).unwrap();
        assert_eq!(book.spend(&other, 0), Err(Refusal::UnknownToken));
        assert_eq!(book.spend(&secret, 100), Err(Refusal::ExpiredToken));
        let spent = book.spend(&secret, 99).unwrap();
        assert_eq!(spent.spend(&secret, 99), Err(Refusal::UsedToken));
        assert_eq!(spent.spend(&secret, 100), Err(Refusal::UsedToken));
        let later = spent
            .issue(&other, 100 + REMEMBERED + 9, 100 + REMEMBERED)
            .unwrap();
        assert_eq!(later.spend(&secret, 0), Err(Refusal::UnknownToken));
    }

    #[test]
    fn tokens_are_bounded_and_those_that_are_over_make_room() {
        let mut book = Contents::default();
        for i in 0..MOST_TOKENS {
            book = book.issue(&Secret([i as u8; 32]), 100, 0).unwrap();
        }
        let more = Secret([200; 32]);
        assert_eq!(book.issue(&more, 100, 0), None);
        let book = book.spend(&Secret([0; 32]), 0).unwrap();
        assert!(book.issue(&more, 100, 0).is_some());
        let mut many = Contents::default();
        for i in 0..1000u64 {
            let mut secret = Secret([0; 32]);
            secret.0[..8].copy_from_slice(&i.to_le_bytes());
            many = many
                .issue(&secret, i, 0)
                .unwrap()
                .spend(&secret, 0)
                .unwrap_or(many);
        }
        assert!(
            many.tokens.len() <= 4 * MOST_TOKENS + 1,
            "{}",
            many.tokens.len()
        );
    }

    #[test]
    fn an_ambiguous_book_is_noticed() {
        let mut book = Contents {
            peers: vec![peer("beta", 1), peer("gamma", 2)],
            tokens: Vec::new(),
        };
        assert_eq!(book.ambiguous(), None);
        book.peers.push(peer("delta", 1));
        assert_eq!(book.ambiguous().unwrap().as_str(), "delta");
    }
}
