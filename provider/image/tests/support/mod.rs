//! What the tests share: layers made entry by entry, image layouts, and trees read back for comparison.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses a part")]

pub mod registry;
pub mod tree;

use std::io::Write;
use std::path::Path;
use std::sync::Once;

use kvmlet_image::{ImageStore, StoreConfig};
use sha2::{Digest, Sha256};
use tar::{EntryType, Header};

/// A store in `dir`, with the process made ready for it.
pub fn store(dir: &Path, config: StoreConfig) -> ImageStore {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        rustls::crypto::ring::default_provider()
            .install_default()
            .expect("nothing else installs one");
    });
    ImageStore::open(dir, config).expect("the store opens")
}

pub fn sha256(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A tar under construction.
#[derive(Default)]
pub struct Layer {
    tar: Vec<u8>,
    pax: Vec<u8>,
}

impl Layer {
    /// A record for the next entry.
    pub fn pax(mut self, key: &str, value: &[u8]) -> Self {
        let body = 3 + key.len() + value.len();
        let mut length = body + 1;
        while length != body + length.to_string().len() {
            length = body + length.to_string().len();
        }
        write!(self.pax, "{length} {key}=").unwrap();
        self.pax.extend_from_slice(value);
        self.pax.push(b'\n');
        self
    }

    pub fn xattr(self, name: &str, value: &[u8]) -> Self {
        self.pax(&format!("SCHILY.xattr.{name}"), value)
    }

    fn raw(&mut self, header: &mut Header, name: &[u8], data: &[u8]) {
        let field = &mut header.as_mut_bytes()[..100];
        field.fill(0);
        field[..name.len()].copy_from_slice(name);
        header.set_cksum();
        self.tar.extend_from_slice(header.as_bytes());
        self.tar.extend_from_slice(data);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
    }

    /// Any entry.
    pub fn entry(mut self, kind: EntryType, path: &str, link: &str, mode: u32, owner: (u64, u64), data: &[u8]) -> Self {
        if path.len() > 100 {
            self = self.pax("path", path.as_bytes());
        }
        if link.len() > 100 {
            self = self.pax("linkpath", link.as_bytes());
        }
        let pax = std::mem::take(&mut self.pax);
        if !pax.is_empty() {
            let mut header = Header::new_ustar();
            header.set_entry_type(EntryType::XHeader);
            header.set_size(pax.len() as u64);
            header.set_mode(0o644);
            header.set_mtime(0);
            header.set_uid(0);
            header.set_gid(0);
            self.raw(&mut header, b"PaxHeaders/x", &pax);
        }
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(mode);
        header.set_uid(owner.0);
        header.set_gid(owner.1);
        header.set_mtime(1_700_000_000);
        if kind == EntryType::Char || kind == EntryType::Block {
            header.set_device_major(8).unwrap();
            header.set_device_minor(300).unwrap();
        }
        let link = &link.as_bytes()[..link.len().min(100)];
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link);
        self.raw(&mut header, &path.as_bytes()[..path.len().min(100)], data);
        self
    }

    pub fn file(self, path: &str, data: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path, "", 0o644, (0, 0), data.as_ref())
    }

    pub fn dir(self, path: &str) -> Self {
        self.entry(EntryType::Directory, path, "", 0o755, (0, 0), b"")
    }

    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, target, 0o777, (0, 0), b"")
    }

    pub fn hardlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Link, path, target, 0o644, (0, 0), b"")
    }

    /// The whole archive.
    pub fn tar(mut self) -> Vec<u8> {
        self.tar.resize(self.tar.len() + 1024, 0);
        self.tar
    }
}

pub fn gzip(tar: &[u8]) -> Vec<u8> {
    let mut out = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    out.write_all(tar).unwrap();
    out.finish().unwrap()
}

/// An image as blobs by digest, the last one its manifest.
#[derive(Clone)]
pub struct Image {
    pub blobs: Vec<(String, Vec<u8>)>,
    pub manifest: Vec<u8>,
    pub config: String,
    pub layers: Vec<String>,
}

impl Image {
    /// Of uncompressed tars, gzipped.
    pub fn new(tars: &[Vec<u8>]) -> Self {
        Self::of_blobs(tars.iter().map(|tar| (gzip(tar), sha256(tar))).collect())
    }

    /// Of layers as they are transferred, each with its diffID.
    pub fn of_blobs(layers: Vec<(Vec<u8>, String)>) -> Self {
        let diff_ids: Vec<_> = layers.iter().map(|(_, diff_id)| diff_id).collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux",
            "config": {"Cmd": ["/bin/true"], "Env": ["A=b"]},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": diff_ids.iter().map(|_| serde_json::json!({"created_by": "test"})).collect::<Vec<_>>(),
        });
        let config = config.to_string().into_bytes();
        let descriptors: Vec<_> = layers
            .iter()
            .map(|(blob, _)| {
                serde_json::json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                    "digest": sha256(blob), "size": blob.len()})
            })
            .collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": sha256(&config), "size": config.len()},
            "layers": descriptors,
        });
        let manifest = manifest.to_string().into_bytes();
        let mut blobs: Vec<_> = layers.into_iter().map(|(blob, _)| (sha256(&blob), blob)).collect();
        let layers = blobs.iter().map(|(digest, _)| digest.clone()).collect();
        let config_digest = sha256(&config);
        blobs.push((config_digest.clone(), config));
        Self {
            blobs,
            manifest,
            config: config_digest,
            layers,
        }
    }

    pub fn digest(&self) -> String {
        sha256(&self.manifest)
    }

    /// As a directory that umoci and `ImageStore::import` read.
    pub fn write_layout(&self, dir: &Path) {
        let blobs = dir.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        for (digest, blob) in self.blobs.iter().chain([&(self.digest(), self.manifest.clone())]) {
            std::fs::write(blobs.join(&digest[7..]), blob).unwrap();
        }
        let index = serde_json::json!({"schemaVersion": 2, "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": self.digest(),
            "size": self.manifest.len(), "annotations": {"org.opencontainers.image.ref.name": "latest"}}]});
        std::fs::write(dir.join("index.json"), index.to_string()).unwrap();
        std::fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}
