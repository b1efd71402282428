//! The book of this host: who it is, whom it knows, and which tokens are out.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::TryRngCore;
use rand::rngs::OsRng;
use tokio::sync::watch;

use crate::model::{Digest, Name};

use super::address::Address;
use super::error::{PeerError, chain};
use super::identity::Identity;
use super::record;
use super::refusals::{Counters, Refusals};
use super::state::{Contents, Own, Peer};
use super::token::{JoinToken, Secret};
use super::wire::Refusal;

/// How long a token is good if nobody says otherwise.
const TOKEN_LIFE: Duration = Duration::from_secs(10 * 60);
const LONGEST_TOKEN_LIFE: Duration = Duration::from_secs(7 * 24 * 3600);

/// Peers and tokens, on the disk before they count. Readers never wait for a writer's disk.
pub struct PeerBook {
    file: PathBuf,
    identity: Identity,
    own: Own,
    advertise: Address,
    contents: RwLock<Arc<Contents>>,
    /// Held over reading, writing the file and publishing: changes are one after the other.
    writing: Mutex<()>,
    changes: watch::Sender<u64>,
    pub(super) counters: Counters,
}

/// A host that a token let in, and the entry it had before.
#[derive(Debug)]
pub(super) struct Admitted {
    pub(super) peer: Peer,
    before: Option<Peer>,
}

impl PeerBook {
    /// How long a token is good if nobody says otherwise: ten minutes.
    pub const TOKEN_LIFE: Duration = TOKEN_LIFE;

    /// Reads the book in `file`; a missing file is an empty book. `name` and `advertise` are what peers learn of this
    /// host: its name, and where they can dial it.
    pub fn open(
        file: &Path,
        identity: Identity,
        name: Name,
        advertise: Address,
    ) -> Result<Self, PeerError> {
        let contents = record::read(file)?;
        if let Some(name) = contents.ambiguous() {
            return Err(PeerError::BookAmbiguous {
                path: file.to_owned(),
                name: name.clone(),
            });
        }
        let own = Own {
            name,
            fingerprint: identity.fingerprint(),
        };
        Ok(Self {
            file: file.to_owned(),
            identity,
            own,
            advertise,
            contents: RwLock::new(Arc::new(contents)),
            writing: Mutex::new(()),
            changes: watch::Sender::new(0),
            counters: Counters::default(),
        })
    }

    /// The name of this host.
    pub fn name(&self) -> &Name {
        &self.own.name
    }

    /// Where peers dial this host.
    pub fn advertise(&self) -> &Address {
        &self.advertise
    }

    /// The certificate of this host.
    pub fn fingerprint(&self) -> Digest {
        self.own.fingerprint
    }

    pub(super) fn identity(&self) -> &Identity {
        &self.identity
    }

    /// All peers, by name.
    pub fn list(&self) -> Vec<Peer> {
        let mut peers = self.snapshot().peers().to_vec();
        peers.sort_by(|a, b| a.name.cmp(&b.name));
        peers
    }

    /// The peer of this name.
    pub fn find(&self, name: &Name) -> Option<Peer> {
        self.snapshot().find(name).cloned()
    }

    /// The peer with this certificate.
    pub fn pinned(&self, fingerprint: Digest) -> Option<Peer> {
        self.snapshot().pinned(fingerprint).cloned()
    }

    /// Whether a peer listens at this IP address. One that was joined by its DNS name is not found.
    pub(super) fn has_peer_at(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        let contents = self.snapshot();
        let mut addresses = contents.peers().iter().map(|peer| &peer.address);
        addresses.any(|address| address.ip() == Some(ip))
    }

    /// How many have been refused since the daemon began.
    pub fn refusals(&self) -> Refusals {
        self.counters.read()
    }

    /// A token that lets one host in within `ttl`. On success it is on the disk. Blocks on the disk.
    pub fn token(&self, ttl: Duration) -> Result<JoinToken, PeerError> {
        if !(Duration::from_secs(1)..=LONGEST_TOKEN_LIFE).contains(&ttl) {
            return Err(PeerError::TokenLife { ttl });
        }
        let mut secret = Secret([0; 32]);
        OsRng
            .try_fill_bytes(&mut secret.0)
            .map_err(|source| PeerError::Random { source })?;
        let now = now();
        self.change(|contents| {
            contents
                .issue(&secret, now + ttl.as_secs(), now)
                .map(|next| (next, ()))
                .ok_or(PeerError::TooManyTokens)
        })?;
        Ok(JoinToken::new(self.own.fingerprint, secret))
    }

