//! Devices that there may be several of: disks, images, shares, networks.

use std::collections::BTreeSet;

use super::{Checker, PAGE, SECTOR};
use crate::spec::{DiskFormat, Extent, FileSource, MAX_DISKS, MAX_NETS, MAX_PMEM, MAX_SERIAL, MAX_STORES, MAX_TAG, MachineSpec};

impl MachineSpec {
    pub(super) fn disks(&self, check: &mut Checker) {
        check.require(self.disks.len() <= MAX_DISKS, "disks", || {
            format!("{} are more than {MAX_DISKS}", self.disks.len())
        });
        let mut serials = BTreeSet::new();
        for (index, disk) in self.disks.iter().enumerate() {
            let path = format!("disks[{index}].serial");
            let length = disk.serial.len();
            check.require((1..=MAX_SERIAL).contains(&length), &path, || {
                format!("has {length} bytes, not 1 to {MAX_SERIAL}")
            });
            let printable = disk.serial.bytes().all(|byte| byte.is_ascii_graphic());
            check.require(printable, &path, || "is not printable ASCII without spaces".to_owned());
            check.require(serials.insert(&disk.serial), &path, || format!("{:?} is not unique", disk.serial));
            let path = format!("disks[{index}].extents");
            match disk.format {
                DiskFormat::Raw => check.extents(&disk.extents, &path, SECTOR),
                DiskFormat::Qcow2 => check.extents(&disk.extents, &path, 1),
            };
            let whole = disk.format == DiskFormat::Raw || matches!(disk.extents.as_slice(), [] | [Extent { offset: 0, .. }]);
            check.require(whole, &path, || {
                "are not the one file, from its beginning on, that a qcow2 image is".to_owned()
            });
            check.limits(&disk.limits, &format!("disks[{index}].limits"));
        }
    }

    pub(super) fn pmems(&self, check: &mut Checker) {
        let stores = self.disks.len() + self.pmems.len();
        check.require(stores <= MAX_STORES, "pmems", || {
            format!("and disks together are {stores}, more than {MAX_STORES}")
        });
        for (index, pmem) in self.pmems.iter().enumerate() {
            let path = format!("pmems[{index}].extents");
            let size = check.extents(&pmem.extents, &path, PAGE);
            check.require(size.is_none_or(|size| size <= MAX_PMEM), &path, || {
                format!("are together larger than {MAX_PMEM}")
            });
            for (number, extent) in pmem.extents.iter().enumerate() {
                check.require(extent.offset.is_multiple_of(PAGE), &format!("{path}[{number}].offset"), || {
                    format!("{} is not a multiple of {PAGE}", extent.offset)
                });
            }
        }
    }

    pub(super) fn shares(&self, check: &mut Checker) {
        let stores = self.disks.len() + self.pmems.len() + self.shares.len();
        check.require(self.shares.is_empty() || stores <= MAX_STORES, "shares", || {
            format!("with disks and pmems are {stores}, more than {MAX_STORES}")
        });
        let (mut tags, mut sockets) = (BTreeSet::new(), BTreeSet::new());
        for (index, share) in self.shares.iter().enumerate() {
            let path = format!("shares[{index}].tag");
            let length = share.tag.len();
            check.require((1..=MAX_TAG).contains(&length), &path, || {
                format!("has {length} bytes, not 1 to {MAX_TAG}")
            });
            check.require(!share.tag.contains('\0'), &path, || "contains a NUL byte".to_owned());
            check.require(tags.insert(&share.tag), &path, || format!("{:?} is not unique", share.tag));
            let path = format!("shares[{index}].socket");
            check.file(&share.socket, &path);
            match share.socket {
                FileSource::Path(_) => check.require(false, &path, || "is a path: a socket must be passed connected".to_owned()),
                FileSource::Passed(number) => check.require(sockets.insert(number), &path, || {
                    format!("descriptor {number} serves another share already")
                }),
            }
        }
    }

    pub(super) fn nets(&self, check: &mut Checker) {
        check.require(self.nets.len() <= MAX_NETS, "nets", || {
            format!("{} are more than {MAX_NETS}", self.nets.len())
        });
        let mut taps = BTreeSet::new();
        for (index, net) in self.nets.iter().enumerate() {
            let path = format!("nets[{index}].tap");
            check.file(&net.tap, &path);
            check.require(!matches!(net.tap, FileSource::Path(_)), &path, || {
                "is a path: a tap must be passed open".to_owned()
            });
            if let FileSource::Passed(number) = net.tap {
                check.require(taps.insert(number), &path, || {
                    format!("descriptor {number} serves another interface already")
                });
            }
            let unicast = net.mac[0] & 1 == 0 && net.mac != [0; 6];
            check.require(unicast, &format!("nets[{index}].mac"), || "is not a unicast address".to_owned());
            check.limits(&net.limits.receive, &format!("nets[{index}].limits.receive"));
            check.limits(&net.limits.transmit, &format!("nets[{index}].limits.transmit"));
            check.require(net.mtu >= 68, &format!("nets[{index}].mtu"), || format!("{} is below 68", net.mtu));
        }
    }
}
