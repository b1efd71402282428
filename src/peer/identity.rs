//! Who this host is: a key, and the certificate that it signed for itself.

use std::fmt;
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, PKCS_ED25519};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::{CertifiedKey, SingleCertAndKey};

use crate::model::{Digest, Name};
use crate::sys::file;

use super::config::provider;
use super::error::PeerError;

const KEY: &str = "key.pem";
const CERTIFICATE: &str = "certificate.pem";

/// The certificate and the key of this host. Cheap to clone; its debug form shows the fingerprint only.
#[derive(Clone)]
pub struct Identity {
    fingerprint: Digest,
    key: Arc<CertifiedKey>,
}

/// The fingerprint of a certificate: BLAKE3 of its DER.
pub(super) fn fingerprint(certificate: &CertificateDer<'_>) -> Digest {
    Digest(*blake3::hash(certificate).as_bytes())
}

impl Identity {
    /// Reads the identity in `dir`, or makes one for the host `name` if `dir` is missing or empty.
    ///
    /// It comes into being as a whole: after a crash there is a complete identity, or none. An incomplete or exposed
    /// one is an error and left as it is. The name stands in the certificate for people to read; nobody checks it.
    pub fn load_or_create(dir: &Path, name: &Name) -> Result<Self, PeerError> {
        if is_missing_or_empty(dir)? {
            create(dir, name)?;
        }
        Self::load(dir)
    }

    /// What peers pin.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    /// The certificate itself.
    pub fn certificate(&self) -> &[u8] {
        &self.key.cert[0]
    }

    pub(super) fn resolver(&self) -> Arc<SingleCertAndKey> {
        Arc::new(SingleCertAndKey::from(self.key.clone()))
    }

    fn load(dir: &Path) -> Result<Self, PeerError> {
        let key_path = dir.join(KEY);
        let key_text = read(dir, KEY)?;
        let mode = fs::metadata(&key_path)
            .map_err(failed("read the mode of", &key_path))?
            .permissions()
            .mode()
            & 0o7777;
        if mode & 0o077 != 0 {
            return Err(PeerError::KeyExposed {
                path: key_path,
                mode,
            });
        }
        let pem = |path: PathBuf| move |source| PeerError::IdentityPem { path, source };
        let key = PrivateKeyDer::from_pem_slice(&key_text).map_err(pem(key_path))?;
        let certificate = CertificateDer::from_pem_slice(&read(dir, CERTIFICATE)?)
            .map_err(pem(dir.join(CERTIFICATE)))?;
        let fingerprint = fingerprint(&certificate);
        let key =
            CertifiedKey::from_der(vec![certificate], key, &provider()).map_err(|source| {
                PeerError::IdentityMismatch {
                    dir: dir.to_owned(),
                    source,
                }
            })?;
        Ok(Self {
            fingerprint,
            key: Arc::new(key),
        })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Identity({})", self.fingerprint)
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> PeerError {
    let path = path.to_owned();
    move |source| PeerError::File {
        action,
        path,
        source,
    }
}

fn is_missing_or_empty(dir: &Path) -> Result<bool, PeerError> {
    match fs::read_dir(dir) {
        Ok(mut entries) => Ok(entries.next().is_none()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        Err(error) => Err(failed("read the directory", dir)(error)),
    }
}

fn read(dir: &Path, missing: &'static str) -> Result<Vec<u8>, PeerError> {
    let path = dir.join(missing);
    fs::read(&path).map_err(|error| {
        if error.kind() == io::ErrorKind::NotFound {
            PeerError::IdentityIncomplete {
                dir: dir.to_owned(),
                missing,
            }
        } else {
            failed("read", &path)(error)
        }
    })
}

/// Makes both files in a directory beside `dir` and puts it into place with one rename. Of two makers at once the
/// second finds the place taken and uses what the first made.
fn create(dir: &Path, name: &Name) -> Result<(), PeerError> {
    let parent = match dir.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    fs::create_dir_all(parent).map_err(failed("make the directory", parent))?;
    let staged = parent.join(format!(".identity.{}.new", std::process::id()));
    // A process of the same id may have died here before; what it left is nobody's identity.
    let _ = fs::remove_dir_all(&staged);
    let result = stage(&staged, name).and_then(|()| match fs::rename(&staged, dir) {
        Err(_) if !is_missing_or_empty(dir)? => Ok(()),
        result => result.map_err(failed("put the new identity into", dir)),
    });
    // After success nothing is left to remove; after a failure the first one is worth telling.
    let _ = fs::remove_dir_all(&staged);
    result?;
    file::sync_directory(parent).map_err(failed("write to the disk", parent))
}

fn stage(staged: &Path, name: &Name) -> Result<(), PeerError> {
    let (key, certificate) = generate(name).map_err(|source| PeerError::Certificate {
        name: name.clone(),
        source,
    })?;
    DirBuilder::new()
        .mode(0o700)
        .create(staged)
        .map_err(failed("make the directory", staged))?;
    for (file_name, text) in [(KEY, key), (CERTIFICATE, certificate)] {
        let path = staged.join(file_name);
        file::replace(&path, text.as_bytes()).map_err(failed("write", &path))?;
    }
    Ok(())
}

/// A key and its certificate, as PEM. The dates in the certificate are rcgen's (1975 to 4096): a pin has no expiry.
fn generate(name: &Name) -> Result<(String, String), rcgen::Error> {
    let key = KeyPair::generate_for(&PKCS_ED25519)?;
    let mut params = CertificateParams::new([name.as_str().to_owned()])?;
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::CommonName, name.as_str());
    let certificate = params.self_signed(&key)?;
    Ok((key.serialize_pem(), certificate.pem()))
}

#[cfg(test)]
mod test {
    use super::*;

    fn name() -> Name {
        "alpha".parse().unwrap()
    }

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn an_identity_is_made_once_and_stays() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("state/identity");
        let first = Identity::load_or_create(&dir, &name()).unwrap();
        let again = Identity::load_or_create(&dir, &"other".parse().unwrap()).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        assert_eq!(mode(&dir), 0o700);
        assert_eq!(mode(&dir.join(KEY)), 0o600);
        assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1);
        let expected = blake3::hash(first.certificate());
        assert_eq!(first.fingerprint().0, *expected.as_bytes());
        assert!(!format!("{first:?}").contains("PRIVATE"));
    }

