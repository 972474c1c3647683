//! The query of `/containerLogs` as typed options, refused as the kubelet refuses it.

use axum::http::StatusCode;
use jiff::{SignedDuration, Timestamp};

/// What part of a log is wanted, and how.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on until the container has ended.
    pub follow: bool,
    /// The terminated instance before the present one.
    pub previous: bool,
    /// Nothing older than this.
    pub since: Option<Timestamp>,
    /// A timestamp before each line.
    pub timestamps: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<u64>,
    /// Only so many bytes.
    pub limit_bytes: Option<u64>,
    /// Which output.
    pub stream: StreamFilter,
}

/// Which of a container's outputs are wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum StreamFilter {
    /// Both.
    #[default]
    All,
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Why a query is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OptionsError {
    /// A value is not of its type.
    #[error("unable to decode query: {key}={value:?}")]
    Undecodable {
        /// The parameter.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// A value is out of its range, or two do not go together.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
}

impl OptionsError {
    /// The HTTP status of this refusal.
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Undecodable { .. } => StatusCode::BAD_REQUEST,
            Self::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        }
    }
}

impl LogOptions {
    /// Reads a query string; `now` is what `sinceSeconds` counts from.
    pub fn from_query(query: &str, now: Timestamp) -> Result<Self, OptionsError> {
        // The first value of a key counts, as in Go.
        let value = |wanted: &str| {
            form_urlencoded::parse(query.as_bytes())
                .find(|(key, _)| key == wanted)
                .map(|(_, value)| value.into_owned())
        };
        let integer = |key: &'static str, value: Option<String>| match value {
            None => Ok(None),
            Some(value) => value.parse::<i64>().map(Some).map_err(|_| OptionsError::Undecodable { key, value }),
        };
        let tail = match value("tail").filter(|legacy| !legacy.is_empty()) {
            Some(legacy) => Some(legacy).filter(|lines| lines != "all"),
            None => value("tailLines"),
        };
        let tail_lines = at_least(0, integer("tailLines", tail)?, "tailLines: must be greater than or equal to 0")?;
        let limit_bytes = at_least(1, integer("limitBytes", value("limitBytes"))?, "limitBytes: must be greater than 0")?;
        let since_seconds = integer("sinceSeconds", value("sinceSeconds"))?;
        let since_time = match value("sinceTime").filter(|time| !time.is_empty()) {
            None => None,
            Some(value) => match value.parse::<Timestamp>() {
                Ok(time) => Some(time),
                Err(_) => return Err(OptionsError::Undecodable { key: "sinceTime", value }),
            },
        };
        if since_seconds.is_some() && since_time.is_some() {
            return Err(OptionsError::Invalid(
                "at most one of `sinceTime` or `sinceSeconds` may be specified",
            ));
        }
        let since_seconds = at_least(1, since_seconds, "sinceSeconds: must be greater than 0")?;
        let stream = match value("stream").as_deref() {
            None | Some("" | "All") => StreamFilter::All,
            Some("Stdout") => StreamFilter::Stdout,
            Some("Stderr") => StreamFilter::Stderr,
            Some(_) => return Err(OptionsError::Invalid("stream: supported values: All, Stderr, Stdout")),
        };
        if stream != StreamFilter::All && tail_lines.is_some() {
            let words = "`tailLines` and specific `stream` are mutually exclusive for now";
            return Err(OptionsError::Invalid(words));
        }
        Ok(Self {
            follow: truth(value("follow")),
            previous: truth(value("previous")),
            since: since_time.or_else(|| since_seconds.map(|seconds| before(now, seconds))),
            timestamps: truth(value("timestamps")),
            tail_lines,
            limit_bytes,
            stream,
        })
    }
}

/// Present means true, unless it says false.
fn truth(value: Option<String>) -> bool {
    value.is_some_and(|value| !value.eq_ignore_ascii_case("false") && value != "0")
}

fn at_least(least: i64, value: Option<i64>, words: &'static str) -> Result<Option<u64>, OptionsError> {
    match value {
        None => Ok(None),
        Some(value) if value >= least => u64::try_from(value).map(Some).map_err(|_| OptionsError::Invalid(words)),
        Some(_) => Err(OptionsError::Invalid(words)),
    }
}

/// Longer ago than time reaches means the beginning of time.
fn before(now: Timestamp, seconds: u64) -> Timestamp {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    now.checked_sub(SignedDuration::from_secs(seconds)).unwrap_or(Timestamp::MIN)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Timestamp {
        "2026-01-02T03:04:05Z".parse().expect("valid")
    }

    #[test]
    fn every_option_of_kubectl_is_understood() {
        let all = LogOptions::default();
        let table = [
            ("", all.clone()),
            (
                "follow=true&previous=1",
                LogOptions {
                    follow: true,
                    previous: true,
                    ..all.clone()
                },
            ),
            ("follow=false&timestamps=0", all.clone()),
            (
                "timestamps=true",
                LogOptions {
                    timestamps: true,
                    ..all.clone()
                },
            ),
            (
                "tailLines=0",
                LogOptions {
                    tail_lines: Some(0),
                    ..all.clone()
                },
            ),
            (
                "tail=7",
                LogOptions {
                    tail_lines: Some(7),
                    ..all.clone()
                },
            ),
            ("tail=all&tailLines=3", all.clone()),
            (
                "limitBytes=1",
                LogOptions {
                    limit_bytes: Some(1),
                    ..all.clone()
                },
            ),
            (
                "stream=Stderr",
                LogOptions {
                    stream: StreamFilter::Stderr,
                    ..all.clone()
                },
            ),
            (
                "stream=All&tailLines=1",
                LogOptions {
                    tail_lines: Some(1),
                    ..all.clone()
                },
            ),
            (
                "sinceSeconds=5",
                LogOptions {
                    since: "2026-01-02T03:04:00Z".parse().ok(),
                    ..all.clone()
                },
            ),
            (
                "sinceTime=2020-01-01T00%3A00%3A00Z",
                LogOptions {
                    since: "2020-01-01T00:00:00Z".parse().ok(),
                    ..all.clone()
                },
            ),
            (
                "sinceSeconds=9223372036854775807",
                LogOptions {
                    since: Some(Timestamp::MIN),
                    ..all
                },
            ),
        ];
        for (query, expected) in table {
            assert_eq!(LogOptions::from_query(query, now()), Ok(expected), "{query}");
        }
    }

    #[test]
    fn bad_options_are_refused_with_the_kubelets_status() {
        let table = [
            ("tailLines=x", 400),
            ("sinceTime=yesterday", 400),
            ("tailLines=-1", 422),
            ("limitBytes=0", 422),
            ("sinceSeconds=0", 422),
            ("sinceSeconds=1&sinceTime=2020-01-01T00%3A00%3A00Z", 422),
            ("stream=Stdin", 422),
            ("stream=Stdout&tailLines=1", 422),
        ];
        for (query, status) in table {
            let error = LogOptions::from_query(query, now()).expect_err(query);
            assert_eq!(error.status().as_u16(), status, "{query}: {error}");
        }
    }
}
