//! Parses what came in: bounded, strict, and with the field named that is wrong.

use axum::extract::rejection::PathRejection;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::error::Failure;

/// The longest body that is read, in bytes.
pub const MAX_BODY: usize = 1 << 20;

/// A JSON body. An empty one is read as `{}`.
pub struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, _: &S) -> Result<Self, Failure> {
        let bytes = axum::body::to_bytes(request.into_body(), MAX_BODY)
            .await
            .map_err(|_| {
                let text = format!("the body is longer than {MAX_BODY} bytes, or was cut off");
                Failure::request(StatusCode::PAYLOAD_TOO_LARGE, "body-too-long", text)
            })?;
        parse(if bytes.is_empty() { b"{}" } else { &bytes }).map(Self)
    }
}

/// Parses a JSON text; the failure names the field.
fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let mut decoder = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut decoder).map_err(|e| {
        let path = e.path().to_string();
        let text = e.into_inner().to_string();
        let field = quoted_field(&text).map_or(path.clone(), |field| match path.as_str() {
            "." | "" => field.to_owned(),
            path if path.rsplit('.').next() == Some(field) => path.to_owned(),
            path => format!("{path}.{field}"),
        });
        let text = format!("the body is not what this request takes: {text}");
        Failure::request(StatusCode::BAD_REQUEST, "bad-field", text).field(field)
    })?;
    decoder.end().map_err(|e| {
        let text = format!("the body goes on after its JSON value: {e}");
        Failure::request(StatusCode::BAD_REQUEST, "bad-body", text)
    })?;
    Ok(value)
}

/// The field that serde's message is about, where it is about a missing or an unknown one.
fn quoted_field(text: &str) -> Option<&str> {
    let rest = ["missing field `", "unknown field `"]
        .iter()
        .find_map(|start| text.strip_prefix(start))?;
    rest.split('`').next()
}

/// The parts of the path that stand for something.
pub struct Segment<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned + Send> FromRequestParts<S> for Segment<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Failure> {
        let found: Result<Path<T>, PathRejection> = Path::from_request_parts(parts, state).await;
        match found {
            Ok(Path(value)) => Ok(Self(value)),
            Err(e) => {
                let text = format!(
                    "the path names something that cannot exist: {}",
                    e.body_text()
                );
                Err(Failure::request(StatusCode::BAD_REQUEST, "bad-path", text))
            }
        }
    }
}

/// The query, after the `?`.
pub struct Options<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequestParts<S> for Options<T> {
    type Rejection = Failure;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Failure> {
        match Query::try_from_uri(&parts.uri) {
            Ok(Query(value)) => Ok(Self(value)),
            Err(e) => {
                let text = format!(
                    "the query is not what this request takes: {}",
                    e.body_text()
                );
                Err(Failure::request(StatusCode::BAD_REQUEST, "bad-query", text))
            }
        }
    }
}

#[cfg(test)]
mod test {
    use super::*;
    use crate::api::types::CreateRequest;

    #[track_caller]
    fn check_field(body: &str, field: &str) {
        let failure = parse::<CreateRequest>(body.as_bytes()).unwrap_err();
        assert_eq!(failure.status, StatusCode::BAD_REQUEST);
        assert_eq!(
            failure.body.field.as_deref(),
            Some(field),
            "{}",
            failure.body.message
        );
    }

    #[test]
    fn the_wrong_field_of_a_body_is_named() {
        check_field(r#"{"name": "UPPER"}"#, "name");
        check_field(r#"{"name": "a", "colour": 1}"#, "colour");
        check_field(r#"{"template": "redis"}"#, "name");
        check_field(
            r#"{"name": "a", "limits": {"memory": "much"}}"#,
            "limits.memory",
        );
        check_field(r#"{"name": "a", "limits": {"disk": 1}}"#, "limits.disk");
        check_field(r#"{"name": "a", "ip": "300.1.1.1"}"#, "ip");
    }

    #[test]
    fn a_second_value_after_the_body_is_refused() {
        assert!(parse::<CreateRequest>(br#"{"name": "a"}"#).is_ok());
        assert!(parse::<CreateRequest>(br#"{"name": "a"} {"name": "b"}"#).is_err());
    }
}