    #[test]
    fn an_empty_directory_is_filled() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("identity");
        fs::create_dir(&place).unwrap();
        Identity::load_or_create(&place, &name()).unwrap();
        assert_eq!(mode(&place), 0o700);
    }

    #[test]
    fn a_damaged_identity_is_never_replaced() {
        let state = tempfile::tempdir().unwrap();
        let dir = state.path().join("identity");
        Identity::load_or_create(&dir, &name()).unwrap();
        let other_dir = state.path().join("other");
        Identity::load_or_create(&other_dir, &name()).unwrap();
        let certificate = fs::read(dir.join(CERTIFICATE)).unwrap();

        fs::set_permissions(dir.join(KEY), fs::Permissions::from_mode(0o640)).unwrap();
        let exposed = Identity::load_or_create(&dir, &name()).unwrap_err();
        assert!(matches!(exposed, PeerError::KeyExposed { mode: 0o640, .. }));
        fs::set_permissions(dir.join(KEY), fs::Permissions::from_mode(0o600)).unwrap();

        fs::copy(other_dir.join(CERTIFICATE), dir.join(CERTIFICATE)).unwrap();
        let mismatch = Identity::load_or_create(&dir, &name()).unwrap_err();
        assert!(matches!(mismatch, PeerError::IdentityMismatch { .. }));

        fs::write(dir.join(CERTIFICATE), "nonsense").unwrap();
        let nonsense = Identity::load_or_create(&dir, &name()).unwrap_err();
        assert!(matches!(nonsense, PeerError::IdentityPem { .. }));

        fs::remove_file(dir.join(CERTIFICATE)).unwrap();
        let incomplete = Identity::load_or_create(&dir, &name()).unwrap_err();
        assert!(matches!(
            incomplete,
            PeerError::IdentityIncomplete {
                missing: CERTIFICATE,
                ..
            }
        ));
        fs::write(dir.join(CERTIFICATE), certificate).unwrap();
        Identity::load_or_create(&dir, &name()).unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_written_leaves_nothing() {
        let state = tempfile::tempdir().unwrap();
        fs::write(state.path().join("file"), "").unwrap();
        let error = Identity::load_or_create(&state.path().join("file/identity"), &name());
        assert!(matches!(error, Err(PeerError::File { .. })));
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 1);
    }
}
