//! `kvmlet vm run`: a machine for people. Its console is this process's standard input and output, its end this process's.

use std::{
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::net::UnixListener},
    path::Path,
    process::ExitCode,
};

use anyhow::Context as _;
use vmm_lib::{
    Builder,
    spec::{FileSource, MachineSpec, Vsock},
    tap,
};

use super::{
    by_hand::{Mistakes, Tap, tell_end},
    request::{self, STDIN, STDOUT},
    running::stop_on_signals,
    terminal::{self, Terminal},
    trace,
};
use crate::cli::RunArguments;

/// Runs what the options say.
pub(crate) fn run(arguments: &RunArguments) -> anyhow::Result<ExitCode> {
    let mut mistakes = Mistakes::default();
    let taps: Vec<_> = arguments.tap.iter().map(|text| Tap::parse(text, &mut mistakes)).collect();
    let spec = match &arguments.spec {
        Some(file) => from_file(file, taps.iter().map(|tap| tap.queues).sum(), &mut mistakes),
        None => Some(request::spec(arguments, &mut mistakes)),
    };
    let mut files = Vec::new();
    if !arguments.print_spec {
        for Tap { name, queues } in taps {
            match tap::open_tap_queues(name, queues) {
                Ok(tap) => files.extend(tap),
                Err(error) => mistakes.add(&format!("--tap {name}"), error),
            }
        }
    }
    mistakes.check()?;
    let spec = spec.expect("without a specification there is a mistake");
    if arguments.print_spec {
        println!("{}", serde_json::to_string_pretty(&spec)?);
        return Ok(ExitCode::SUCCESS);
    }
    // What the library has to say of a guest that breaks rules.
    tracing_subscriber::fmt()
        .with_max_level(tracing::Level::WARN)
        .with_writer(io::stderr)
        .init();
    let sockets = [
        spec.vsock.as_ref().map(|vsock| vsock.socket.clone()),
        arguments.control.clone().map(FileSource::Path),
    ];
    let result = if arguments.boot_trace {
        trace::run(spec, files)
    } else {
        to_end(spec, files, arguments.control.as_deref())
    };
    for socket in sockets.into_iter().flatten() {
        if let FileSource::Path(path) = socket {
            // It may not even have been made.
            let _ = std::fs::remove_file(path);
        }
    }
    result
}

/// The specification in a file.
fn from_file(path: &Path, taps: usize, mistakes: &mut Mistakes) -> Option<MachineSpec> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        io::stdin().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(path).map(|content| text = content)
    };
    let what = format!("--spec {}", path.display());
    if let Err(error) = read {
        mistakes.add(&what, error);
        return None;
    }
    let spec: MachineSpec = serde_json::from_str(&text).map_err(|error| mistakes.add(&what, error)).ok()?;
    if let Err(errors) = spec.validate(taps) {
        for error in errors.0 {
            mistakes.add(&what, error);
        }
    }
    if let Some(Vsock {
        socket: FileSource::Path(path),
        ..
    }) = &spec.vsock
    {
        mistakes.check_socket(&format!("{what}: vsock.socket"), path);
    }
    Some(spec)
}

fn to_end(mut spec: MachineSpec, mut files: Vec<OwnedFd>, control: Option<&Path>) -> anyhow::Result<ExitCode> {
    let terminal = standard_streams(&mut spec, &mut files)?;
    let memory = spec.memory;
    let machine = Builder::new(spec, files).build().context("make the machine")?;
    let (handle, screen) = (machine.handle(), machine.screen());
    stop_on_signals(handle.clone(), move || {
        if let (Some(screen), Some(size)) = (&screen, terminal::size()) {
            screen.resize(size.columns, size.rows);
        }
    })?;
    if let Some(path) = control {
        // One of a machine that is gone: that it is a socket was looked at.
        let _ = std::fs::remove_file(path);
        let listener = UnixListener::bind(path).with_context(|| format!("listen at {}", path.display()))?;
        kvmlet_machine::serve_by_hand(listener, machine.handle(), memory)?;
    }
    let carrying = terminal.map(|terminal| terminal.start(handle)).transpose()?;
    let exit = machine.run().exit;
    if let Some(carrying) = carrying {
        carrying.end();
    }
    Ok(tell_end(&exit))
}

/// Puts pipes of ours where a console is to be our standard streams: their paths may not be opened again (a socket's, another user's terminal's),
/// and they may block. The first console that names one gets it.
fn standard_streams(spec: &mut MachineSpec, files: &mut Vec<OwnedFd>) -> anyhow::Result<Option<Terminal>> {
    let console = spec.console.iter_mut().map(|console| (&mut console.output, &mut console.input));
    let serial = spec.serial.iter_mut().map(|serial| (&mut serial.output, &mut serial.input));
    let Some((output, input)) = console
        .chain(serial)
        .find(|(output, _)| **output == FileSource::Path(STDOUT.into()))
    else {
        return Ok(None);
    };
    let asked = *input == Some(FileSource::Path(STDIN.into()));
    let (terminal, ends) = Terminal::new(asked)?;
    *output = pass(files, ends.output);
    if asked {
        *input = ends.input.map(|end| pass(files, end));
    }
    Ok(Some(terminal))
}

/// One more descriptor for the machine.
fn pass(files: &mut Vec<OwnedFd>, file: OwnedFd) -> FileSource {
    files.push(file);
    FileSource::Passed(files.len() as u32 - 1)
}
