//! Acting as the guest's user for as long as it takes to create a file, so that it belongs to that user from its first moment on, by the
//! host's own rules (set-group-id directories). Only the calling thread changes; its capabilities stay.

use rustix::{
    io::Errno,
    process::{Gid, Uid, getegid, geteuid, getgid, getuid},
    thread::{CapabilitiesSecureBits, set_capabilities_secure_bits, set_thread_res_gid, set_thread_res_uid},
};

/// Lets capabilities stay when the user changes; for the calling thread and those that it makes. Needs CAP_SETPCAP.
pub fn keep_capabilities() -> std::io::Result<()> {
    let bits = CapabilitiesSecureBits::NO_SETUID_FIXUP | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED;
    Ok(set_capabilities_secure_bits(bits)?)
}

/// The calling thread as another user; itself again when dropped.
#[must_use]
pub(crate) struct Acting {
    uid: Uid,
    gid: Gid,
}

impl Acting {
    /// As this user and group. Users that are none (as -1) cannot be acted as.
    pub(crate) fn as_user(uid: u32, gid: u32) -> Result<Self, Errno> {
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        let acting = Self {
            uid: getuid(),
            gid: getgid(),
        };
        let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
        if gid != getegid() {
            set_thread_res_gid(acting.gid, gid, acting.gid)?;
        }
        if uid != geteuid() {
            set_thread_res_uid(acting.uid, uid, acting.uid)?;
        }
        Ok(acting)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if geteuid() != self.uid {
            set_thread_res_uid(self.uid, self.uid, self.uid).expect("whoever could leave its user can come back");
        }
        if getegid() != self.gid {
            set_thread_res_gid(self.gid, self.gid, self.gid).expect("whoever could leave its group can come back");
        }
    }
}
