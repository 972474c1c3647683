//! The outcome of a remote command as the client reads it on the error stream.

use bytes::Bytes;
use serde_json::json;

use super::negotiate::StatusFormat;
use crate::backend::{ExecExit, StreamError};

/// The code a client exits with; a signal counts as a shell counts it.
fn exit_code(exit: ExecExit) -> i32 {
    match exit {
        ExecExit::Code(code) => code,
        ExecExit::Signal(signal) => 128 + signal,
    }
}

/// What goes onto the error stream: nothing for a success in the text versions. `doing` is what failed, if it did:
/// `executing command in container`.
pub fn outcome(format: StatusFormat, doing: &str, outcome: &Result<ExecExit, StreamError>) -> Option<Bytes> {
    match format {
        StatusFormat::Json => Some(json_status(doing, outcome)),
        StatusFormat::Text => text_status(doing, outcome),
    }
}

fn json_status(doing: &str, outcome: &Result<ExecExit, StreamError>) -> Bytes {
    let status = match outcome.as_ref().map(|exit| exit_code(*exit)) {
        Ok(0) => json!({"metadata": {}, "status": "Success"}),
        Ok(code) => json!({
            "metadata": {},
            "status": "Failure",
            "message": format!("command terminated with non-zero exit code: exit code {code}"),
            "reason": "NonZeroExitCode",
            "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]},
        }),
        Err(error) => {
            let message = format!("error {doing}: {error}");
            json!({
                "metadata": {},
                "status": "Failure",
                "message": format!("Internal error occurred: {message}"),
                "reason": "InternalError",
                "details": {"causes": [{"message": message}]},
                "code": 500,
            })
        }
    };
    Bytes::from(status.to_string())
}

fn text_status(doing: &str, outcome: &Result<ExecExit, StreamError>) -> Option<Bytes> {
    let text = match outcome.as_ref().map(|exit| exit_code(*exit)) {
        Ok(0) => return None,
        Ok(code) => format!("command terminated with non-zero exit code: exit code {code}"),
        Err(error) => format!("error {doing}: {error}"),
    };
    Some(Bytes::from(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(result: Result<ExecExit, StreamError>) -> serde_json::Value {
        let bytes = outcome(StatusFormat::Json, "executing command in container", &result).expect("v4 always tells");
        serde_json::from_slice(&bytes).expect("valid JSON")
    }

    #[test]
    fn version_4_tells_every_outcome_as_a_status() {
        assert_eq!(json(Ok(ExecExit::Code(0)))["status"], "Success");
        let cause = |code: &str| json!([{"reason": "ExitCode", "message": code}]);
        assert_eq!(json(Ok(ExecExit::Code(3)))["details"]["causes"], cause("3"));
        assert_eq!(json(Ok(ExecExit::Signal(9)))["details"]["causes"], cause("137"));
        assert_eq!(json(Ok(ExecExit::Code(3)))["reason"], "NonZeroExitCode");
        assert_eq!(json(Err(StreamError::Failed("no such file".into())))["reason"], "InternalError");
    }

    #[test]
    fn older_versions_tell_only_failures_as_text() {
        let text = |result| outcome(StatusFormat::Text, "attaching to container", &result);
        assert_eq!(text(Ok(ExecExit::Code(0))), None);
        assert!(text(Ok(ExecExit::Code(1))).is_some_and(|text| text.ends_with(b"exit code 1")));
        assert!(text(Err(StreamError::UnknownPod)).is_some_and(|text| text == b"error attaching to container: pod does not exist"[..]));
    }
}