    /// Forgets a peer. From here on it is a stranger; streams that are open to it stay open until those who hold them
    /// close them: see [`PeerBook::until_removed`]. Blocks on the disk.
    pub fn remove(&self, name: &Name) -> Result<Peer, PeerError> {
        self.change(|contents| {
            contents
                .unpin(name)
                .ok_or_else(|| PeerError::UnknownPeer { name: name.clone() })
        })
    }

    /// Counts the changes of the book; whoever shows the peers can wait for the next one.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Returns once no peer has this certificate (any more). Whoever holds a stream races it against this.
    pub async fn until_removed(&self, fingerprint: Digest) {
        let mut changes = self.changes();
        while self.pinned(fingerprint).is_some() {
            if changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Pins a host whose certificate has been checked. Blocks on the disk.
    pub(super) fn pin(
        &self,
        name: Name,
        address: Address,
        fingerprint: Digest,
    ) -> Result<Peer, PeerError> {
        let peer = Peer {
            name,
            address,
            fingerprint,
            added_at: now(),
        };
        self.change(|contents| match contents.pin(&self.own, peer.clone()) {
            Ok((next, _)) => Ok((next, peer.clone())),
            Err(source) => Err(PeerError::Pin {
                name: peer.name.clone(),
                source,
            }),
        })
    }

    /// Spends the token of `secret` and pins its bearer, in one step on the disk. A bearer that cannot be pinned does
    /// not spend it. Blocks on the disk.
    pub(super) fn admit(
        &self,
        secret: &Secret,
        name: Name,
        address: Address,
        fingerprint: Digest,
    ) -> Result<Admitted, Refusal> {
        let now = now();
        let peer = Peer {
            name,
            address,
            fingerprint,
            added_at: now,
        };
        let result = self.change(|contents| {
            let spent = contents.spend(secret, now).map_err(Unadmitted::Refused)?;
            let (next, before) = spent
                .pin(&self.own, peer.clone())
                .map_err(|error| Unadmitted::Refused(error.into()))?;
            let peer = peer.clone();
            Ok((next, Admitted { peer, before }))
        });
        result.map_err(|error| match error {
            Unadmitted::Refused(refusal) => refusal,
            Unadmitted::Unwritten(error) => {
                tracing::error!(error = chain(&error), "a new peer could not be recorded");
                Refusal::Failed
            }
        })
    }

    /// Takes back an admission; the token stays spent. Blocks on the disk.
    pub(super) fn withdraw(&self, admitted: Admitted) -> Result<(), PeerError> {
        let Admitted { peer, before } = admitted;
        self.change(|contents| {
            // Whatever was changed meanwhile was somebody's wish, and newer.
            let undone = contents.undo_pin(&peer, before);
            Ok((undone.unwrap_or_else(|| contents.clone()), ()))
        })
    }

    fn snapshot(&self) -> Arc<Contents> {
        let contents = self.contents.read().unwrap_or_else(PoisonError::into_inner);
        contents.clone()
    }

    /// Computes the next book, writes it, and only then lets it count.
    fn change<T, E: From<PeerError>>(
        &self,
        compute: impl FnOnce(&Contents) -> Result<(Contents, T), E>,
    ) -> Result<T, E> {
        let _one_at_a_time = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let (next, value) = compute(&self.snapshot())?;
        record::write(&self.file, &next)?;
        *self
            .contents
            .write()
            .unwrap_or_else(PoisonError::into_inner) = Arc::new(next);
        self.changes.send_modify(|count| *count += 1);
        Ok(value)
    }
}

/// Why a bearer is not admitted: told to it, or kept here.
enum Unadmitted {
    Refused(Refusal),
    Unwritten(PeerError),
}

impl From<PeerError> for Unadmitted {
    fn from(error: PeerError) -> Self {
        Self::Unwritten(error)
    }
}

impl fmt::Debug for PeerBook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerBook({} in {})", self.own.name, self.file.display())
    }
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |time| time.as_secs())
}

#[cfg(test)]
mod test {
    use super::*;
    use std::fs;

    fn open(dir: &Path) -> Result<PeerBook, PeerError> {
        let name: Name = "alpha".parse().unwrap();
        let identity = Identity::load_or_create(&dir.join("identity"), &name)?;
        let advertise = "10.0.0.1:7447".parse().unwrap();
        PeerBook::open(&dir.join("peers.json"), identity, name, advertise)
    }

