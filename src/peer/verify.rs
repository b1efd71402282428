//! Who may pass a handshake: the rules that TLS asks.
//!
//! Each verifier serves one handshake. It keeps the fingerprint it was shown, because TLS forgets the certificate
//! that it refuses, and a refusal must name it. What a certificate says about names, dates and issuers counts for
//! nothing; that its owner holds its key is always proved, by the signature over this handshake.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{CertificateError, DigitallySignedStruct, DistinguishedName, Error, SignatureScheme};

use crate::model::Digest;

use super::book::PeerBook;
use super::config::provider;
use super::identity::fingerprint;

/// The dialling side's rule: exactly this certificate.
#[derive(Debug)]
pub(super) struct OnlyThis {
    expected: Digest,
    shown: OnceLock<Digest>,
    algorithms: WebPkiSupportedAlgorithms,
}

/// The listening side's rule.
#[derive(Debug)]
pub(super) struct Guard {
    /// The book whose peers may pass; none where a token decides, after the handshake.
    book: Option<Arc<PeerBook>>,
    shown: OnceLock<Digest>,
    refused: AtomicBool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl OnlyThis {
    pub(super) fn new(expected: Digest) -> Arc<Self> {
        Arc::new(Self {
            expected,
            shown: OnceLock::new(),
            algorithms: provider().signature_verification_algorithms,
        })
    }

    /// The certificate that was shown, once one was.
    pub(super) fn shown(&self) -> Option<Digest> {
        self.shown.get().copied()
    }
}

impl Guard {
    /// Lets the peers in `book` pass.
    pub(super) fn peers(book: Arc<PeerBook>) -> Arc<Self> {
        Self::new(Some(book))
    }

    /// Lets everybody pass who proves to own a certificate. What comes after the handshake must ask for a token.
    pub(super) fn bearers() -> Arc<Self> {
        Self::new(None)
    }

    /// Whether it was the certificate that was refused, and not something after it.
    pub(super) fn has_refused(&self) -> bool {
        self.refused.load(Ordering::Relaxed)
    }

    fn new(book: Option<Arc<PeerBook>>) -> Arc<Self> {
        Arc::new(Self {
            book,
            shown: OnceLock::new(),
            refused: AtomicBool::new(false),
            algorithms: provider().signature_verification_algorithms,
        })
    }

    /// The certificate that was shown, once one was.
    pub(super) fn shown(&self) -> Option<Digest> {
        self.shown.get().copied()
    }
}

/// Becomes the alert `access_denied` on the wire.
fn stranger() -> Error {
    Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure)
}

fn no_tls12() -> Error {
    Error::General("TLS 1.2 is not spoken here".to_owned())
}

impl ServerCertVerifier for OnlyThis {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = *self.shown.get_or_init(|| fingerprint(end_entity));
        if shown == self.expected && shown == fingerprint(end_entity) {
            Ok(ServerCertVerified::assertion())
        } else {
            Err(stranger())
        }
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

impl ClientCertVerifier for Guard {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let shown = *self.shown.get_or_init(|| fingerprint(end_entity));
        let unknown = |book: &Arc<PeerBook>| book.pinned(shown).is_none();
        if shown != fingerprint(end_entity) || self.book.as_ref().is_some_and(unknown) {
            self.refused.store(true, Ordering::Relaxed);
            return Err(stranger());
        }
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
