//! The other end of the API: one connection per request, over the unix socket.

use std::marker::PhantomData;
use std::path::{Path, PathBuf};

use http_body_util::{BodyExt, Full};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONTENT_TYPE, HOST};
use hyper::{Method, Request, Response};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;

use super::types::ApiError;

/// The longest answer, or line of an answer, that is read, in bytes.
const ANSWER_MAX: usize = 64 << 20;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No daemon there.
    #[error("cannot reach the daemon at {}", socket.display())]
    Connect {
        /// The socket.
        socket: PathBuf,
        /// What the kernel said.
        #[source]
        source: std::io::Error,
    },
    /// The daemon said no.
    #[error(transparent)]
    Refused(ApiError),
    /// The talk broke off.
    #[error("the daemon broke off before it had answered {path}")]
    Broken {
        /// What was asked.
        path: String,
        /// What happened.
        #[source]
        source: hyper::Error,
    },
    /// The answer cannot be read: a daemon of another version.
    #[error("the daemon's answer to {path} cannot be read; is it of the same version?")]
    Unreadable {
        /// What was asked.
        path: String,
        /// What is wrong with it.
        #[source]
        source: serde_json::Error,
    },
    /// The request cannot be made.
    #[error("cannot make the request {path}")]
    Request {
        /// What was to be asked.
        path: String,
        /// Why not.
        #[source]
        source: hyper::http::Error,
    },
    /// The answer never ends.
    #[error("the daemon's answer to {path} is longer than {ANSWER_MAX} bytes")]
    TooLong {
        /// What was asked.
        path: String,
    },
    /// The lines ended without the one that ends them.
    #[error("the daemon ended before {what} had")]
    CutShort {
        /// What was going on.
        what: &'static str,
    },
}

impl ClientError {
    /// What to do about it, where that is known.
    pub fn remedy(&self) -> Option<String> {
        match self {
            Self::Connect { source, .. } => Some(match source.kind() {
                std::io::ErrorKind::PermissionDenied => "run this as root".to_owned(),
                _ => "start it (`systemctl start godwit`), or name its socket with --socket"
                    .to_owned(),
            }),
            Self::Refused(error) => error.remedy.clone(),
            Self::CutShort { .. } => {
                Some("`journalctl -u godwit` may say why; nothing it had begun is lost".to_owned())
            }
            _ => None,
        }
    }
}

/// Asks one daemon.
#[derive(Debug, Clone)]
pub struct Client {
    socket: PathBuf,
}

impl Client {
    /// The daemon behind `socket`.
    pub fn new(socket: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
        }
    }

    /// `GET path`
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        let response = self.ask(Method::GET, path, None).await?;
        decode(path, &collect(path, response).await?)
    }

    /// `POST path`, with an answer.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<T, ClientError> {
        let response = self
            .ask(Method::POST, path, Some(encode(path, body)?))
            .await?;
        decode(path, &collect(path, response).await?)
    }

    /// `POST path`, with nothing to be told.
    pub async fn tell(&self, path: &str, body: &impl Serialize) -> Result<(), ClientError> {
        self.ask(Method::POST, path, Some(encode(path, body)?))
            .await?;
        Ok(())
    }

    /// `DELETE path`
    pub async fn delete(&self, path: &str) -> Result<(), ClientError> {
        self.ask(Method::DELETE, path, None).await?;
        Ok(())
    }

    /// `GET path`, answered by lines.
    pub async fn lines<T>(&self, path: &str) -> Result<LineReader<T>, ClientError> {
        let response = self.ask(Method::GET, path, None).await?;
        Ok(LineReader::new(path, response))
    }

    /// `POST path`, answered by lines.
    pub async fn post_lines<T>(
        &self,
        path: &str,
        body: &impl Serialize,
    ) -> Result<LineReader<T>, ClientError> {
        let response = self
            .ask(Method::POST, path, Some(encode(path, body)?))
            .await?;
        Ok(LineReader::new(path, response))
    }

    async fn ask(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Response<Incoming>, ClientError> {
        let broken = |source| ClientError::Broken {
            path: path.to_owned(),
            source,
        };
        let stream = UnixStream::connect(&self.socket).await;
        let stream = stream.map_err(|source| ClientError::Connect {
            socket: self.socket.clone(),
            source,
        })?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        // It ends with the request; its errors come out of the request, too.
        tokio::spawn(connection);
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, "godwit")
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|source| ClientError::Request {
                path: path.to_owned(),
                source,
            })?;
        let response = sender.send_request(request).await.map_err(broken)?;
        if response.status().is_success() {
            return Ok(response);
        }
        let status = response.status();
        let bytes = collect(path, response).await?;
        Err(ClientError::Refused(
            serde_json::from_slice(&bytes).unwrap_or_else(|_| ApiError {
                code: "unknown".to_owned(),
                message: format!("the daemon answered {status}"),
                field: None,
                remedy: None,
            }),
        ))
    }
}

fn encode(path: &str, body: &impl Serialize) -> Result<Vec<u8>, ClientError> {
    serde_json::to_vec(body).map_err(|source| unreadable(path, source))
}

fn decode<T: DeserializeOwned>(path: &str, bytes: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(bytes).map_err(|source| unreadable(path, source))
}

fn unreadable(path: &str, source: serde_json::Error) -> ClientError {
    ClientError::Unreadable {
        path: path.to_owned(),
        source,
    }
}

async fn collect(path: &str, response: Response<Incoming>) -> Result<Vec<u8>, ClientError> {
    let mut reader = ByteReader {
        path: path.to_owned(),
        body: response.into_body(),
    };
    let mut all = Vec::new();
    while let Some(chunk) = reader.next().await? {
        all.extend_from_slice(&chunk);
        if all.len() > ANSWER_MAX {
            return Err(ClientError::TooLong {
                path: path.to_owned(),
            });
        }
    }
    Ok(all)
}

/// An answer of bytes, as they come.
struct ByteReader {
    path: String,
    body: Incoming,
}

impl ByteReader {
    /// The next bytes; none at the end.
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| ClientError::Broken {
                path: self.path.clone(),
                source,
            })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}

/// An answer of lines, as they come.
pub struct LineReader<T> {
    bytes: ByteReader,
    buffer: Vec<u8>,
    line: PhantomData<fn() -> T>,
}

impl<T> LineReader<T> {
    fn new(path: &str, response: Response<Incoming>) -> Self {
        Self {
            bytes: ByteReader {
                path: path.to_owned(),
                body: response.into_body(),
            },
            buffer: Vec::new(),
            line: PhantomData,
        }
    }
}

impl<T: DeserializeOwned> LineReader<T> {
    /// The next line; none at the end. Nothing is lost when this is dropped while it waits.
    pub async fn next(&mut self) -> Result<Option<T>, ClientError> {
        let mut searched = 0;
        loop {
            if let Some(at) = self.buffer[searched..].iter().position(|&b| b == b'\n') {
                let line: Vec<u8> = self.buffer.drain(..=searched + at).collect();
                return decode(&self.bytes.path, &line).map(Some);
            }
            searched = self.buffer.len();
            match self.bytes.next().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None => return Ok(None),
            }
            if self.buffer.len() > ANSWER_MAX {
                return Err(ClientError::TooLong {
                    path: self.bytes.path.clone(),
                });
            }
        }
    }
}
