//! Checks a [`MachineSpec`] as a whole: every field out of range is named with its path, all at once. Opens nothing.

mod devices;
mod machine;
#[cfg(test)]
mod tests;

use std::fmt;

use crate::spec::{Bucket, ConsoleSize, Extent, FileSource, Limits, MachineSpec};

/// virtio-blk's unit.
const SECTOR: u64 = 512;
/// What a file is mapped in.
const PAGE: u64 = 4096;

/// A field that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct SpecError {
    /// Path of the field, as in the JSON: `disks[2].extents[0].length`.
    pub path: String,
    /// What is wrong with it.
    pub problem: String,
}

/// All that is wrong with a specification; never empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SpecErrors(pub Vec<SpecError>);

impl fmt::Display for SpecErrors {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(out, "{}{error}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for SpecErrors {}

/// Collects problems.
struct Checker {
    passed: usize,
    errors: Vec<SpecError>,
}

impl Checker {
    fn new(passed: usize) -> Self {
        Self {
            passed,
            errors: Vec::new(),
        }
    }

    fn end(self) -> Result<(), SpecErrors> {
        if self.errors.is_empty() {
            Ok(())
        } else {
            Err(SpecErrors(self.errors))
        }
    }

    fn require(&mut self, holds: bool, path: &str, problem: impl FnOnce() -> String) {
        if !holds {
            self.errors.push(SpecError {
                path: path.to_owned(),
                problem: problem(),
            });
        }
    }

    /// Pieces of files in units of `unit` bytes; their lengths together, where 64 bits can say it.
    fn extents(&mut self, extents: &[Extent], path: &str, unit: u64) -> Option<u64> {
        self.require(!extents.is_empty(), path, || "is empty".to_owned());
        let mut size = Some(0u64);
        for (number, extent) in extents.iter().enumerate() {
            let path = format!("{path}[{number}]");
            self.file(&extent.file, &format!("{path}.file"));
            let whole = extent.length > 0 && extent.length.is_multiple_of(unit);
            self.require(whole, &format!("{path}.length"), || {
                format!("{} is not a multiple of {unit} above 0", extent.length)
            });
            let end = extent.offset.checked_add(extent.length).filter(|end| *end <= i64::MAX as u64);
            self.require(end.is_some(), &format!("{path}.offset"), || {
                format!("{} plus the length is no file offset", extent.offset)
            });
            size = size.and_then(|sum| sum.checked_add(extent.length));
        }
        self.require(size.is_some(), path, || "are together larger than 64 bits can say".to_owned());
        size
    }

    fn limits(&mut self, limits: &Limits, path: &str) {
        for (name, bucket) in [("bytes", limits.bytes), ("operations", limits.operations)] {
            let Some(Bucket { size, refill, .. }) = bucket else { continue };
            for (field, value) in [("size", size), ("refill", refill)] {
                self.require(value > 0, &format!("{path}.{name}.{field}"), || "is 0".to_owned());
            }
        }
    }

    fn file(&mut self, source: &FileSource, path: &str) {
        match source {
            FileSource::Path(file) => {
                self.require(!file.as_os_str().is_empty(), path, || "is an empty path".to_owned());
            }
            FileSource::Passed(index) => {
                let passed = self.passed;
                self.require((*index as usize) < passed, path, || {
                    format!("names descriptor {index}, but {passed} were passed")
                });
            }
        }
    }
}

impl MachineSpec {
    /// Checks every field; `passed` is the number of descriptors that come with the specification.
    pub fn validate(&self, passed: usize) -> Result<(), SpecErrors> {
        let mut check = Checker::new(passed);
        self.shape(&mut check);
        self.boot(&mut check);
        self.comb(&mut check);
        self.functions(&mut check);
        self.disks(&mut check);
        self.pmems(&mut check);
        self.shares(&mut check);
        self.nets(&mut check);
        if let Some(vsock) = &self.vsock {
            check.require((3..u32::MAX).contains(&vsock.cid), "vsock.cid", || {
                format!("{} is not 3 to {}", vsock.cid, u32::MAX - 1)
            });
            check.file(&vsock.socket, "vsock.socket");
        }
        self.hotplug(&mut check);
        if let Some(serial) = &self.serial {
            check.file(&serial.output, "serial.output");
            if let Some(input) = &serial.input {
                check.file(input, "serial.input");
            }
        }
        if let Some(console) = &self.console {
            check.file(&console.output, "console.output");
            if let Some(input) = &console.input {
                check.file(input, "console.input");
            }
            if let Some(ConsoleSize { columns, rows }) = console.size {
                check.require(columns > 0 && rows > 0, "console.size", || {
                    format!("{columns} by {rows} is no size")
                });
            }
        }
        check.end()
    }
}
