//! Devices that there may be several of: disks, images, shares, networks.

use std::collections::BTreeSet;

use super::{Checker, PAGE, SECTOR, SpecErrors};
use crate::attach::Attachment;
use crate::memory::IMAGE_STEP;
use crate::spec::{
    Disk, DiskEngine, DiskFormat, Extent, FileSource, MAX_DISKS, MAX_NETS, MAX_PMEM, MAX_QUEUE_PAIRS, MAX_SERIAL, MAX_STORES, MAX_TAG,
    MachineSpec, Net, Pmem, Share,
};

impl Checker {
    pub(super) fn disk(&mut self, disk: &Disk, path: &str) {
        let serial = format!("{path}.serial");
        let length = disk.serial.len();
        self.require((1..=MAX_SERIAL).contains(&length), &serial, || {
            format!("has {length} bytes, not 1 to {MAX_SERIAL}")
        });
        let printable = disk.serial.bytes().all(|byte| byte.is_ascii_graphic());
        self.require(printable, &serial, || "is not printable ASCII without spaces".to_owned());
        let extents = format!("{path}.extents");
        match disk.format {
            DiskFormat::Raw => self.extents(&disk.extents, &extents, SECTOR),
            DiskFormat::Qcow2 => self.extents(&disk.extents, &extents, 1),
        };
        let whole = disk.format == DiskFormat::Raw || matches!(disk.extents.as_slice(), [] | [Extent { offset: 0, .. }]);
        self.require(whole, &extents, || {
            "are not the one file, from its beginning on, that a qcow2 image is".to_owned()
        });
        self.limits(&disk.limits, &format!("{path}.limits"));
        let fits = disk.engine == DiskEngine::Calls || disk.format == DiskFormat::Raw;
        self.require(fits, &format!("{path}.engine"), || "io_uring is for raw disks only".to_owned());
    }

    pub(super) fn pmem(&mut self, pmem: &Pmem, path: &str) {
        let size = self.extents(&pmem.extents, path, PAGE);
        self.require(size.is_none_or(|size| size <= MAX_PMEM), path, || {
            format!("are together larger than {MAX_PMEM}")
        });
        for (number, extent) in pmem.extents.iter().enumerate() {
            self.require(extent.offset.is_multiple_of(PAGE), &format!("{path}[{number}].offset"), || {
                format!("{} is not a multiple of {PAGE}", extent.offset)
            });
        }
    }

    /// What is opened for a machine that runs is opened by somebody else.
    fn passed_open(&mut self, extents: &[Extent], path: &str) {
        for (number, extent) in extents.iter().enumerate() {
            let path = format!("{path}[{number}].file");
            self.require(matches!(extent.file, FileSource::Passed(_)), &path, || {
                "is a path: files of a machine that runs must be passed open".to_owned()
            });
        }
    }

    pub(super) fn share(&mut self, share: &Share, path: &str) {
        let tag = format!("{path}.tag");
        let length = share.tag.len();
        self.require((1..=MAX_TAG).contains(&length), &tag, || {
            format!("has {length} bytes, not 1 to {MAX_TAG}")
        });
        self.require(!share.tag.contains('\0'), &tag, || "contains a NUL byte".to_owned());
        let socket = format!("{path}.socket");
        self.file(&share.socket, &socket);
        self.require(matches!(share.socket, FileSource::Passed(_)), &socket, || {
            "is a path: a socket must be passed connected".to_owned()
        });
    }

    pub(super) fn net(&mut self, net: &Net, path: &str) {
        for (queue, path) in queues(net, path) {
            self.file(queue, &path);
            self.require(matches!(queue, FileSource::Passed(_)), &path, || {
                "is a path: a tap must be passed open".to_owned()
            });
        }
        let pairs = 1 + net.more_queues.len();
        self.require(pairs <= MAX_QUEUE_PAIRS, &format!("{path}.moreQueues"), || {
            format!("and the tap are {pairs} queues, more than {MAX_QUEUE_PAIRS}")
        });
        let unicast = net.mac[0] & 1 == 0 && net.mac != [0; 6];
        self.require(unicast, &format!("{path}.mac"), || "is not a unicast address".to_owned());
        self.limits(&net.limits.receive, &format!("{path}.limits.receive"));
        self.limits(&net.limits.transmit, &format!("{path}.limits.transmit"));
        self.require(net.mtu >= 68, &format!("{path}.mtu"), || format!("{} is below 68", net.mtu));
    }
}

