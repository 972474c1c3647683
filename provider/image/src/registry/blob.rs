//! Blobs, taken up again where a connection was cut.

use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::stream::BoxStream;
use oci_client::client::BlobResponse;
use sha2::{Digest, Sha256};

use super::client::{FetchError, Source, chain};
use super::manifest::Descriptor;
use crate::layer::sha256_text;

/// Pause before the first repetition; doubled with each failure in a row.
const PAUSE: Duration = Duration::from_millis(200);

impl Source {
    /// Hands all bytes of a blob to `sink`, which says whether it wants more. Digests are the receiver's matter.
    pub(crate) async fn blob<F: Future<Output = bool>>(
        &self,
        blob: &Descriptor,
        mut sink: impl FnMut(Bytes) -> F,
    ) -> Result<(), FetchError> {
        let mut received = 0;
        let mut failures = 0;
        while received < blob.size {
            let before = received;
            match self.blob_from(blob, &mut received, &mut sink).await {
                Ok(true) => {}
                Ok(false) => return Ok(()),
                Err(FetchError::Unreachable(detail)) => {
                    failures = if received > before { 1 } else { failures + 1 };
                    if failures >= self.attempts {
                        return Err(FetchError::Unreachable(detail));
                    }
                    tracing::debug!(digest = blob.digest, received, detail, "resuming a blob");
                    tokio::time::sleep(PAUSE * 2u32.pow(failures.min(6) - 1)).await;
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// A small blob, whole and proved.
    pub(crate) async fn small_blob(&self, blob: &Descriptor) -> Result<Vec<u8>, FetchError> {
        let mut all = Vec::new();
        self.blob(blob, |bytes| {
            all.extend_from_slice(&bytes);
            std::future::ready(true)
        })
        .await?;
        let actual = sha256_text(&Sha256::digest(&all));
        if actual != blob.digest {
            return Err(FetchError::Digest {
                expected: blob.digest.clone(),
                actual,
            });
        }
        Ok(all)
    }

    /// One request's worth. False says that the receiver wants no more.
    async fn blob_from<F: Future<Output = bool>>(
        &self,
        blob: &Descriptor,
        received: &mut u64,
        sink: &mut impl FnMut(Bytes) -> F,
    ) -> Result<bool, FetchError> {
        let (mut stream, mut skip) = self.open(blob, *received).await?;
        while *received < blob.size {
            let mut bytes = match stream.next().await {
                Some(Ok(bytes)) => bytes,
                Some(Err(error)) => {
                    return Err(FetchError::Unreachable(format!("{}: {}", self.endpoint(), chain(&error))));
                }
                None => {
                    let what = format!("{}: ended after {received} of {} bytes", self.endpoint(), blob.size);
                    return Err(FetchError::Unreachable(what));
                }
            };
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            drop(bytes.split_to(skipped as usize));
            let wanted = blob.size - *received;
            bytes.truncate(usize::try_from(wanted).unwrap_or(usize::MAX));
            if bytes.is_empty() {
                continue;
            }
            *received += bytes.len() as u64;
            if !sink(bytes).await {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// A stream from `offset` on, with the number of bytes to drop first where the registry knows no ranges.
    async fn open(&self, blob: &Descriptor, offset: u64) -> Result<(BoxStream<'static, std::io::Result<Bytes>>, u64), FetchError> {
        if offset == 0 {
            let stream = self.guarded(self.client.pull_blob_stream(&self.reference, &*blob.digest)).await?;
            return Ok((stream.stream, 0));
        }
        let partial = self.client.pull_blob_stream_partial(&self.reference, &*blob.digest, offset, None);
        match self.guarded(partial).await? {
            BlobResponse::Partial(stream) => Ok((stream.stream, 0)),
            BlobResponse::Full(stream) => Ok((stream.stream, offset)),
        }
    }
}
