//! Kernels that are any bytes: refused, or loaded as the file says where kernels may lie, with an initramfs behind them and nothing beside.

use std::cell::OnceCell;
use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::MemfdFlags;
use vm_memory::{Bytes, GuestAddress};

use super::{ACPI, COMMAND_LINE, Entry, HIGH_START, LOW_END, Plan, START_INFO, ZERO_PAGE};
use crate::dirty::Ram;
use crate::memory::Layout;
use crate::timeline::Timeline;

/// RAM: room for a kernel of 1 MiB.
const MEMORY: u64 = 2 << 20;
const INITRAMFS: usize = 5000;
const LINE: &str = "quiet";

fn file(content: &[u8]) -> File {
    thread_local! {
        static SHARED: OnceCell<File> = const { OnceCell::new() };
    }
    let made = || File::from(rustix::fs::memfd_create("kernel", MemfdFlags::CLOEXEC).expect("the host makes files in memory"));
    let file = SHARED
        .with(|shared| shared.get_or_init(made).try_clone())
        .expect("a descriptor is to be had");
    file.set_len(content.len() as u64).expect("a file can be cut");
    file.write_all_at(content, 0).expect("and written");
    file
}

fn initramfs() -> File {
    thread_local! {
        static SHARED: OnceCell<File> = const { OnceCell::new() };
    }
    let made = || {
        let file = File::from(rustix::fs::memfd_create("initramfs", MemfdFlags::CLOEXEC).expect("the host makes files in memory"));
        file.write_all_at(&[0xa7; INITRAMFS], 0).expect("and fills them");
        file
    };
    SHARED
        .with(|shared| shared.get_or_init(made).try_clone())
        .expect("a descriptor is to be had")
}

/// What was loaded, and where.
struct Loaded {
    memory: Ram,
    entry: Entry,
}

impl Loaded {
    fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).expect("it is memory");
        bytes
    }

    fn number<const N: usize>(&self, address: u64) -> u64 {
        let mut number = [0; 8];
        number[..N].copy_from_slice(&self.bytes(address, N));
        u64::from_le_bytes(number)
    }

    /// The initramfs lies as a whole where it is said to lie, and what lies between the structures is untouched.
    fn check(&self, initramfs: (u64, u64), entry: u64) {
        assert!((HIGH_START..MEMORY).contains(&entry), "entered at {entry:#x}");
        let (address, size) = initramfs;
        assert_eq!((size, address % 4096), (INITRAMFS as u64, 0));
        assert!(address >= HIGH_START && address + size <= MEMORY);
        assert!(
            self.bytes(address, INITRAMFS).iter().all(|byte| *byte == 0xa7),
            "the initramfs is torn"
        );
        assert_eq!(self.bytes(COMMAND_LINE, LINE.len() + 1), [LINE.as_bytes(), &[0]].concat());
        for (from, to) in [
            (0, START_INFO),
            (ZERO_PAGE + 0x1000, COMMAND_LINE),
            (COMMAND_LINE + 0x1000, LOW_END),
            (LOW_END, ACPI),
        ] {
            assert!(
                self.bytes(from, (to - from) as usize).iter().all(|byte| *byte == 0),
                "{from:#x} to {to:#x}"
            );
        }
    }
}

fn load(content: &[u8]) -> Option<Loaded> {
    let memory = Ram::from_ranges(&[(GuestAddress(0), MEMORY as usize)]).expect("the host has 2 MiB");
    let layout = Layout::new(MEMORY, 0, &[], (0, 0), 40).expect("fits");
    let plan = Plan {
        memory: &memory,
        layout: &layout,
        kernel: &file(content),
        initramfs: Some(&initramfs()),
        command_line: LINE,
        cpus: 2,
        serial: false,
    };
    let entry = super::load(&plan, &mut Timeline::begin()).ok()?;
    Some(Loaded { memory, entry })
}

fn number<const N: usize>(content: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number[..N].copy_from_slice(&content[at..at + N]);
    u64::from_le_bytes(number)
}

/// An ELF kernel, or what says so.
pub fn elf(data: &[u8]) {
    let Some(loaded) = load(data) else { return };
    let Entry::Pvh { entry, start_info } = loaded.entry else { return };
    assert_eq!((start_info, loaded.number::<4>(START_INFO)), (START_INFO, 0x336e_c578));
    let list = loaded.number::<8>(START_INFO + 16);
    let initramfs = (loaded.number::<8>(list), loaded.number::<8>(list + 8));
    loaded.check(initramfs, entry);
    let headers = number::<8>(data, 32) as usize;
    let mut entered = false;
    for index in 0..number::<2>(data, 56) as usize {
        let at = headers + 56 * index;
        let (kind, offset) = (number::<4>(data, at), number::<8>(data, at + 8) as usize);
        let (address, size, whole) = (number::<8>(data, at + 24), number::<8>(data, at + 32), number::<8>(data, at + 40));
        if kind != 1 || whole == 0 {
            continue;
        }
        assert!(address >= HIGH_START && address + whole <= initramfs.0, "a segment at {address:#x}");
        let segment = loaded.bytes(address, whole as usize);
        let (given, rest) = segment.split_at(size as usize);
        assert_eq!(given, &data[offset..offset + given.len()]);
        assert!(rest.iter().all(|byte| *byte == 0), "what the file does not fill is zero");
        entered |= (address..address + whole).contains(&entry);
    }
    assert!(entered, "entered beside all segments");
}

/// A bzImage: the input, with the magic number in its place.
pub fn bzimage(data: &[u8]) {
    let mut content = data.to_vec();
    content.resize(content.len().max(0x300), 0);
    content[0x202..0x206].copy_from_slice(b"HdrS");
    let Some(loaded) = load(&content) else { return };
    let Entry::Linux64 { entry, zero_page } = loaded.entry else {
        panic!("a bzImage that was loaded as something else")
    };
    assert_eq!(zero_page, ZERO_PAGE);
    let initramfs = (loaded.number::<4>(ZERO_PAGE + 0x218), loaded.number::<4>(ZERO_PAGE + 0x21c));
    loaded.check(initramfs, entry);
    let start = entry - 0x200;
    let payload = 512 * (1 + if content[0x1f1] == 0 { 4 } else { usize::from(content[0x1f1]) });
    let said = 16 * number::<4>(&content, 0x1f4) as usize;
    let payload = &content[payload..content.len().min(payload + said)];
    assert!(payload.len() > 0x200 && payload.len() + 16 > said, "a payload cut short");
    assert_eq!(loaded.bytes(start, payload.len()), payload);
    let end = start + number::<4>(&content, 0x260).max(payload.len() as u64);
    assert!(end <= initramfs.0, "the kernel unpacks itself over its initramfs");
    assert!(loaded.number::<1>(ZERO_PAGE + 0x1e8) >= 4, "no memory map");
}
