//! Runs the machine of a JSON specification (paths only): `run_spec FILE`. Prints its report as JSON.

use std::error::Error;

use vmm_lib::Builder;
use vmm_lib::spec::MachineSpec;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("usage: run_spec FILE")?;
    let spec: MachineSpec = serde_json::from_slice(&std::fs::read(path)?)?;
    let report = Builder::new(spec, Vec::new()).build()?.run();
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}
