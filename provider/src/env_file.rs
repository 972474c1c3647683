//! Variables out of files that containers of the pod have written (`env.valueFrom.fileKeyRef`, KEP-3721): the kubelet's own strict form of
//! them (pkg/kubelet/util/env), and the asking for the files, which lie in the guest.

use std::collections::BTreeMap;

use kvmlet_protocol::{READ_FILE_VERSION, Request, Response};

use crate::{
    act::chain,
    agent::{Agent, AgentError},
    desired::{DesiredContainer, DesiredPod},
    streams,
};

/// The longest line, as Go's bufio.Scanner has it.
const LONGEST: usize = 64 << 10;

/// Files by volume and path, or why one could not be read.
pub type Files = BTreeMap<(String, String), Result<Vec<u8>, String>>;

/// The files that a container's variables come from; the error is for people.
pub async fn gather(agent: &mut Agent, pod: &DesiredPod, container: &DesiredContainer) -> Result<Files, String> {
    let mut files = Files::new();
    for variable in pod.spec_of(container).env.iter().flatten() {
        let Some(from) = variable.value_from.as_ref().and_then(|from| from.file_key_ref.as_ref()) else {
            continue;
        };
        // Others the API server does not let in.
        if !pod.volumes().iter().any(|v| v.name == from.volume_name && v.empty_dir.is_some()) {
            continue;
        }
        let version = agent.welcome().version;
        if version < READ_FILE_VERSION {
            return Err(streams::too_old(version, READ_FILE_VERSION));
        }
        let place = (from.volume_name.clone(), from.path.clone());
        if files.contains_key(&place) {
            continue;
        }
        let request = Request::ReadFile {
            volume: place.0.clone(),
            path: place.1.clone(),
        };
        let file = match agent.ask(&request).await {
            Ok(Response::File(bytes)) => Ok(bytes.into_vec()),
            Err(AgentError::Failed(failure)) => Err(failure.message),
            Ok(_) => return Err("the agent answered with something else".into()),
            Err(error) => return Err(chain(&error)),
        };
        files.insert(place, file);
    }
    Ok(files)
}

/// The value of `key` in a file; nothing where it has none, or an empty one. What stands behind it does not matter.
///
/// # Errors
/// What is not as it must be, with its line.
pub fn value(file: &[u8], key: &str) -> Result<Option<String>, String> {
    let text = String::from_utf8_lossy(file);
    let mut lines = lines(&text).enumerate().map(|(number, line)| (number + 1, line));
    while let Some((number, line)) = lines.next() {
        let wrong = |what: &str| Err(format!("invalid environment variable format at line {number}: {what}"));
        let line = line?.trim_start_matches([' ', '\t']);
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((name, given)) = line.split_once('=') else {
            return wrong("missing '='");
        };
        if name.trim_end_matches([' ', '\t']).is_empty() {
            return wrong("empty variable name");
        }
        if name.ends_with([' ', '\t']) {
            return wrong("whitespace before '=' is not allowed");
        }
        if given.starts_with([' ', '\t']) {
            // As a shell has it: the variable is empty.
            if name == key {
                return Ok(None);
            }
            continue;
        }
        let Some(mut rest) = given.strip_prefix('\'') else {
            return wrong("value must be enclosed in single quotes");
        };
        let (mut value, mut at) = (Vec::new(), number);
        let after = loop {
            if let Some((inside, after)) = rest.split_once('\'') {
                value.push(inside);
                break after.trim_start_matches([' ', '\t']);
            }
            value.push(rest);
            let Some((number, next)) = lines.next() else {
                return Err(format!(
                    "invalid environment variable format starting at line {number}: unclosed single quote"
                ));
            };
            (at, rest) = (number, next?);
        };
        if !after.is_empty() && !after.starts_with('#') {
            return Err(format!(
                "invalid environment variable format at line {at}: unexpected content after closing quote"
            ));
        }
        if name == key {
            return Ok(Some(value.join("\n")).filter(|value| !value.is_empty()));
        }
    }
    Ok(None)
}

/// Lines without their ends.
fn lines(text: &str) -> impl Iterator<Item = Result<&str, String>> {
    let whole = text.strip_suffix('\n').unwrap_or(text);
    let all = (!text.is_empty()).then(|| whole.split('\n'));
    all.into_iter().flatten().map(|line| {
        if line.len() >= LONGEST {
            return Err("token too long".into());
        }
        Ok(line.strip_suffix('\r').unwrap_or(line))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(file: &str, key: &str) -> Result<Option<String>, String> {
        value(file.as_bytes(), key)
    }

    fn is(text: &str) -> Result<Option<String>, String> {
        Ok(Some(text.into()))
    }

    #[test]
    fn a_value_is_what_stands_between_single_quotes() {
        let file = "# comment\n\n  A='one'\r\n\tB='with # and \\n and \"x\"' # more\nC='first\nsecond\n\n'\nD= 'none'\nE=''\nF='last'";
        assert_eq!(of(file, "A"), is("one"));
        assert_eq!(of(file, "B"), is("with # and \\n and \"x\""));
        assert_eq!(of(file, "C"), is("first\nsecond\n\n"));
        assert_eq!(of(file, "F"), is("last"));
        for absent in ["D", "E", "G", "a", "comment"] {
            assert_eq!(of(file, absent), Ok(None), "{absent}");
        }
        assert_eq!(of("", "A"), Ok(None));
        assert_eq!(of("A='1'\nA='2'\n", "A"), is("1"), "the first one counts");
    }

    #[test]
    fn what_is_not_in_this_form_is_refused_with_its_line() {
        for (file, words) in [
            ("A\n", "line 1: missing '='"),
            ("\n='x'\n", "line 2: empty variable name"),
            ("A ='x'\n", "line 1: whitespace before '=' is not allowed"),
            ("A=x\n", "line 1: value must be enclosed in single quotes"),
            ("A=\"x\"\n", "line 1: value must be enclosed in single quotes"),
            ("A='x' y\n", "line 1: unexpected content after closing quote"),
            ("A='x\ny' z\n", "line 2: unexpected content after closing quote"),
            ("\nA='x\ny\n", "starting at line 2: unclosed single quote"),
        ] {
            let error = of(file, "KEY").unwrap_err();
            assert!(error.ends_with(words), "{file:?}: {error}");
        }
        assert!(of(&format!("A='{}'\n", "x".repeat(LONGEST)), "A").is_err());
        // Whoever is found first does not see what is wrong behind it.
        assert_eq!(of("A='1'\nB\n", "A"), is("1"));
    }
}
