//! Hosts that join, dial and refuse each other, over TCP on the loopback; and the people who try without an invitation.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::io::{self, Write};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use godwit::model::{Digest, Name};
use godwit::peer::{
    Address, Identity, Peer, PeerBook, PeerError, PeerStream, PinError, Refusal, Refusals, accept,
    dial, join,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ClientSessionMemoryCache, ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, ring};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::{TLS12, TLS13};
use rustls::{
    AlertDescription, ClientConfig, DigitallySignedStruct, HandshakeKind, ServerConfig,
    SignatureScheme, SupportedProtocolVersion,
};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

const PEER: &[u8] = b"godwit/1";
const JOIN: &[u8] = b"godwit-join/1";

/// What all hosts of all tests log. Set up before the first of them says anything: `tracing` remembers for ever that
/// nobody listens.
static LOG: LazyLock<Log> = LazyLock::new(|| {
    let log = Log::default();
    let writer = log.clone();
    tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || writer.clone())
        .init();
    log
});

#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A host with its daemon's door open.
struct Host {
    dir: TempDir,
    book: Arc<PeerBook>,
    address: SocketAddr,
    streams: mpsc::UnboundedReceiver<(Peer, PeerStream)>,
    refused: Arc<Mutex<Vec<(SocketAddr, String)>>>,
    shutdown: CancellationToken,
    task: JoinHandle<()>,
}

impl Host {
    async fn new(name: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let advertise = listener.local_addr().unwrap();
        Self::at(tempfile::tempdir().unwrap(), name, listener, advertise).await
    }

    async fn at(dir: TempDir, name: &str, listener: TcpListener, advertise: SocketAddr) -> Self {
        LazyLock::force(&LOG);
        let name: Name = name.parse().unwrap();
        let identity = Identity::load_or_create(&dir.path().join("identity"), &name).unwrap();
        let file = dir.path().join("peers.json");
        let book = PeerBook::open(&file, identity, name, Address::from(advertise)).unwrap();
        let book = Arc::new(book);
        let address = listener.local_addr().unwrap();
        let (sender, streams) = mpsc::unbounded_channel();
        let refused = Arc::new(Mutex::new(Vec::new()));
        let shutdown = CancellationToken::new();
        let on_refused = {
            let refused = refused.clone();
            Arc::new(move |from, why| refused.lock().unwrap().push((from, why)))
        };
        let task = tokio::spawn(accept(
            book.clone(),
            listener,
            shutdown.clone(),
            move |peer, stream| {
                let _ = sender.send((peer, stream));
            },
            on_refused,
        ));
        Self {
            dir,
            book,
            address,
            streams,
            refused,
            shutdown,
            task,
        }
    }

    fn name(&self) -> &Name {
        self.book.name()
    }

    fn token(&self) -> String {
        self.book.token(PeerBook::TOKEN_LIFE).unwrap().to_string()
    }

    async fn join(&self, other: &Host, token: &str) -> Result<Peer, PeerError> {
        join(&self.book, &other.address.to_string(), token).await
    }

    fn names(&self) -> Vec<String> {
        let peers = self.book.list();
        peers.into_iter().map(|peer| peer.name.into()).collect()
    }

    async fn stop(self) -> TempDir {
        self.shutdown.cancel();
        self.task.await.unwrap();
        self.dir
    }

    /// Waits until somebody has been refused for a reason that says `why`.
    #[track_caller]
    fn check_refused(&self, why: &str) -> impl Future<Output = SocketAddr> {
        let (refused, why) = (self.refused.clone(), why.to_owned());
        async move {
            for _ in 0..500 {
                let found = refused
                    .lock()
                    .unwrap()
                    .iter()
                    .find_map(|(from, reason)| reason.contains(&why).then_some(*from));
                if let Some(from) = found {
                    return from;
                }
                sleep(Duration::from_millis(10)).await;
            }
            panic!(
                "nobody was refused because of {why:?}: {:?}",
                refused.lock().unwrap()
            );
        }
    }
}

/// Two hosts that know each other.
async fn given_pair() -> (Host, Host) {
    let (alpha, beta) = (Host::new("alpha").await, Host::new("beta").await);
    beta.join(&alpha, &alpha.token()).await.unwrap();
    (alpha, beta)
}