    fn pin(book: &PeerBook, name: &str, mark: u8) -> Result<Peer, PeerError> {
        let address = "10.0.0.2:7447".parse().unwrap();
        book.pin(name.parse().unwrap(), address, Digest([mark; 32]))
    }

    #[test]
    fn the_book_survives_a_restart_and_holds_no_secret() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path()).unwrap();
        pin(&book, "gamma", 3).unwrap();
        pin(&book, "beta", 2).unwrap();
        let token = book.token(PeerBook::TOKEN_LIFE).unwrap();
        let text = fs::read_to_string(dir.path().join("peers.json")).unwrap();
        assert!(!text.contains(&Digest(token.secret().0).to_string()));

        let book = open(dir.path()).unwrap();
        let names: Vec<String> = book.list().iter().map(|p| p.name.to_string()).collect();
        assert_eq!(names, ["beta", "gamma"]);
        let admit = |book: &PeerBook| {
            let address = "10.0.0.4:7447".parse().unwrap();
            book.admit(
                token.secret(),
                "delta".parse().unwrap(),
                address,
                Digest([4; 32]),
            )
        };
        admit(&book).unwrap();
        let book = open(dir.path()).unwrap();
        assert_eq!(admit(&book).unwrap_err(), Refusal::UsedToken);
        assert!(book.find(&"delta".parse().unwrap()).is_some());
    }

    #[test]
    fn a_name_that_cannot_be_does_not_spend_the_token() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path()).unwrap();
        pin(&book, "beta", 2).unwrap();
        let token = book.token(PeerBook::TOKEN_LIFE).unwrap();
        let admit = |name: &str| {
            let address = "10.0.0.3:7447".parse().unwrap();
            book.admit(
                token.secret(),
                name.parse().unwrap(),
                address,
                Digest([3; 32]),
            )
        };
        assert_eq!(admit("alpha").unwrap_err(), Refusal::SameName);
        assert_eq!(admit("beta").unwrap_err(), Refusal::NameTaken);
        let admitted = admit("gamma").unwrap();
        book.withdraw(admitted).unwrap();
        assert_eq!(book.list().len(), 1);
        assert_eq!(admit("gamma").unwrap_err(), Refusal::UsedToken);
    }

    #[test]
    fn what_cannot_be_written_does_not_count() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path()).unwrap();
        let token = book.token(PeerBook::TOKEN_LIFE).unwrap();
        fs::remove_file(dir.path().join("peers.json")).unwrap();
        fs::create_dir(dir.path().join("peers.json")).unwrap();
        let address: Address = "10.0.0.3:7447".parse().unwrap();
        let name: Name = "beta".parse().unwrap();
        let admit = || {
            book.admit(
                token.secret(),
                name.clone(),
                address.clone(),
                Digest([3; 32]),
            )
        };
        assert_eq!(admit().unwrap_err(), Refusal::Failed);
        assert!(book.list().is_empty());
        fs::remove_dir(dir.path().join("peers.json")).unwrap();
        admit().unwrap();
    }

    #[test]
    fn a_book_that_is_not_understood_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("peers.json");
        for bad in ["", "{}", "[]", r#"{"peers":[],"tokens":[],"more":1}"#] {
            fs::write(&file, bad).unwrap();
            let error = open(dir.path()).unwrap_err();
            assert!(matches!(error, PeerError::BookFormat { .. }), "{bad}");
            assert_eq!(fs::read_to_string(&file).unwrap(), bad);
        }
    }

    #[test]
    fn a_token_lives_between_a_second_and_a_week() {
        let dir = tempfile::tempdir().unwrap();
        let book = open(dir.path()).unwrap();
        for bad in [0, 999, 7 * 24 * 3600 * 1000 + 1] {
            let error = book.token(Duration::from_millis(bad)).unwrap_err();
            assert!(matches!(error, PeerError::TokenLife { .. }), "{bad}");
        }
        assert!(!dir.path().join("peers.json").exists());
    }

    #[tokio::test]
    async fn a_removal_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let book = Arc::new(open(dir.path()).unwrap());
        let peer = pin(&book, "beta", 2).unwrap();
        let waiting = tokio::spawn({
            let book = book.clone();
            async move { book.until_removed(peer.fingerprint).await }
        });
        pin(&book, "gamma", 3).unwrap();
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        book.remove(&peer.name).unwrap();
        tokio::time::timeout(Duration::from_secs(5), waiting)
            .await
            .unwrap()
            .unwrap();
        let error = book.remove(&peer.name).unwrap_err();
        assert!(matches!(error, PeerError::UnknownPeer { .. }));
    }
}
