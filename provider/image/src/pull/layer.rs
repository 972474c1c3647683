//! One layer of a pull: its bytes flow from the origin into the conversion, unless it is here.

use std::{convert::Infallible, io::Read};

use tokio::sync::mpsc;

use super::{
    Origin, PullProgress,
    failure::{Failure, failed},
};
use crate::{
    error::PullError,
    layer::{Expected, LayerError, LayerIndex},
    pieces::{Piece, pieces},
    registry::{Descriptor, FetchError},
    store::{ImageStore, blocking},
};

/// What the layers of one image have in common.
pub(super) struct Fetch<'a, P> {
    pub(super) store: &'a ImageStore,
    /// The image's name, for errors.
    pub(super) image: &'a str,
    pub(super) origin: &'a Origin,
    pub(super) progress: &'a P,
    /// Held by each conversion until it ended: a pull that fails ends after all of them, and leaves no half-made file.
    pub(super) working: mpsc::Sender<Infallible>,
}

impl<P: Fn(PullProgress) + Send + Sync> Fetch<'_, P> {
    /// One layer, converted unless it is here.
    pub(super) async fn layer(&self, at: usize, layer: &Descriptor, diff_id: &str) -> Result<LayerIndex, Failure> {
        let (store, progress) = (&self.store.inner, self.progress);
        let flight = store.flights.enter(diff_id).await;
        let disk = store.disk.clone();
        let known = diff_id.to_owned();
        if let Some(index) = blocking(move || disk.layer(&known)).await {
            progress(PullProgress::LayerDone { layer: at, cached: true });
            return Ok(index);
        }
        let expected = Expected {
            digest: Some(layer.digest.clone()),
            diff_id: Some(diff_id.to_owned()),
        };
        let limits = store.config.limits.clone();
        let disk = store.disk.clone();
        // The flight ends with the conversion, also when this future is dropped and the conversion has yet to notice.
        let working = self.working.clone();
        let convert = |input: Box<dyn Read + Send>| {
            blocking(move || {
                let (_flight, _working) = (flight, working);
                disk.convert(input, &expected, &limits)
            })
        };
        let (transfer, converted) = match self.origin {
            Origin::Layout(layout) => {
                let file = layout.open(&layer.digest).map_err(|error| failed(&layer.digest, error))?;
                (Ok(()), convert(Box::new(file)).await)
            }
            Origin::Registry(source) => {
                let (pieces, reader) = pieces();
                let transfer = async {
                    let mut received = 0;
                    let result = source
                        .blob(layer, |bytes| {
                            received += bytes.len() as u64;
                            progress(PullProgress::Layer {
                                layer: at,
                                received,
                                total: layer.size,
                            });
                            let pieces = pieces.clone();
                            async move { pieces.send(Piece::Bytes(bytes)).await.is_ok() }
                        })
                        .await;
                    if result.is_ok() {
                        // A receiver that ended early has its own reason.
                        let _ = pieces.send(Piece::End).await;
                    }
                    drop(pieces);
                    result
                };
                tokio::join!(transfer, convert(Box::new(reader)))
            }
        };
        match (transfer, converted) {
            (_, Ok(converted)) => {
                progress(PullProgress::LayerDone { layer: at, cached: false });
                Ok(converted.index)
            }
            // The reader only saw that nothing came any more; the sender knows why.
            (Err(error), Err(LayerError::Source(_))) => Err(failed(&layer.digest, error)),
            // Another endpoint may have the right bytes.
            (_, Err(LayerError::Digest { expected, actual })) => Err(failed(&layer.digest, FetchError::Digest { expected, actual })),
            (_, Err(error)) => {
                let dir = store.disk.dir().to_path_buf();
                Err(Failure::Final(PullError::layer(self.image, &layer.digest, dir, error)))
            }
        }
    }
}
