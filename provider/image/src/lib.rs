//! OCI images pulled into EROFS layers that machines read.
//!
//! A pull streams each layer through digests, limits and a tar reader into a data file, once per host (`layer`), lays the layers'
//! trees over one another (`merge`) and writes their EROFS metadata (`erofs`); `store` keeps the files, `registry` fetches.
//! Nothing of an image is ever unpacked onto the host's file system, and nothing in it is ever run or resolved there.
#![forbid(unsafe_code)]

mod compose;
mod erofs;
mod error;
mod image;
mod keyring;
mod layer;
mod layout;
mod merge;
mod pieces;
mod pull;
mod reference;
mod registry;
mod store;

pub use error::{OpenError, PullError, StoreError};
pub use image::{Extent, ImageConfig, ImageDevice, PulledImage};
pub use keyring::{Credential, Keyring, KeyringError};
pub use layer::{Limit, Limits};
pub use pull::PullProgress;
pub use reference::ImageReference;
pub use registry::{Mirror, RegistryConfig, RegistryHost};
pub use store::{Collected, ImageStore, StoreConfig, Stored, holder, look};