async fn check_talk(from: &Host, to: &mut Host) {
    let mut here = dial(&from.book, to.name()).await.unwrap();
    let (peer, mut there) = to.streams.recv().await.unwrap();
    assert_eq!((&peer.name, there.peer()), (from.name(), from.name()));
    assert_eq!(there.fingerprint(), from.book.fingerprint());
    assert_eq!(here.peer(), to.name());
    here.write_all(b"ping").await.unwrap();
    let mut heard = [0; 4];
    there.read_exact(&mut heard).await.unwrap();
    there.write_all(b"pong").await.unwrap();
    there.shutdown().await.unwrap();
    let mut answer = Vec::new();
    here.read_to_end(&mut answer).await.unwrap();
    assert_eq!((&heard, answer.as_slice()), (b"ping", b"pong".as_slice()));
}

/// A client of no manners: takes any server, and shows what it likes.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }
    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }
    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn certificate(state: &Path) -> CertificateDer<'static> {
    CertificateDer::from_pem_file(state.join("identity/certificate.pem")).unwrap()
}

fn key(state: &Path) -> PrivateKeyDer<'static> {
    PrivateKeyDer::from_pem_file(state.join("identity/key.pem")).unwrap()
}

/// The certificate of one host with the key of another (or the same).
fn shows(certificate_of: &Path, key_of: &Path) -> Arc<SingleCertAndKey> {
    let key = provider()
        .key_provider
        .load_private_key(key(key_of))
        .unwrap();
    let pair = CertifiedKey::new(vec![certificate(certificate_of)], key);
    Arc::new(SingleCertAndKey::from(pair))
}

fn raw_config(
    version: &'static SupportedProtocolVersion,
    alpn: &[&[u8]],
    shown: Option<Arc<dyn ResolvesClientCert>>,
) -> ClientConfig {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[version])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody));
    let mut config = match shown {
        Some(shown) => builder.with_client_cert_resolver(shown),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|alpn| alpn.to_vec()).collect();
    config
}

type RawStream = tokio_rustls::client::TlsStream<TcpStream>;

async fn raw_connect(config: ClientConfig, to: &Host) -> io::Result<RawStream> {
    let tcp = TcpStream::connect(to.address).await?;
    let name = ServerName::try_from("anything").unwrap();
    TlsConnector::from(Arc::new(config))
        .connect(name, tcp)
        .await
}

/// Connects and reads one byte: the alert that ends it, if one does.
async fn alert_of(config: ClientConfig, to: &Host) -> AlertDescription {
    let error = match raw_connect(config, to).await {
        Ok(mut tls) => tls.read_u8().await.expect_err("let in"),
        Err(error) => error,
    };
    match error
        .get_ref()
        .and_then(|e| e.downcast_ref::<rustls::Error>())
    {
        Some(rustls::Error::AlertReceived(alert)) => *alert,
        _ => panic!("no alert: {error:?}"),
    }
}

#[tokio::test]
async fn joining_pins_both_hosts_and_each_can_dial_the_other() {
    let (mut alpha, mut beta) = (Host::new("alpha").await, Host::new("beta").await);
    let mut changes = alpha.book.changes();
    let token = alpha.token();
    let peer = beta.join(&alpha, &token).await.unwrap();
    assert_eq!(peer.name.as_str(), "alpha");
    assert_eq!(peer.fingerprint, alpha.book.fingerprint());
    assert_eq!(peer.address, *alpha.book.advertise());
    assert!(peer.added_at > 1_600_000_000);
    assert_eq!(
        (alpha.names(), beta.names()),
        (vec!["beta".into()], vec!["alpha".into()])
    );
    let pinned = alpha.book.find(beta.name()).unwrap();
    assert_eq!(pinned.fingerprint, beta.book.fingerprint());
    assert_eq!(pinned.address, *beta.book.advertise());
    assert!(changes.has_changed().unwrap() && *changes.borrow_and_update() >= 2);
    check_talk(&alpha, &mut beta).await;
    check_talk(&beta, &mut alpha).await;
    assert!(alpha.refused.lock().unwrap().is_empty());
}

