//! Converts an image from an OCI layout directory and prints the seconds it took, to compare with `umoci unpack` of the same.
//!
//! `convert <layout>[:tag] <store directory>`; the store directory should not exist.

use std::path::Path;
use std::time::Instant;

use kvmlet_image::{ImageStore, StoreConfig};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(layout), Some(store)) = (args.next(), args.next()) else {
        return Err("usage: convert <layout>[:tag] <store directory>".into());
    };
    let (layout, tag) = layout.rsplit_once(':').unwrap_or((&layout, "latest"));
    // A store may pull, and pulling needs TLS; this one only imports.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let store = ImageStore::open(&store, StoreConfig::default())?;
    let begin = Instant::now();
    let image = store.import(&format!("localhost/convert:{tag}"), Path::new(layout)).await?;
    let seconds = begin.elapsed().as_secs_f64();
    println!(
        "{{\"seconds\":{seconds:.3},\"bytes\":{},\"device\":{}}}",
        image.size, image.device.size
    );
    Ok(())
}