/// The queues of a tap, each with its path.
fn queues<'n>(net: &'n Net, path: &str) -> impl Iterator<Item = (&'n FileSource, String)> {
    let more = net.more_queues.iter().enumerate();
    let more = more.map(|(number, queue)| (queue, format!("{path}.moreQueues[{number}]")));
    std::iter::once((&net.tap, format!("{path}.tap"))).chain(more.collect::<Vec<_>>())
}

impl Attachment {
    /// Checks every field; `passed` is the number of descriptors that come with it.
    pub fn validate(&self, passed: usize) -> Result<(), SpecErrors> {
        let mut check = Checker::new(passed);
        match self {
            Self::Disk(disk) => {
                check.disk(disk, "disk");
                check.passed_open(&disk.extents, "disk.extents");
            }
            Self::Pmem(pmem) => {
                check.pmem(pmem, "pmem.extents");
                check.require(!pmem.name.is_empty(), "pmem.name", || "is empty".to_owned());
                check.passed_open(&pmem.extents, "pmem.extents");
            }
            Self::Net(net) => check.net(net, "net"),
            Self::Share(share) => check.share(share, "share"),
        }
        check.end()
    }
}

impl MachineSpec {
    pub(super) fn disks(&self, check: &mut Checker) {
        check.require(self.disks.len() <= MAX_DISKS, "disks", || {
            format!("{} are more than {MAX_DISKS}", self.disks.len())
        });
        let mut serials = BTreeSet::new();
        for (index, disk) in self.disks.iter().enumerate() {
            let path = format!("disks[{index}]");
            check.require(serials.insert(&disk.serial), &format!("{path}.serial"), || {
                format!("{:?} is not unique", disk.serial)
            });
            check.disk(disk, &path);
        }
    }

    pub(super) fn pmems(&self, check: &mut Checker) {
        let stores = self.disks.len() + self.pmems.len();
        check.require(stores <= MAX_STORES, "pmems", || {
            format!("and disks together are {stores}, more than {MAX_STORES}")
        });
        for (index, pmem) in self.pmems.iter().enumerate() {
            check.pmem(pmem, &format!("pmems[{index}].extents"));
        }
        let room = self.pmem_room;
        check.require(room.is_multiple_of(IMAGE_STEP) && room <= MAX_PMEM, "pmemRoom", || {
            format!("{room} is not a multiple of {IMAGE_STEP} up to {MAX_PMEM}")
        });
    }

    pub(super) fn shares(&self, check: &mut Checker) {
        let stores = self.disks.len() + self.pmems.len() + self.shares.len();
        check.require(self.shares.is_empty() || stores <= MAX_STORES, "shares", || {
            format!("with disks and pmems are {stores}, more than {MAX_STORES}")
        });
        let (mut tags, mut sockets) = (BTreeSet::new(), BTreeSet::new());
        for (index, share) in self.shares.iter().enumerate() {
            let path = format!("shares[{index}]");
            check.share(share, &path);
            check.require(tags.insert(&share.tag), &format!("{path}.tag"), || {
                format!("{:?} is not unique", share.tag)
            });
            if let FileSource::Passed(number) = share.socket {
                check.require(sockets.insert(number), &format!("{path}.socket"), || {
                    format!("descriptor {number} serves another share already")
                });
            }
        }
    }

    pub(super) fn nets(&self, check: &mut Checker) {
        check.require(self.nets.len() <= MAX_NETS, "nets", || {
            format!("{} are more than {MAX_NETS}", self.nets.len())
        });
        let mut taps = BTreeSet::new();
        for (index, net) in self.nets.iter().enumerate() {
            let path = format!("nets[{index}]");
            for (queue, path) in queues(net, &path) {
                if let FileSource::Passed(number) = queue {
                    check.require(taps.insert(number), &path, || {
                        format!("descriptor {number} serves another interface already")
                    });
                }
            }
            check.net(net, &path);
        }
    }
}
