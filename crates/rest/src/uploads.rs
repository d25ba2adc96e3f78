//! `/v1/volumes/{volume}/data`.

use api_types::{ProblemBody, VolumeAccepted};
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use host::Piece;

use crate::extract::Segment;
use crate::problem::Problem;
use crate::shared::Shared;
use crate::volumes::accepted;

/// Receives what a volume is filled with: a raw or qcow2 image that stands on its own. Without `Content-Range` the body is all
/// of it. With one (RFC 9110 §14.4), it is a piece, which begins where the last one ended (`upload.received_bytes` of the
/// volume); the piece that reaches the length behind the slash is the last; `bytes */LENGTH` with no body says that all has come. When all has come, an operation looks at it.
#[utoipa::path(put, path = "/v1/volumes/{volume}/data", tag = "volumes", operation_id = "upload_volume",
    request_body(content = String, content_type = "application/octet-stream", description = "Bytes of the image"),
    params(("volume" = String, Path, description = "Name or id"),
        ("Content-Range" = Option<String>, Header, description = "`bytes FIRST-LAST/LENGTH`, `bytes FIRST-LAST/*` while the length is not known, or `bytes */LENGTH`")),
    responses((status = 202, body = VolumeAccepted, description = "All has come", headers(("Location" = String, description = "The operation"))),
        (status = 200, body = VolumeAccepted, description = "More is to come"),
        (status = 400, body = ProblemBody, description = "It broke off; what came is kept"), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody, description = "It waits for no upload, somebody else is sending, or the piece begins elsewhere"),
        (status = 507, body = ProblemBody, description = "No space left; what came is kept")))]
pub(crate) async fn receive(
    State(shared): State<Shared>,
    Segment(volume): Segment,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Problem> {
    let piece = match headers.get(header::CONTENT_RANGE) {
        None => Piece::Whole,
        Some(value) => {
            let text = value.to_str().unwrap_or_default();
            parse(text).ok_or_else(|| {
                Problem::invalid(format!(
                    "Content-Range: {text:?} is not understood; send bytes FIRST-LAST/LENGTH, or bytes FIRST-LAST/*"
                ))
            })?
        }
    };
    let body = body.into_data_stream();
    let (volume, operation) = shared.host.receive_volume(&volume, piece, body).await?;
    Ok(accepted(volume, operation, StatusCode::OK))
}

/// `bytes 0-1023/4096`.
fn parse(text: &str) -> Option<Piece> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.trim().split_once('/')?;
    let total = match total {
        "*" => None,
        digits => Some(digits.parse::<u64>().ok()?),
    };
    if range == "*" {
        // Nothing more is to come.
        let first = total?;
        let length = 0;
        return Some(Piece::Part { first, length, total });
    }
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.parse().ok()?, last.parse().ok()?);
    let length = last.checked_sub(first)?.checked_add(1)?;
    if total.is_some_and(|total| last >= total) {
        return None;
    }
    Some(Piece::Part { first, length, total })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_whole_or_refused() {
        let part = |first, length, total| Some(Piece::Part { first, length, total });
        assert_eq!(parse("bytes 0-1023/4096"), part(0, 1024, Some(4096)));
        assert_eq!(parse("bytes 1024-4095/4096"), part(1024, 3072, Some(4096)));
        assert_eq!(parse("bytes 5-5/*"), part(5, 1, None));
        assert_eq!(parse("bytes */7"), part(7, 0, Some(7)));
        for bad in [
            "",
            "bytes",
            "bytes 0-1",
            "items 0-1/2",
            "bytes 2-1/4",
            "bytes 0-4/4",
            "bytes -1/4",
            "bytes */*",
            "bytes 0-1/x",
            "bytes 0-18446744073709551615/*",
        ] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }
}
