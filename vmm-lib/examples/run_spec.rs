//! Runs the machine of a JSON specification: `run_spec FILE [TAP...]`; the named taps are opened and passed in that order, from descriptor
//! 0 on. Prints the machine's report as JSON.

use std::error::Error;

use vmm_lib::Builder;
use vmm_lib::spec::MachineSpec;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let path = arguments.next().ok_or("usage: run_spec FILE [TAP...]")?;
    let spec: MachineSpec = serde_json::from_slice(&std::fs::read(path)?)?;
    let taps = arguments.map(|name| vmm_lib::tap::open_tap(&name)).collect::<Result<Vec<_>, _>>()?;
    let report = Builder::new(spec, taps).build()?.run();
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
