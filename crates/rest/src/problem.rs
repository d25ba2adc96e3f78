//! From failures to problems: the one table of codes, statuses and titles.

use api_types::{ErrorCode, PROBLEM_CONTENT_TYPE, ProblemBody};
use axum::Json;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use host::Failure;

/// What handlers fail with.
#[derive(Debug)]
pub(crate) struct Problem {
    status: StatusCode,
    failure: Failure,
}

impl Problem {
    /// A request that is wrong in itself.
    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Failure::new(ErrorCode::InvalidRequest, detail).into()
    }

    /// With another status than the code's own, for what HTTP tells apart and the codes do not.
    pub(crate) fn with_status(mut self, status: StatusCode) -> Self {
        self.status = status;
        self
    }
}

impl From<Failure> for Problem {
    fn from(failure: Failure) -> Self {
        Self {
            status: status(failure.code),
            failure,
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        if self.status.is_server_error() {
            tracing::warn!(status = self.status.as_u16(), error = %self.failure, "request failed");
        }
        let mut response = (self.status, Json(to_body(self.failure, self.status))).into_response();
        let content_type = HeaderValue::from_static(PROBLEM_CONTENT_TYPE);
        response.headers_mut().insert(header::CONTENT_TYPE, content_type);
        response
    }
}

/// A failure that is part of another answer.
pub(crate) fn body(failure: Failure) -> ProblemBody {
    let status = status(failure.code);
    to_body(failure, status)
}

fn to_body(failure: Failure, status: StatusCode) -> ProblemBody {
    ProblemBody {
        type_uri: "about:blank".to_owned(),
        title: title(failure.code).to_owned(),
        status: status.as_u16(),
        code: failure.code,
        detail: failure.detail,
        errors: failure.problems,
    }
}

const fn status(code: ErrorCode) -> StatusCode {
    match code {
        ErrorCode::InvalidRequest => StatusCode::BAD_REQUEST,
        ErrorCode::UnknownPath | ErrorCode::NotFound | ErrorCode::ImageUnknown => StatusCode::NOT_FOUND,
        ErrorCode::Forbidden => StatusCode::FORBIDDEN,
        ErrorCode::NameTaken
        | ErrorCode::WrongState
        | ErrorCode::InUse
        | ErrorCode::StoreHasImage
        | ErrorCode::CopyInProgress
        | ErrorCode::ImageProtected
        | ErrorCode::Cancelled
        | ErrorCode::UploadOffset => StatusCode::CONFLICT,
        ErrorCode::RevisionMismatch => StatusCode::PRECONDITION_FAILED,
        ErrorCode::InvalidSpec
        | ErrorCode::ImageRefused
        | ErrorCode::DiskNotStandalone
        | ErrorCode::DiskRefused
        | ErrorCode::ChecksumMismatch
        | ErrorCode::KeyReused
        | ErrorCode::InsecureRegistry
        | ErrorCode::BadKernel => StatusCode::UNPROCESSABLE_ENTITY,
        ErrorCode::RegistryUnavailable | ErrorCode::DigestMismatch => StatusCode::BAD_GATEWAY,
        ErrorCode::HostLacks | ErrorCode::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
        ErrorCode::NoSpace => StatusCode::INSUFFICIENT_STORAGE,
        ErrorCode::Timeout => StatusCode::GATEWAY_TIMEOUT,
        ErrorCode::MachineFailed | ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

const fn title(code: ErrorCode) -> &'static str {
    match code {
        ErrorCode::InvalidRequest => "The request is not understood",
        ErrorCode::InvalidSpec => "The content of the request is refused",
        ErrorCode::UnknownPath => "There is no such path",
        ErrorCode::NotFound => "There is no such thing",
        ErrorCode::NameTaken => "The name is taken",
        ErrorCode::WrongState => "Not possible in the present state",
        ErrorCode::Forbidden => "Not for whoever asks",
        ErrorCode::InUse => "In use",
        ErrorCode::StoreHasImage => "The store has the image",
        ErrorCode::CopyInProgress => "The image is being copied",
        ErrorCode::KeyReused => "The key was used for another request",
        ErrorCode::RevisionMismatch => "Changed meanwhile",
        ErrorCode::RegistryUnavailable => "The registry is not available",
        ErrorCode::ImageUnknown => "The registry has no such image",
        ErrorCode::DigestMismatch => "Content does not match its digest",
        ErrorCode::ImageRefused => "The image can not be used",
        ErrorCode::ImageProtected => "The image is protected",
        ErrorCode::DiskNotStandalone => "The disk names another file",
        ErrorCode::DiskRefused => "The disk can not be used",
        ErrorCode::ChecksumMismatch => "The upload does not match its checksum",
        ErrorCode::UploadOffset => "The piece does not begin where the last one ended",
        ErrorCode::InsecureRegistry => "The registry is not allowed over plain HTTP",
        ErrorCode::BadKernel => "The kernel can not be booted",
        ErrorCode::StoreUnavailable => "A store of images is not available",
        ErrorCode::HostLacks => "The host lacks something",
        ErrorCode::NoSpace => "No space left",
        ErrorCode::Timeout => "It took too long",
        ErrorCode::Cancelled => "Cancelled",
        ErrorCode::MachineFailed => "The machine failed",
        ErrorCode::Internal => "A defect of the daemon",
    }
}
