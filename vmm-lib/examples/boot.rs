//! Boots a kernel with an initramfs and shows its serial console: `boot KERNEL INITRAMFS [OPTION...]`, the options being added to the
//! kernel's command line. Ends with the machine's report on stderr.

use std::error::Error;

use vmm_lib::Builder;
use vmm_lib::spec::{Boot, FileSource, MachineSpec, SPEC_VERSION, Serial};

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(kernel), Some(initramfs)) = (arguments.next(), arguments.next()) else {
        return Err("usage: boot KERNEL INITRAMFS [OPTION...]".into());
    };
    let options: Vec<_> = arguments.collect();
    let spec = MachineSpec {
        version: SPEC_VERSION,
        name: "boot".into(),
        cpus: 2,
        memory: 256 << 20,
        boot: Boot {
            kernel: FileSource::Path(kernel.into()),
            initramfs: Some(FileSource::Path(initramfs.into())),
            command_line: format!(
                "console=ttyS0 8250.nr_uarts=1 pci=noearly panic=-1 reboot=acpi {}",
                options.join(" ")
            ),
        },
        disks: Vec::new(),
        pmems: Vec::new(),
        shares: Vec::new(),
        nets: Vec::new(),
        vsock: None,
        rng: true,
        balloon: true,
        hotplug: None,
        serial: Some(Serial {
            output: FileSource::Path("/dev/stdout".into()),
            input: None,
        }),
        comb: None,
        restore: None,
        pmem_room: 0,
        dirty_log: false,
        console: None,
        watchdog: None,
        count_exits: true,
    };
    let report = Builder::new(spec, Vec::new()).build()?.run();
    eprintln!("{}", serde_json::to_string(&report)?);
    Ok(())
}
