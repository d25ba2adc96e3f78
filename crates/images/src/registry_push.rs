//! What is sent to a registry (OCI distribution specification 1.1, "push").

use std::io;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::{Stream, StreamExt};
use image_sources::{Call, Reply};
use reqwest::Method;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, HeaderValue, LOCATION};
use sha2::Digest as _;
use url::Url;

use crate::registry::{ACCEPTED, Registry, header};
use crate::{ImageDigest, PullError};

/// Bytes sent with one request, so that a blob of unknown length needs bounded memory: more than the 5 MiB that registries with
/// an object store behind them want at least.
const CHUNK_BYTES: usize = 8 << 20;
/// Most that a registry may want at least with one request, bytes.
const CHUNK_MAX: usize = 64 << 20;
/// How long a registry may take to put what it got where it belongs: with an object store behind it, it copies.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(600);
/// Where a registry tells that (OCI distribution specification 1.1, "pushing a blob in chunks").
const CHUNK_MIN_HEADER: &str = "oci-chunk-min-length";

/// An upload under way.
struct Upload {
    /// Where the next request goes.
    place: Url,
    chunk_bytes: usize,
    sent: u64,
    hasher: sha2::Sha256,
}

impl Registry {
    /// Sends a blob whose digest comes to be known as it is sent, and returns its digest and length.
    pub(crate) async fn push_stream(
        &self,
        pieces: impl Stream<Item = io::Result<Bytes>> + Send,
    ) -> Result<(ImageDigest, u64), PullError> {
        tokio::pin!(pieces);
        let mut upload = self.begin_upload().await?;
        let mut waiting = BytesMut::new();
        while let Some(piece) = pieces.next().await {
            // Whoever packs knows why.
            let piece = piece.map_err(|_| PullError::Cancelled)?;
            waiting.extend_from_slice(&piece);
            while waiting.len() >= upload.chunk_bytes {
                let chunk = waiting.split_to(upload.chunk_bytes).freeze();
                self.send_chunk(&mut upload, chunk).await?;
            }
        }
        if !waiting.is_empty() {
            self.send_chunk(&mut upload, waiting.freeze()).await?;
        }
        let digest = ImageDigest::finish(upload.hasher);
        self.end_upload(upload.place, &digest, Bytes::new()).await?;
        Ok((digest, upload.sent))
    }

    /// Sends a small blob.
    pub(crate) async fn push_small(&self, digest: &ImageDigest, bytes: Bytes) -> Result<(), PullError> {
        let upload = self.begin_upload().await?;
        self.end_upload(upload.place, digest, bytes).await
    }

    /// Sends a manifest under the name `name`.
    pub(crate) async fn push_manifest(&self, name: &str, body: Bytes) -> Result<(), PullError> {
        let mut call = Call::new(Method::PUT, self.place(&format!("manifests/{name}"))?);
        call.headers.insert(CONTENT_TYPE, HeaderValue::from_static(ACCEPTED[0]));
        call.body = Some(body);
        self.ask(call).await.map(drop)
    }

    async fn begin_upload(&self) -> Result<Upload, PullError> {
        let mut call = Call::new(Method::POST, self.place("blobs/uploads/")?);
        call.body = Some(Bytes::new());
        let reply = self.ask(call).await?;
        let least = reply.headers().get(CHUNK_MIN_HEADER);
        let least = least.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
        if least.is_some_and(|least| least > CHUNK_MAX) {
            return Err(self.bad_answer("it wants to get more at a time than is kept in memory"));
        }
        Ok(Upload {
            place: self.next_place(&reply)?,
            chunk_bytes: CHUNK_BYTES.max(least.unwrap_or(0)),
            sent: 0,
            hasher: sha2::Sha256::new(),
        })
    }

    async fn send_chunk(&self, upload: &mut Upload, chunk: Bytes) -> Result<(), PullError> {
        let length = chunk.len() as u64;
        upload.hasher.update(&chunk);
        let mut call = Call::new(Method::PATCH, upload.place.clone());
        let range = format!("{}-{}", upload.sent, (upload.sent + length).saturating_sub(1));
        call.headers.insert(CONTENT_RANGE, header(&range)?);
        call.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        call.body = Some(chunk);
        let reply = self.ask(call).await?;
        upload.sent += length;
        upload.place = self.next_place(&reply)?;
        Ok(())
    }

    async fn end_upload(&self, mut place: Url, digest: &ImageDigest, rest: Bytes) -> Result<(), PullError> {
        place.query_pairs_mut().append_pair("digest", &digest.to_string());
        let mut call = Call::new(Method::PUT, place);
        call.headers
            .insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
        call.body = Some(rest);
        call.answer_timeout = Some(COMMIT_TIMEOUT);
        self.ask(call).await.map(drop)
    }

    /// Where an upload goes on. It may be another host, which gets no credentials; but what came over HTTPS does not go on in
    /// plain.
    fn next_place(&self, reply: &Reply) -> Result<Url, PullError> {
        let place = reply.headers().get(LOCATION);
        let place = place.and_then(|place| reply.url().join(place.to_str().ok()?).ok());
        let mut place = place.ok_or_else(|| self.bad_answer("it does not say where an upload goes on"))?;
        let _ = place.set_username("");
        let _ = place.set_password(None);
        if reply.url().scheme() == "https" && place.scheme() != "https" {
            return Err(self.bad_answer("an upload over https is to go on in plain"));
        }
        Ok(place)
    }
}
