//! What went wrong in the daemon, as HTTP tells it.

use axum::Json;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::types::ApiError;
use crate::daemon::{DaemonError, Kind};

/// An answer that is not a success.
#[derive(Debug)]
pub struct Failure {
    /// The HTTP status.
    pub status: StatusCode,
    /// The body.
    pub body: ApiError,
}

impl Failure {
    /// A failure of the request itself, found before the daemon was asked.
    pub fn request(status: StatusCode, code: &str, message: impl Into<String>) -> Self {
        let body = ApiError {
            code: code.to_owned(),
            message: message.into(),
            field: None,
            remedy: None,
        };
        Self { status, body }
    }

    /// Names the field that is wrong.
    #[must_use]
    pub fn field(mut self, field: impl Into<String>) -> Self {
        // Neither the whole body (".") nor a place that was not reached ("?") is a field.
        let known = |field: &String| !matches!(field.as_str(), "" | "." | "?");
        self.body.field = Some(field.into()).filter(known);
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.body.remedy = Some(remedy.into());
        self
    }
}

impl From<&DaemonError> for ApiError {
    fn from(error: &DaemonError) -> Self {
        Self {
            code: error.code().to_owned(),
            message: error.chain(),
            field: error.field().map(str::to_owned),
            remedy: error.remedy(),
        }
    }
}

impl From<DaemonError> for Failure {
    fn from(error: DaemonError) -> Self {
        let status = match error.kind() {
            Kind::Invalid => StatusCode::BAD_REQUEST,
            Kind::Absent => StatusCode::NOT_FOUND,
            Kind::Conflict => StatusCode::CONFLICT,
            Kind::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
            Kind::Elsewhere => StatusCode::BAD_GATEWAY,
            Kind::Failed => StatusCode::INTERNAL_SERVER_ERROR,
        };
        let body = ApiError::from(&error);
        Self { status, body }
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.status, Json(self.body)).into_response()
    }
}