#[tokio::test]
async fn peers_know_each_other_after_a_restart() {
    let (alpha, mut beta) = given_pair().await;
    let address = alpha.address;
    let dir = alpha.stop().await;
    let error = dial(&beta.book, &"alpha".parse().unwrap())
        .await
        .unwrap_err();
    assert!(matches!(error, PeerError::Connect { .. }), "{error}");
    let listener = TcpListener::bind(address).await.unwrap();
    let mut alpha = Host::at(dir, "alpha", listener, address).await;
    check_talk(&alpha, &mut beta).await;
    check_talk(&beta, &mut alpha).await;
}

#[tokio::test]
async fn a_stranger_is_refused_in_the_handshake_and_reported() {
    let (mut alpha, stranger) = (Host::new("alpha").await, Host::new("stranger").await);
    let state = stranger.dir.path();
    let config = raw_config(&TLS13, &[PEER], Some(shows(state, state)));
    assert_eq!(
        alert_of(config, &alpha).await,
        AlertDescription::AccessDenied
    );
    let shown = stranger.book.fingerprint().to_string();
    let from = alpha.check_refused(&shown).await;
    assert_eq!(from.ip(), alpha.address.ip());
    assert_eq!(alpha.book.refusals().strangers, 1);
    assert!(alpha.streams.try_recv().is_err());
}

#[tokio::test]
async fn a_refused_stranger_is_logged_with_address_and_fingerprint() {
    let (alpha, stranger) = (Host::new("alpha").await, Host::new("stranger").await);
    let state = stranger.dir.path();
    let config = raw_config(&TLS13, &[PEER], Some(shows(state, state)));
    alert_of(config, &alpha).await;
    let from = alpha.check_refused("not pinned").await;
    let fingerprint = stranger.book.fingerprint().to_string();
    let text = String::from_utf8(LOG.0.lock().unwrap().clone()).unwrap();
    let line = text
        .lines()
        .find(|line| line.contains("WARN") && line.contains(&fingerprint))
        .unwrap();
    assert!(line.contains(&from.to_string()), "{line}");
}

#[tokio::test]
async fn a_certificate_is_worth_nothing_without_its_key() {
    let (mut alpha, beta) = given_pair().await;
    let thief = Host::new("thief").await;
    let stolen = shows(beta.dir.path(), thief.dir.path());
    for alpn in [PEER, JOIN] {
        let config = raw_config(&TLS13, &[alpn], Some(stolen.clone()));
        assert_eq!(
            alert_of(config, &alpha).await,
            AlertDescription::DecryptError
        );
    }
    alpha
        .check_refused(&format!(
            "the handshake failed for certificate {}",
            beta.book.fingerprint()
        ))
        .await;
    assert!(alpha.streams.try_recv().is_err());

    // The same on the listening side: beta's certificate, the thief's key, at beta's address.
    let address = beta.address;
    let dir = beta.stop().await;
    let listener = TcpListener::bind(address).await.unwrap();
    let heard = given_impostor(listener, shows(dir.path(), thief.dir.path()));
    let error = dial(&alpha.book, &"beta".parse().unwrap())
        .await
        .unwrap_err();
    assert!(matches!(error, PeerError::Handshake { .. }), "{error}");
    assert_eq!(heard.await.unwrap(), None);
}

/// Serves one TLS connection with this certificate and tells what was sent over it; nothing, if the handshake failed.
fn given_impostor(
    listener: TcpListener,
    shown: Arc<SingleCertAndKey>,
) -> JoinHandle<Option<Vec<u8>>> {
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(shown);
    config.alpn_protocols = vec![PEER.to_vec(), JOIN.to_vec()];
    tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        let accepted = TlsAcceptor::from(Arc::new(config)).accept(tcp).await;
        let mut tls = accepted.ok()?;
        let mut heard = Vec::new();
        let _ = tls.read_to_end(&mut heard).await;
        Some(heard)
    })
}

