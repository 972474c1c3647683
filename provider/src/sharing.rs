//! Files whose pages pods share, and copies of them where they may not ([`crate::config::SharingPolicy`]): a copy is another file, so it has pages of its own,
//! while a file system that can (FICLONE) keeps its bytes on disk once.
//!
//! ```text
//! STATE/copies/NAMESPACE/{images,templates}/…    for the pods of a namespace, as long as it has any here
//! MACHINE/copies/{images,templates}/…             for one pod: goes with its machine
//! ```

use std::{
    collections::BTreeSet,
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use kvmlet_image::ImageDevice;
use rustix::fs::{SeekFrom, ioctl_ficlone, seek};
use tokio::sync::Mutex;
use tracing::{info, warn};
use vmm_lib::spec::{FileSource, MachineSpec, Restore};

use crate::{
    act::chain,
    config::{Config, Sharing, SharingPolicy},
    template::Start,
};

/// Bytes of one step of a copy.
const STEP: usize = 1 << 20;

/// The copies of a node.
#[derive(Debug)]
pub struct Copies {
    policy: SharingPolicy,
    directory: PathBuf,
    /// Where the originals lie, with the name of each place.
    places: [(&'static str, PathBuf); 2],
    /// One at a time: the disk is no faster for two.
    making: Mutex<()>,
}

impl Copies {
    /// Of a node whose images lie there.
    pub fn new(config: &Config, images: &Path) -> Self {
        Self {
            policy: config.sharing,
            directory: config.state_dir.join("copies"),
            places: [("images", images.to_owned()), ("templates", config.state_dir.join("templates"))],
            making: Mutex::new(()),
        }
    }

    /// The image, for a pod of this namespace whose machine has that directory: in files whose pages it may read.
    ///
    /// # Errors
    /// A text for the pod's owner: what could not be copied, and why.
    pub async fn image(&self, namespace: &str, machine: &Path, device: &ImageDevice) -> Result<ImageDevice, String> {
        let mut own = device.clone();
        for extent in &mut own.extents {
            extent.path = self.file(self.policy.images, namespace, machine, &extent.path).await?;
        }
        Ok(own)
    }

    /// Why this node has no template for any pod, if it has none.
    pub fn no_template(&self) -> Option<&'static str> {
        (self.policy.templates == Sharing::None).then_some("the node's configuration shares no templates (sharing.templates)")
    }

    /// What a pod of this namespace whose machine has that directory is offered, as a copy of the template or not, with the template's memory in
    /// a file that it may read. Where that cannot be had the machine is what it was, and boots.
    pub async fn own_template(
        &self,
        (namespace, machine): (&str, &Path),
        booted: &MachineSpec,
        (mut offered, start): (MachineSpec, Start),
    ) -> (MachineSpec, Start) {
        let Some(Restore {
            memory: FileSource::Path(memory),
            ..
        }) = &mut offered.restore
        else {
            return (offered, start);
        };
        match self.file(self.policy.templates, namespace, machine, memory).await {
            Ok(own) => {
                *memory = own;
                (offered, start)
            }
            Err(why) => {
                warn!(why, "a pod does without the node's template");
                (booted.clone(), Start::Boot(why))
            }
        }
    }

    async fn file(&self, sharing: Sharing, namespace: &str, machine: &Path, original: &Path) -> Result<PathBuf, String> {
        let directory = match sharing {
            Sharing::Host => return Ok(original.to_owned()),
            Sharing::Namespace => self.directory.join(namespace),
            Sharing::None => machine.join("copies"),
        };
        let copy = self.of(&directory, original)?;
        if copy.exists() {
            return Ok(copy);
        }
        let _one = self.making.lock().await;
        let (from, to) = (original.to_owned(), copy.clone());
        let made = tokio::task::spawn_blocking(move || make(&from, &to)).await;
        let made = made.map_err(|error| error.to_string())?;
        made.map_err(|error| format!("copy {}, which this pod may not share: {}", original.display(), chain(&error)))?;
        Ok(copy)
    }

    /// Where a directory has its copy of an original.
    fn of(&self, directory: &Path, original: &Path) -> Result<PathBuf, String> {
        let places = self.places.iter();
        let mut inside = places.filter_map(|(name, place)| Some(directory.join(name).join(original.strip_prefix(place).ok()?)));
        inside
            .next()
            .ok_or_else(|| format!("{} is neither an image's nor a template's", original.display()))
    }

    /// Removes the copies of namespaces that have no pod here, and those whose originals are gone. What machines have open, they keep.
    pub fn sweep(&self, namespaces: &BTreeSet<String>) {
        if let Err(error) = self.swept(namespaces) {
            warn!(error = chain(&error), "remove copies that nobody needs");
        }
    }

    fn swept(&self, namespaces: &BTreeSet<String>) -> io::Result<()> {
        for entry in entries(&self.directory)? {
            let name = entry.file_name();
            if !name.to_str().is_some_and(|name| namespaces.contains(name)) {
                fs::remove_dir_all(entry.path())?;
                info!(namespace = ?name, "copies of a namespace without pods are removed");
                continue;
            }
            for (name, place) in &self.places {
                orphans(&entry.path().join(name), place)?;
            }
        }
        Ok(())
    }
}

/// Removes files of `copies` that `originals` has no longer, below both.
fn orphans(copies: &Path, originals: &Path) -> io::Result<()> {
    for entry in entries(copies)? {
        let original = originals.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            orphans(&entry.path(), &original)?;
        } else if !original.exists() && !is_partial(&entry.path()) {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// What a directory has, if there is one.
fn entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.collect(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn partial(copy: &Path) -> PathBuf {
    copy.with_added_extension("partial")
}

fn is_partial(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "partial")
}

/// Makes a copy, whole or not at all.
fn make(original: &Path, copy: &Path) -> io::Result<()> {
    if copy.exists() {
        return Ok(());
    }
    if let Some(directory) = copy.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
    }
    let partial = partial(copy);
    let from = File::open(original)?;
    let to = File::options().write(true).create(true).truncate(true).mode(0o600).open(&partial)?;
    let made = fill(&from, &to).and_then(|()| fs::rename(&partial, copy));
    if made.is_err() {
        // The disk may be full of it.
        let _ = fs::remove_file(&partial);
    }
    made
}

fn fill(from: &File, to: &File) -> io::Result<()> {
    if ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    // The file system cannot, or the two are not on the same one.
    to.set_len(from.metadata()?.len())?;
    copy_data(from, to)
}

/// Copies what is no hole.
fn copy_data(from: &File, to: &File) -> io::Result<()> {
    use std::os::unix::fs::FileExt;
    let (mut bytes, mut end) = (vec![0; STEP], 0);
    loop {
        let start = match seek(from, SeekFrom::Data(end)) {
            Ok(start) => start,
            // Behind the last byte that is one.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        end = seek(from, SeekFrom::Hole(start))?;
        let mut at = start;
        while at < end {
            let most = usize::try_from(end - at).unwrap_or(STEP).min(STEP);
            let count = from.read_at(&mut bytes[..most], at)?;
            if count == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            to.write_all_at(&bytes[..count], at)?;
            at += count as u64;
        }
    }
}

#[cfg(test)]
mod tests;
