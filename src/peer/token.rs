//! The text by which a host is let in: whom to expect, and the secret that opens the door once.

use std::fmt;
use std::str::FromStr;

use crate::model::Digest;

/// What every token begins with; another number would be another scheme.
const PREFIX: &str = "godwit1";

/// 32 random bytes. Its debug form shows none of them.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Secret(pub(super) [u8; 32]);

impl Secret {
    /// What the book keeps of it. The secret has 256 random bits, so a plain hash cannot be searched.
    pub(super) fn hash(&self) -> Digest {
        Digest(*blake3::hash(&self.0).as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// `godwit1-FINGERPRINT-SECRET`: hand it to the host that shall join, by a way you trust. Its debug form hides
/// the secret, its display form is the token itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinToken {
    fingerprint: Digest,
    secret: Secret,
}

/// A text that is no token. It is never repeated: most of it may be a good secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "this is not a token: {problem}; copy the whole line that `godwit peer token` printed, like godwit1-…-…"
)]
pub struct TokenError {
    problem: &'static str,
}

impl JoinToken {
    pub(super) fn new(fingerprint: Digest, secret: Secret) -> Self {
        Self {
            fingerprint,
            secret,
        }
    }

    /// The certificate of the host that made the token.
    pub fn fingerprint(&self) -> Digest {
        self.fingerprint
    }

    pub(super) fn secret(&self) -> &Secret {
        &self.secret
    }
}

impl fmt::Display for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}-{}-{}", self.fingerprint, Digest(self.secret.0))
    }
}

impl FromStr for JoinToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let bad = |problem| TokenError { problem };
        let mut parts = text.trim().split('-');
        if parts.next() != Some(PREFIX) {
            return Err(bad("it does not begin with godwit1-"));
        }
        let mut digest = |problem| {
            let part = parts.next().and_then(|part| part.parse::<Digest>().ok());
            part.ok_or_else(|| bad(problem))
        };
        let fingerprint = digest("its fingerprint is not 64 hexadecimal digits")?;
        let secret = digest("its secret is not 64 hexadecimal digits")?;
        if parts.next().is_some() {
            return Err(bad("something follows its secret"));
        }
        Ok(Self::new(fingerprint, Secret(secret.0)))
    }
}

#[cfg(test)]
mod test {
    use super::*;

    #[test]
    fn a_token_survives_its_text_form() {
        let token = JoinToken::new(Digest([0xa5; 32]), Secret([0x3c; 32]));
        let text = token.to_string();
        assert_eq!(text.parse::<JoinToken>().unwrap(), token);
        assert_eq!(format!(" {text}\n").parse::<JoinToken>().unwrap(), token);
        for cut in 0..text.len() {
            assert!(text[..cut].parse::<JoinToken>().is_err(), "{cut}");
        }
        for bad in [
            format!("{text}-"),
            format!("{text}0"),
            text.replace('-', "_"),
            text.replace("1-", "2-"),
            text.replacen("a5", "g5", 1),
            text.replacen("a5", "ä", 1),
        ] {
            assert!(bad.parse::<JoinToken>().is_err(), "{bad}");
        }
    }

    #[test]
    fn neither_an_error_nor_a_debug_form_shows_the_secret() {
        let text = JoinToken::new(Digest([0xa5; 32]), Secret([0x3c; 32])).to_string();
        let token: JoinToken = text.parse().unwrap();
        assert!(!format!("{token:?}").contains("3c"));
        let error = format!("{text}-").parse::<JoinToken>().unwrap_err();
        assert!(!format!("{error} {error:?}").contains("3c"));
    }
}
