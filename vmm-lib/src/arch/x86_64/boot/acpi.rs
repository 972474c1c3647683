//! ACPI tables of a hardware-reduced machine: no PIT, PIC, RTC, keyboard controller or VGA; power by sleep and reset registers; one PCI host
//! bridge whose boot-time addresses the guest keeps. Tables only: the registers are in [`crate::power`].

use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, aml};

use super::{BootError, write as write_bytes};
use crate::arch::layout::{ECAM, ECAM_SIZE, IOAPIC, LAPIC, MMIO32};
use crate::arch::power;
use crate::dirty::Ram;
use crate::memory::Layout;
use crate::{generation, serial};

const OEM: [u8; 6] = *b"KVMLET";
const TABLE: [u8; 8] = *b"MICROVM ";
const REVISION: u32 = 1;
/// FADT: no VGA, no CMOS clock; and, by absence, no keyboard controller and no legacy devices.
const NO_VGA_NO_RTC: u16 = 1 << 2 | 1 << 5;
/// PCI firmware specification, 4.6.5.
const PCI_DSM: &str = "E5C937D0-3553-4D7A-9117-EA4D19C3434D";

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

/// Writes all tables from `start` on; returns where the RSDP lies.
pub(super) fn write(memory: &Ram, layout: &Layout, cpus: u8, has_serial: bool, start: u64) -> Result<u64, BootError> {
    let rsdp_address = start;
    let mut next = start + 64;
    let mut put = |table: &[u8]| {
        let address = next;
        next = (next + table.len() as u64).next_multiple_of(16);
        write_bytes(memory, "ACPI tables", address, table).map(|()| address)
    };
    let dsdt = put(dsdt(layout, has_serial).as_slice())?;
    let mut mcfg = MCFG::new(OEM, TABLE, REVISION);
    mcfg.add_ecam(ECAM, 0, 0, 0);
    let mut xsdt = XSDT::new(OEM, TABLE, REVISION);
    for table in [bytes(&fadt(dsdt)), bytes(&madt(cpus)), bytes(&mcfg)] {
        xsdt.add_entry(put(&table)?);
    }
    let xsdt = put(&bytes(&xsdt))?;
    write_bytes(memory, "ACPI tables", rsdp_address, &bytes(&Rsdp::new(OEM, xsdt)))?;
    Ok(rsdp_address)
}

fn fadt(dsdt: u64) -> acpi_tables::fadt::FADT {
    let port = |port: u16| GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM, TABLE, REVISION)
        .dsdt_64(dsdt)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup);
    fadt.iapc_boot_arch = NO_VGA_NO_RTC.into();
    fadt.sleep_control_reg = port(power::SLEEP_CONTROL);
    fadt.sleep_status_reg = port(power::SLEEP_STATUS);
    fadt.reset_reg = port(power::RESET);
    fadt.reset_value = power::RESET_VALUE;
    fadt.finalize()
}

fn madt(cpus: u8) -> MADT {
    let mut madt = MADT::new(OEM, TABLE, REVISION, LocalInterruptController::Address(LAPIC));
    for cpu in 0..cpus {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(cpus, IOAPIC, 0));
    madt
}

fn dsdt(layout: &Layout, has_serial: bool) -> Sdt {
    let mut code = bytes(&host_bridge_scope(layout));
    let off = aml::Package::new(vec![&power::SLEEP_TYPE_S5, &aml::ZERO, &aml::ZERO, &aml::ZERO]);
    code.extend(bytes(&aml::Name::new("_S5_".into(), &off)));
    code.extend(generation_scope());
    if has_serial {
        code.extend(serial_scope());
    }
    let mut dsdt = Sdt::new(*b"DSDT", 36, 6, OEM, TABLE, REVISION);
    dsdt.append_slice(&code);
    dsdt
}

/// The bridge with its windows, and the ECAM as a resource of the board.
fn host_bridge_scope(layout: &Layout) -> Raw {
    let window64 = &layout.mmio64;
    let cacheable = aml::AddressSpaceCacheable::PreFetchable;
    let resources = aml::ResourceTemplate::new(vec![
        &aml::AddressSpace::<u16>::new_bus_number(0, 0),
        &aml::AddressSpace::<u32>::new_memory(
            aml::AddressSpaceCacheable::NotCacheable,
            true,
            MMIO32.start as u32,
            (MMIO32.end - 1) as u32,
            None,
        ),
        &aml::AddressSpace::<u64>::new_memory(cacheable, true, window64.start, window64.end - 1, None),
    ])
    .to_raw();
    let function_0 = aml::BufferData::new(vec![0b10_0001]);
    let none = aml::BufferData::new(vec![0]);
    // Function 5 answers 0: the addresses that we gave the BARs stay.
    let dsm_body = aml::If::new(
        &aml::Equal::new(&aml::Arg(0), &aml::Uuid::new(PCI_DSM)),
        vec![
            &aml::If::new(&aml::Equal::new(&aml::Arg(2), &aml::ZERO), vec![&aml::Return::new(&function_0)]),
            &aml::If::new(&aml::Equal::new(&aml::Arg(2), &5u8), vec![&aml::Return::new(&aml::ZERO)]),
        ],
    )
    .to_raw();
    let dsm = aml::Method::new("_DSM".into(), 4, true, vec![&dsm_body, &aml::Return::new(&none)]).to_raw();
    let bridge = aml::Device::new(
        "PCI0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0A08")),
            &aml::Name::new("_CID".into(), &aml::EISAName::new("PNP0A03")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_SEG".into(), &aml::ZERO),
            &aml::Name::new("_BBN".into(), &aml::ZERO),
            &aml::Name::new("_CBA".into(), &ECAM),
            &aml::Name::new("_CRS".into(), &resources),
            &dsm,
        ],
    )
    .to_raw();
    let board_resources = aml::ResourceTemplate::new(vec![&aml::Memory32Fixed::new(false, ECAM as u32, ECAM_SIZE as u32)]).to_raw();
    let board = aml::Device::new(
        "BRD0".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0C02")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &board_resources),
        ],
    )
    .to_raw();
    aml::Scope::new("_SB_".into(), vec![&bridge, &board]).to_raw()
}

