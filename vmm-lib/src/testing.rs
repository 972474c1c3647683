//! Machines of a few instructions and snapshots of them, for tests that look at more than a user of this library can.

#[path = "../tests/support/bzimage.rs"]
mod bzimage;

use std::fs::File;
use std::path::PathBuf;

use crate::builder::Builder;
use crate::exit::MachineExit;
use crate::snapshot::SnapshotFiles;
use crate::spec::{Boot, FileSource, MachineSpec, Restore, SPEC_VERSION};

/// `jmp` to itself.
pub(crate) const SPIN: [u8; 2] = [0xeb, 0xfe];

/// The plainest machine of a kernel.
pub(crate) fn spec(kernel: FileSource) -> MachineSpec {
    MachineSpec {
        version: SPEC_VERSION,
        name: "test".into(),
        cpus: 1,
        memory: 32 << 20,
        boot: Boot {
            kernel,
            initramfs: None,
            command_line: String::new(),
        },
        disks: Vec::new(),
        pmems: Vec::new(),
        shares: Vec::new(),
        nets: Vec::new(),
        vsock: None,
        rng: false,
        balloon: false,
        hotplug: None,
        serial: None,
        comb: None,
        restore: None,
        pmem_room: 0,
        dirty_log: false,
        console: None,
        watchdog: None,
        count_exits: false,
    }
}

/// A snapshot of a machine that has run.
pub(crate) struct Snapshotted {
    pub(crate) directory: tempfile::TempDir,
}

impl Snapshotted {
    /// Runs `code` and takes one, at which the machine ends.
    pub(crate) fn new(code: &[u8]) -> Self {
        let new = Self {
            directory: tempfile::tempdir().expect("a directory"),
        };
        std::fs::write(new.kernel(), bzimage::bzimage(code)).expect("it can be written");
        let machine = Builder::new(spec(FileSource::Path(new.kernel())), Vec::new())
            .build()
            .expect("this KVM makes machines");
        let handle = machine.handle();
        let running = std::thread::spawn(|| machine.run());
        let create = |path| {
            let options = File::options().read(true).write(true).create_new(true).open(path);
            options.expect("a file can be made")
        };
        let files = SnapshotFiles {
            state: create(new.state()),
            memory: create(new.memory()),
        };
        handle.snapshot(files, false).expect("a snapshot");
        assert_eq!(running.join().expect("no panic").exit, MachineExit::Stopped);
        new
    }

    fn kernel(&self) -> PathBuf {
        self.directory.path().join("kernel")
    }

    /// Where its state is.
    pub(crate) fn state(&self) -> PathBuf {
        self.directory.path().join("state")
    }

    /// Where its memory is.
    pub(crate) fn memory(&self) -> PathBuf {
        self.directory.path().join("memory")
    }

    /// A machine that goes on with it.
    pub(crate) fn restored(&self) -> MachineSpec {
        MachineSpec {
            restore: Some(Restore {
                state: FileSource::Path(self.state()),
                memory: FileSource::Path(self.memory()),
                working_set: None,
                verify: true,
            }),
            ..spec(FileSource::Path(self.kernel()))
        }
    }
}