#[tokio::test]
async fn a_peer_that_was_installed_anew_is_not_taken_for_the_old_one() {
    let (mut alpha, beta) = given_pair().await;
    let (address, old) = (beta.address, beta.book.fingerprint());
    drop(beta.stop().await);
    let listener = TcpListener::bind(address).await.unwrap();
    let mut beta = Host::at(tempfile::tempdir().unwrap(), "beta", listener, address).await;
    let error = dial(&alpha.book, beta.name()).await.unwrap_err();
    match error {
        PeerError::WrongCertificate {
            expected,
            presented,
            ..
        } => assert_eq!((expected, presented), (old, beta.book.fingerprint())),
        other => panic!("{other}"),
    }
    assert!(beta.streams.try_recv().is_err());
    // It cannot join under its old name as long as the old certificate is pinned; the token survives the attempt.
    let token = alpha.token();
    let error = beta.join(&alpha, &token).await.unwrap_err();
    check_join_refused(&error, Refusal::NameTaken);
    alpha.book.remove(beta.name()).unwrap();
    beta.join(&alpha, &token).await.unwrap();
    check_talk(&beta, &mut alpha).await;
    check_talk(&alpha, &mut beta).await;
}

#[track_caller]
fn check_join_refused(error: &PeerError, expected: Refusal) {
    match error {
        PeerError::JoinRefused { source, .. } => assert_eq!(*source, expected),
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn a_token_is_good_once() {
    let (alpha, beta, gamma) = (
        Host::new("alpha").await,
        Host::new("beta").await,
        Host::new("gamma").await,
    );
    let token = alpha.token();
    beta.join(&alpha, &token).await.unwrap();
    let error = gamma.join(&alpha, &token).await.unwrap_err();
    check_join_refused(&error, Refusal::UsedToken);
    let text = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(
        text,
        "this token was already used; ask for a new one with `godwit peer token`"
    );
    alpha
        .check_refused("it asked to join as gamma: this token was already used")
        .await;
    assert_eq!(
        (alpha.names(), gamma.names()),
        (vec!["beta".into()], vec![])
    );
    assert_eq!(
        alpha.book.refusals(),
        Refusals {
            tokens: 1,
            ..Refusals::default()
        }
    );
}

#[tokio::test]
async fn an_expired_token_is_refused() {
    let (alpha, beta) = (Host::new("alpha").await, Host::new("beta").await);
    let token = alpha
        .book
        .token(Duration::from_secs(1))
        .unwrap()
        .to_string();
    sleep(Duration::from_millis(1100)).await;
    let error = beta.join(&alpha, &token).await.unwrap_err();
    check_join_refused(&error, Refusal::ExpiredToken);
    alpha.check_refused("expired").await;
    assert!(alpha.names().is_empty() && beta.names().is_empty());
}

#[tokio::test]
async fn an_invented_secret_is_refused_and_not_at_once() {
    let (alpha, beta) = (Host::new("alpha").await, Host::new("beta").await);
    alpha.token();
    let invented = format!("godwit1-{}-{}", alpha.book.fingerprint(), Digest([7; 32]));
    let begun = Instant::now();
    let error = beta.join(&alpha, &invented).await.unwrap_err();
    check_join_refused(&error, Refusal::UnknownToken);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    alpha.check_refused("not known").await;
}

#[tokio::test]
async fn a_text_that_is_no_token_goes_nowhere() {
    let (alpha, beta) = (Host::new("alpha").await, Host::new("beta").await);
    for garbage in [
        "",
        "godwit1-",
        "godwit1-00-00",
        "hello",
        &alpha.token()[1..],
    ] {
        let error = beta.join(&alpha, garbage).await.unwrap_err();
        assert!(
            matches!(error, PeerError::Token { .. }),
            "{garbage}: {error}"
        );
    }
    for garbage in ["", "alpha", "0.0.0.0:1", "127.0.0.1:0"] {
        let error = join(&beta.book, garbage, &alpha.token()).await.unwrap_err();
        assert!(
            matches!(error, PeerError::Address { .. }),
            "{garbage}: {error}"
        );
    }
    let error = join(&alpha.book, &beta.address.to_string(), &alpha.token()).await;
    assert!(matches!(error, Err(PeerError::OwnToken)));
    assert!(alpha.refused.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_token_of_another_host_is_not_shown_to_this_one() {
    let (alpha, beta, gamma) = (
        Host::new("alpha").await,
        Host::new("beta").await,
        Host::new("gamma").await,
    );
    let error = beta.join(&alpha, &gamma.token()).await.unwrap_err();
    match error {
        PeerError::TokenOfAnother {
            expected,
            presented,
            ..
        } => {
            assert_eq!(expected, gamma.book.fingerprint());
            assert_eq!(presented, alpha.book.fingerprint());
        }
        other => panic!("{other}"),
    }
    assert!(alpha.names().is_empty() && beta.names().is_empty());
}

#[tokio::test]
async fn somebody_in_between_does_not_see_the_token() {
    let (alpha, beta, mallory) = (
        Host::new("alpha").await,
        Host::new("beta").await,
        Host::new("mallory").await,
    );
    let state = mallory.dir.path();
    for key_only in [false, true] {
        // Either mallory's own certificate, or alpha's public one with mallory's key.
        let certificate_of = if key_only { alpha.dir.path() } else { state };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let heard = given_impostor(listener, shows(certificate_of, state));
        let error = join(&beta.book, &address, &alpha.token())
            .await
            .unwrap_err();
        match error {
            PeerError::TokenOfAnother { .. } if !key_only => {}
            PeerError::Handshake { .. } if key_only => {}
            other => panic!("{other}"),
        }
        assert_eq!(heard.await.unwrap(), None);
    }
    assert!(beta.names().is_empty() && alpha.names().is_empty());
}

#[tokio::test]
async fn a_client_without_a_certificate_is_refused() {
    let alpha = Host::new("alpha").await;
    for alpn in [PEER, JOIN] {
        let config = raw_config(&TLS13, &[alpn], None);
        assert_eq!(
            alert_of(config, &alpha).await,
            AlertDescription::CertificateRequired
        );
    }
    alpha.check_refused("the handshake failed: ").await;
    assert_eq!(alpha.book.refusals().strangers, 2);
}

#[tokio::test]
async fn tls_1_2_is_refused_on_both_sides() {
    let (alpha, beta) = given_pair().await;
    let state = beta.dir.path().to_owned();
    for alpn in [PEER, JOIN] {
        let config = raw_config(&TLS12, &[alpn], Some(shows(&state, &state)));
        assert_eq!(
            alert_of(config, &alpha).await,
            AlertDescription::ProtocolVersion
        );
    }
    alpha.check_refused("peer is incompatible").await;

    let address = beta.address;
    let dir = beta.stop().await;
    let listener = TcpListener::bind(address).await.unwrap();
    let config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&TLS12])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(shows(dir.path(), dir.path()));
    let old = tokio::spawn(async move {
        let (tcp, _) = listener.accept().await.unwrap();
        TlsAcceptor::from(Arc::new(config))
            .accept(tcp)
            .await
            .map(|_| ())
    });
    let error = dial(&alpha.book, &"beta".parse().unwrap())
        .await
        .unwrap_err();
    assert!(matches!(error, PeerError::Handshake { .. }), "{error}");
    assert!(old.await.unwrap().is_err());
}

#[tokio::test]
async fn a_removed_peer_is_a_stranger_and_its_open_streams_are_told() {
    let (mut alpha, beta) = given_pair().await;
    let open = dial(&beta.book, alpha.name()).await.unwrap();
    let (peer, _stream) = alpha.streams.recv().await.unwrap();
    let told = alpha.book.until_removed(peer.fingerprint);
    assert!(
        timeout(
            Duration::from_millis(50),
            alpha.book.until_removed(peer.fingerprint)
        )
        .await
        .is_err()
    );
    alpha.book.remove(&peer.name).unwrap();
    timeout(Duration::from_secs(1), told).await.unwrap();
    drop(open);
    let error = dial(&beta.book, alpha.name()).await.unwrap_err();
    assert!(matches!(error, PeerError::NotPinnedThere { .. }), "{error}");
    alpha.check_refused("not pinned here").await;
    assert!(matches!(
        dial(&alpha.book, beta.name()).await,
        Err(PeerError::UnknownPeer { .. })
    ));
    // Joining anew mends it, whatever beta still has in its book.
    beta.join(&alpha, &alpha.token()).await.unwrap();
    check_talk(&beta, &mut alpha).await;
}

#[tokio::test]
async fn no_session_is_ever_resumed() {
    let (mut alpha, beta) = given_pair().await;
    let state = beta.dir.path();
    let mut config = raw_config(&TLS13, &[PEER], Some(shows(state, state)));
    config.resumption = Resumption::store(Arc::new(ClientSessionMemoryCache::new(8)));
    for _ in 0..3 {
        let mut tls = raw_connect(config.clone(), &alpha).await.unwrap();
        assert_eq!(tls.read_u8().await.unwrap(), 1);
        assert_eq!(tls.get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
        assert_eq!(tls.get_ref().1.tls13_tickets_received(), 0);
        alpha.streams.recv().await.unwrap();
    }
    alpha.book.remove(beta.name()).unwrap();
    assert_eq!(
        alert_of(config, &alpha).await,
        AlertDescription::AccessDenied
    );
}

#[tokio::test]
async fn of_two_joins_with_one_token_exactly_one_wins() {
    for _ in 0..8 {
        let (alpha, beta, gamma) = (
            Host::new("alpha").await,
            Host::new("beta").await,
            Host::new("gamma").await,
        );
        let token = alpha.token();
        let (one, two) = tokio::join!(beta.join(&alpha, &token), gamma.join(&alpha, &token));
        let (winner, loser) = match (&one, &two) {
            (Ok(_), Err(error)) => (&beta, error),
            (Err(error), Ok(_)) => (&gamma, error),
            other => panic!("{other:?}"),
        };
        check_join_refused(loser, Refusal::UsedToken);
        assert_eq!(alpha.names(), [winner.name().as_str()]);
        assert_eq!(beta.names().len() + gamma.names().len(), 1);
    }
}

#[tokio::test]
async fn hosts_of_the_same_name_do_not_join() {
    let (alpha, twin, beta) = (
        Host::new("alpha").await,
        Host::new("alpha").await,
        Host::new("beta").await,
    );
    let token = alpha.token();
    let error = twin.join(&alpha, &token).await.unwrap_err();
    check_join_refused(&error, Refusal::SameName);
    beta.join(&alpha, &token).await.unwrap();

    // Beta knows an alpha already; the other alpha learns that it has not been pinned and forgets beta again.
    let error = beta.join(&twin, &twin.token()).await.unwrap_err();
    let expected = PinError::NameTaken {
        fingerprint: alpha.book.fingerprint(),
    };
    match error {
        PeerError::Pin { name, source } => assert_eq!((name.as_str(), source), ("alpha", expected)),
        other => panic!("{other}"),
    }
    twin.check_refused("beta has withdrawn").await;
    assert!(twin.names().is_empty());
    assert_eq!(beta.book.list()[0].fingerprint, alpha.book.fingerprint());
}

#[tokio::test]
async fn what_speaks_no_protocol_of_ours_is_refused() {
    let (mut alpha, beta) = given_pair().await;
    let state = beta.dir.path();
    // Even a peer: with both protocols, none, or another one.
    for alpn in [&[PEER, JOIN][..], &[], &[b"h2"], &[b"godwit/2"]] {
        let config = raw_config(&TLS13, alpn, Some(shows(state, state)));
        match raw_connect(config, &alpha).await {
            Ok(mut tls) => assert!(tls.read_u8().await.is_err(), "{alpn:?}"),
            Err(error) => assert!(
                error.to_string().contains("NoApplicationProtocol"),
                "{error}"
            ),
        }
    }
    for noise in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        &[0; 64],
        &[22, 3, 1, 255, 255, 1, 2, 3],
    ] {
        let mut tcp = TcpStream::connect(alpha.address).await.unwrap();
        tcp.write_all(noise).await.unwrap();
        tcp.shutdown().await.unwrap();
        let _ = tcp.read_to_end(&mut Vec::new()).await;
    }
    alpha.check_refused("no protocol of ours").await;
    alpha
        .check_refused("not the beginning of a TLS handshake")
        .await;
    assert!(alpha.streams.try_recv().is_err());
    check_talk(&beta, &mut alpha).await;
}

#[tokio::test]
async fn a_peer_on_the_joining_protocol_still_needs_a_token() {
    let (alpha, beta) = given_pair().await;
    let state = beta.dir.path();
    for (message, why) in [
        (&[1, 255, 255, 255, 255][..], "too long"),
        (&[0, 0, 0, 0, 0], "kind 0"),
        (&[4, 0, 0, 0, 0], "not due"),
        (&[1, 1, 0, 0, 0, 0], "wrong length"),
        (&[1, 9], "broke off"),
    ] {
        let config = raw_config(&TLS13, &[JOIN], Some(shows(state, state)));
        let mut tls = raw_connect(config, &alpha).await.unwrap();
        tls.write_all(message).await.unwrap();
        tls.shutdown().await.unwrap();
        let _ = tls.read_to_end(&mut Vec::new()).await;
        alpha.check_refused(why).await;
    }
}

#[tokio::test]
async fn who_dawdles_is_cut_off() {
    let (mut alpha, beta) = given_pair().await;
    let state = beta.dir.path();
    let begun = Instant::now();
    let mut silent = TcpStream::connect(alpha.address).await.unwrap();
    let mut trickling = TcpStream::connect(alpha.address).await.unwrap();
    let config = raw_config(&TLS13, &[JOIN], Some(shows(state, state)));
    let mut bearer = raw_connect(config, &alpha).await.unwrap();
    bearer.write_all(&[1, 100, 0]).await.unwrap();
    bearer.flush().await.unwrap();
    let trickle = tokio::spawn(async move {
        // The beginning of a handshake record of 512 bytes, one byte at a time, for ever.
        for byte in [22, 3, 1, 2, 0].into_iter().chain(std::iter::repeat(1)) {
            if trickling.write_all(&[byte]).await.is_err() {
                return;
            }
            sleep(Duration::from_millis(200)).await;
        }
    });
    check_talk(&beta, &mut alpha).await;
    let _ = timeout(Duration::from_secs(8), bearer.read_to_end(&mut Vec::new()))
        .await
        .unwrap();
    alpha.check_refused("it did not ask within").await;
    let _ = timeout(Duration::from_secs(13), silent.read_to_end(&mut Vec::new()))
        .await
        .unwrap();
    timeout(Duration::from_secs(13), trickle)
        .await
        .unwrap()
        .unwrap();
    assert!(begun.elapsed() > Duration::from_secs(9));
    alpha.check_refused("the handshake took more than").await;
}

/// Connections from an address of the loopback network, which say nothing.
async fn given_crowd(from: &str, count: usize, to: &Host) -> Vec<TcpStream> {
    let mut crowd = Vec::new();
    for _ in 0..count {
        let socket = TcpSocket::new_v4().unwrap();
        socket
            .bind(SocketAddr::new(from.parse().unwrap(), 0))
            .unwrap();
        crowd.push(socket.connect(to.address).await.unwrap());
    }
    crowd
}

#[tokio::test]
async fn a_crowd_of_strangers_is_turned_away_and_does_not_stand_in_a_peers_way() {
    let (mut alpha, beta) = given_pair().await;
    let mut crowd = Vec::new();
    for from in [
        "127.0.0.2",
        "127.0.0.3",
        "127.0.0.4",
        "127.0.0.5",
        "127.0.0.6",
    ] {
        crowd.push(given_crowd(from, 64, &alpha).await);
    }
    let from = alpha.check_refused("too many connections").await;
    assert_eq!(from.ip().to_string(), "127.0.0.6");
    check_talk(&beta, &mut alpha).await;
    assert!((1..=64).contains(&alpha.book.refusals().crowded));
}

#[tokio::test]
async fn one_address_cannot_keep_the_others_out() {
    let (mut alpha, beta) = given_pair().await;
    // Here it is the peer's own: it can come again when its crowd has gone.
    let crowd = given_crowd("127.0.0.1", 140, &alpha).await;
    alpha.check_refused("too many connections").await;
    let other = given_crowd("127.0.0.2", 1, &alpha).await;
    drop(crowd);
    for _ in 0..50 {
        if dial(&beta.book, alpha.name()).await.is_ok() {
            break;
        }
        sleep(Duration::from_millis(100)).await;
    }
    alpha.streams.recv().await.unwrap();
    check_talk(&beta, &mut alpha).await;
    assert!(alpha.book.refusals().crowded >= 140 - 128);
    drop(other);
}

#[tokio::test]
async fn a_shutdown_leaves_no_connection_half_open() {
    let (mut alpha, beta) = given_pair().await;
    let mut half = TcpStream::connect(alpha.address).await.unwrap();
    let mut here = dial(&beta.book, alpha.name()).await.unwrap();
    let (_, mut there) = alpha.streams.recv().await.unwrap();
    let address = alpha.address;
    alpha.shutdown.cancel();
    timeout(Duration::from_secs(2), &mut alpha.task)
        .await
        .unwrap()
        .unwrap();
    let read = timeout(Duration::from_secs(2), half.read(&mut [0]))
        .await
        .unwrap();
    assert!(matches!(read, Ok(0) | Err(_)));
    assert!(TcpStream::connect(address).await.is_err());
    // A stream that was handed out is not the door's any more.
    here.write_all(b"x").await.unwrap();
    here.flush().await.unwrap();
    assert_eq!(there.read_u8().await.unwrap(), b'x');
}

#[tokio::test]
async fn a_stream_that_is_cut_does_not_look_finished() {
    let alpha_listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let hidden = alpha_listener.local_addr().unwrap();
    let cable = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let advertised = cable.local_addr().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut alpha = Host::at(dir, "alpha", alpha_listener, advertised).await;
    let beta = Host::new("beta").await;
    beta.join(&alpha, &alpha.token()).await.unwrap();
    let scissors = CancellationToken::new();
    let cut = scissors.clone();
    tokio::spawn(async move {
        let (mut near, _) = cable.accept().await.unwrap();
        let mut far = TcpStream::connect(hidden).await.unwrap();
        tokio::select! {
            _ = copy_bidirectional(&mut near, &mut far) => {}
            () = cut.cancelled() => {}
        }
    });
    let mut here = dial(&beta.book, alpha.name()).await.unwrap();
    let (_, mut there) = alpha.streams.recv().await.unwrap();
    there.write_all(b"half a sen").await.unwrap();
    there.flush().await.unwrap();
    let mut heard = [0; 10];
    here.read_exact(&mut heard).await.unwrap();
    scissors.cancel();
    let error = here.read_u8().await.unwrap_err();
    assert!(
        matches!(
            error.kind(),
            io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset
        ),
        "{error:?}"
    );
    // `read` itself fails too, where an end would be 0 bytes.
    assert!(there.read(&mut heard).await.is_err());
}

/// Whether the test may go on: it is skipped in sight without root, and fails where root is required.
fn is_root(test: &str) -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        assert!(
            std::env::var_os("GODWIT_REQUIRE_ROOT").is_none(),
            "{test} needs root"
        );
        println!("SKIP {test}: needs root");
    }
    root
}