/// The generation identifier, and the generic event device (ACPI 6.5, 5.6.9) that says when it has changed.
fn generation_scope() -> Vec<u8> {
    let name = "VM_Gen_Counter";
    let (low, high) = (generation::ADDRESS as u32, (generation::ADDRESS >> 32) as u32);
    let address = aml::Package::new(vec![&low, &high]).to_raw();
    let identifier = aml::Device::new(
        "VGEN".into(),
        vec![
            &aml::Name::new("_HID".into(), &"VMGENCTR"),
            &aml::Name::new("_CID".into(), &name),
            &aml::Name::new("_DDN".into(), &name),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("ADDR".into(), &address),
        ],
    )
    .to_raw();
    let resources = aml::ResourceTemplate::new(vec![&aml::Interrupt::new(true, true, false, false, generation::IRQ)]).to_raw();
    let changed = aml::Notify::new(&aml::Path::new("\\_SB_.VGEN"), &0x80u8).to_raw();
    let events = aml::Device::new(
        "GED0".into(),
        vec![
            &aml::Name::new("_HID".into(), &"ACPI0013"),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &resources),
            &aml::Method::new("_EVT".into(), 1, true, vec![&changed]),
        ],
    )
    .to_raw();
    bytes(&aml::Scope::new("_SB_".into(), vec![&identifier, &events]))
}

fn serial_scope() -> Vec<u8> {
    let interrupt = aml::Interrupt::new(true, true, false, false, serial::IRQ);
    let resources = aml::ResourceTemplate::new(vec![&interrupt, &aml::IO::new(serial::BASE, serial::BASE, 0, serial::SIZE)]).to_raw();
    let port = aml::Device::new(
        "COM1".into(),
        vec![
            &aml::Name::new("_HID".into(), &aml::EISAName::new("PNP0501")),
            &aml::Name::new("_UID".into(), &aml::ZERO),
            &aml::Name::new("_CRS".into(), &resources),
        ],
    )
    .to_raw();
    bytes(&aml::Scope::new("_SB_".into(), vec![&port]))
}

/// Code that has been made already: the crate's terms borrow their parts, so a tree of them cannot be returned.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        sink.vec(&self.0);
    }
}

/// Makes the code of a term.
trait ToRaw: Aml {
    fn to_raw(&self) -> Raw
    where
        Self: Sized,
    {
        Raw(bytes(self))
    }
}

impl<T: Aml> ToRaw for T {}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestAddress};

    #[test]
    fn all_tables_hang_together_with_right_checksums_below_1_mib() {
        let memory = Ram::from_ranges(&[(GuestAddress(0), 1 << 20)]).expect("the host has 1 MiB");
        let layout = Layout::new(1 << 30, 0, &[], (0, 0), 40).expect("fits");
        let rsdp = write(&memory, &layout, 64, true, 0xe_0000).expect("fits");
        let read = |address: u64, length: usize| {
            let mut data = vec![0; length];
            memory.read_slice(&mut data, GuestAddress(address)).expect("inside");
            data
        };
        let table = |address: u64| {
            let length: u32 = memory.read_obj(GuestAddress(address + 4)).expect("inside");
            let data = read(address, length as usize);
            assert_eq!(
                data.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)),
                0,
                "checksum at {address:#x}"
            );
            data
        };
        assert_eq!(read(rsdp, 8), b"RSD PTR ");
        let xsdt = table(memory.read_obj::<u64>(GuestAddress(rsdp + 24)).expect("inside"));
        let entries: Vec<u64> = xsdt[36..]
            .chunks_exact(8)
            .map(|entry| u64::from_le_bytes(entry.try_into().expect("eight")))
            .collect();
        let names: Vec<_> = entries
            .iter()
            .map(|entry| String::from_utf8(table(*entry)[..4].to_vec()).expect("ASCII"))
            .collect();
        assert_eq!(names, ["FACP", "APIC", "MCFG"]);
        let fadt = table(entries[0]);
        let dsdt = table(u64::from_le_bytes(fadt[140..148].try_into().expect("eight")));
        assert_eq!(&dsdt[..4], b"DSDT");
    }
}
