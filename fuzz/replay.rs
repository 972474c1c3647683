//! Gives a corpus to the function behind its target, without a fuzzer. The tests of the crates that are fuzzed include this file.

use std::{
    fs,
    panic::catch_unwind,
    path::{Path, PathBuf},
};

/// The directory of this file.
fn fuzz() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors().map(|above| above.join("fuzz"));
    here.into_iter()
        .find(|fuzz| fuzz.join("fuzz_targets").is_dir())
        .expect("the fuzz targets lie beside the crates")
}

fn files(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
    let mut files: Vec<_> = entries.map(|entry| entry.expect("a directory can be listed").path()).collect();
    files.sort();
    files
}

/// Runs every input of a target; a broken rule names its file.
pub(crate) fn replay(target: &str, run: fn(&[u8])) {
    let directory = fuzz().join("corpus").join(target);
    let files = files(&directory);
    assert!(!files.is_empty(), "{} is empty", directory.display());
    for file in files {
        let input = fs::read(&file).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        if catch_unwind(|| run(&input)).is_err() {
            panic!("a rule was broken (see above) by {}", file.display());
        }
    }
}

/// The names of all targets, in order.
#[allow(dead_code, reason = "one of the crates counts them for all")]
pub(crate) fn targets() -> Vec<String> {
    let names = files(&fuzz().join("fuzz_targets")).into_iter();
    names
        .map(|file| file.file_stem().expect("it is a file").to_string_lossy().into_owned())
        .collect()
}