/// Runs a command in the network namespace of this thread.
fn run(program: &str, arguments: &[&str]) {
    let status = std::process::Command::new(program).args(arguments).status();
    assert!(status.unwrap().success(), "{program} {arguments:?}");
}

#[test]
fn a_cut_link_is_noticed_with_and_without_data_on_its_way() {
    if !is_root("a_cut_link_is_noticed_with_and_without_data_on_its_way") {
        return;
    }
    // A network namespace of its own, on a thread that nobody else uses: it is gone when the thread has ended.
    let thread = std::thread::spawn(|| {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        run("ip", &["link", "set", "lo", "up"]);
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build();
        runtime.unwrap().block_on(check_cut_link());
    });
    thread.join().unwrap();
}

async fn check_cut_link() {
    let (mut alpha, beta) = given_pair().await;
    let mut idle = dial(&beta.book, alpha.name()).await.unwrap();
    let (_, mut idle_there) = alpha.streams.recv().await.unwrap();
    let mut busy = dial(&beta.book, alpha.name()).await.unwrap();
    let (_, _busy_there) = alpha.streams.recv().await.unwrap();
    run("nft", &["add", "table", "inet", "cut"]);
    let chain = "{ type filter hook input priority 0 ; policy drop ; }";
    run("nft", &["add", "chain", "inet", "cut", "in", chain]);
    let begun = Instant::now();
    busy.write_all(&[7; 1000]).await.unwrap();
    busy.flush().await.unwrap();
    let noticed = async |stream: &mut PeerStream| {
        let error = stream.read_u8().await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut, "{error}");
        begun.elapsed()
    };
    let all = async {
        tokio::join!(
            noticed(&mut idle),
            noticed(&mut idle_there),
            noticed(&mut busy)
        )
    };
    let (a, b, c) = timeout(Duration::from_secs(20), all).await.unwrap();
    for took in [a, b, c] {
        assert!((8..15).contains(&took.as_secs()), "{a:?} {b:?} {c:?}");
    }
}
