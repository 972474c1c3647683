//! `kubectl logs` on real files.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::Path;

use http_body_util::{BodyExt as _, Empty};
use hyper::Request;
use hyper::body::Incoming;
use tempfile::TempDir;

use crate::fake::Fake;
use crate::support::{AUTHORITY, Port, soon};

const LOGS: &str = "/containerLogs/ns/p/c";

fn line(second: u32, rest: &str) -> String {
    format!("2026-01-02T03:04:{second:02}.000000000Z {rest}\n")
}

fn append(path: &Path, text: &str) {
    let mut file = OpenOptions::new().append(true).create(true).open(path).expect("opens");
    file.write_all(text.as_bytes()).expect("writes");
}

async fn serve(directory: &Path) -> (Port, Fake) {
    let fake = Fake {
        logs: directory.to_owned(),
        ..Fake::new()
    };
    (Port::serve(fake.clone()).await, fake)
}

/// A log in three files, oldest first: two rotated, one current; with files beside it that do not count.
fn three_parts() -> TempDir {
    let directory = TempDir::new().expect("temporary directory");
    let path = |name: &str| directory.path().join(name);
    append(
        &path("0.log.20260102-030401"),
        &(line(1, "stdout F one") + &line(2, "stderr F two")),
    );
    append(&path("0.log.20260102-030403"), &(line(3, "stdout P thr") + &line(3, "stdout F ee")));
    append(
        &path("0.log"),
        &(line(4, "stderr F four") + &line(5, "stdout F five") + "not a record\n"),
    );
    append(&path("0.log.20260102-030400.gz"), "compressed");
    append(&path("0.log.20260102-030409.tmp"), &line(9, "stdout F half compressed"));
    append(&path("10.log"), &line(9, "stdout F another instance"));
    directory
}

#[tokio::test]
async fn every_option_shows_what_it_says() {
    let directory = three_parts();
    let (port, _) = serve(directory.path()).await;
    let table = [
        ("", "one\ntwo\nthree\nfour\nfive\n"),
        ("tailLines=0", ""),
        ("tailLines=1", ""),
        ("tailLines=2", "five\n"),
        ("tailLines=3", "four\nfive\n"),
        ("tailLines=4", "three\nfour\nfive\n"),
        ("tail=5", "two\nthree\nfour\nfive\n"),
        ("tailLines=100", "one\ntwo\nthree\nfour\nfive\n"),
        ("tail=all&tailLines=1", "one\ntwo\nthree\nfour\nfive\n"),
        ("limitBytes=6", "one\ntw"),
        ("limitBytes=1000", "one\ntwo\nthree\nfour\nfive\n"),
        ("stream=Stdout", "one\nthree\nfive\n"),
        ("stream=Stderr", "two\nfour\n"),
        ("sinceTime=2026-01-02T03:04:04Z", "four\nfive\n"),
        ("sinceTime=2026-01-02T03:04:04Z&tailLines=4", "four\nfive\n"),
        ("sinceSeconds=1", ""),
        ("sinceSeconds=9000000000", "one\ntwo\nthree\nfour\nfive\n"),
        (
            "timestamps=true&sinceTime=2026-01-02T03:04:03Z&limitBytes=75",
            "2026-01-02T03:04:03.000000000Z three\n2026-01-02T03:04:04.000000000Z four\n20",
        ),
    ];
    for (query, expected) in table {
        let (status, text) = port.get(&format!("{LOGS}?{query}")).await;
        assert_eq!((status, text.as_str()), (200, expected), "{query}");
    }
    port.stop().await;
}

#[tokio::test]
async fn refusals_have_the_kubelets_status_and_words() {
    let directory = three_parts();
    let (port, _) = serve(directory.path()).await;
    let table = [
        ("/containerLogs/ns/other/c", 404, r#"pod "other" does not exist"#),
        ("/containerLogs/ns/p/d", 404, r#"container "d" not found in pod "p""#),
        (
            "/containerLogs/ns/p/waiting",
            400,
            r#"container "waiting" in pod "p" is waiting to start: ContainerCreating"#,
        ),
        (
            "/containerLogs/ns/p/c?previous=true",
            400,
            r#"previous terminated container "c" in pod "p" not found"#,
        ),
        (
            "/containerLogs/ns/p/c?tailLines=-1",
            422,
            "invalid request: tailLines: must be greater than or equal to 0",
        ),
        ("/containerLogs/ns/p/c?tailLines=a", 400, r#"unable to decode query: tailLines="a""#),
    ];
    for (path, status, words) in table {
        assert_eq!(port.get(path).await, (status, words.to_owned()), "{path}");
    }
    port.stop().await;
}

#[tokio::test]
async fn tails_of_large_logs_are_found_across_blocks_and_lines() {
    let directory = TempDir::new().expect("temporary directory");
    let mut text = String::new();
    for number in 0..5000_u32 {
        text += &line(number % 60, &format!("stdout P {}", "x".repeat(number as usize % 90)));
        text += &line(number % 60, &format!("stdout F {number}"));
    }
    append(&directory.path().join("0.log"), &text);
    let (port, _) = serve(directory.path()).await;
    for lines in [1, 2, 700, 4999, 5000, 6000] {
        let (_, text) = port.get(&format!("{LOGS}?tailLines={lines}")).await;
        assert_eq!(text.lines().count(), lines.min(5000), "{lines}");
        assert!(text.ends_with("4999\n"), "{lines}");
    }
    port.stop().await;
}

#[tokio::test]
async fn a_log_that_is_not_there_yet_is_empty() {
    let (port, _) = serve(Path::new("/nonexistent/log/directory")).await;
    assert_eq!(port.get(LOGS).await, (200, String::new()));
    port.stop().await;
}

/// A log being followed.
struct Followed(Incoming, String);

impl Followed {
    async fn start(port: &Port, query: &str) -> Self {
        let request = Request::builder()
            .uri(format!("{LOGS}?follow=true&{query}"))
            .header("host", "node-1");
        let request = request.body(Empty::new()).expect("valid request");
        let response = port.request(Some(AUTHORITY.client("admin")), request).await.expect("an answer");
        assert_eq!(response.status(), 200);
        Self(response.into_body(), String::new())
    }

    /// Reads until `text` is all that has come since the last call.
    async fn shows(&mut self, text: &str) {
        while self.1 != text {
            assert!(text.starts_with(&self.1), "{:?} instead of {text:?}", self.1);
            let frame = soon("more of the log", self.0.frame()).await.expect("goes on").expect("readable");
            self.1 += std::str::from_utf8(frame.data_ref().expect("data")).expect("text");
        }
        self.1.clear();
    }

    async fn ends(mut self) {
        assert_eq!(self.1, "");
        assert!(soon("the end of the log", self.0.frame()).await.is_none());
    }
}

#[tokio::test]
async fn following_goes_through_rotations_and_ends_with_the_container() {
    let directory = three_parts();
    let (port, fake) = serve(directory.path()).await;
    let path = |name: &str| directory.path().join(name);
    let mut followed = Followed::start(&port, "tailLines=2").await;
    followed.shows("five\n").await;
    append(&path("0.log"), &line(6, "stdout F six"));
    followed.shows("six\n").await;
    append(&path("0.log"), line(7, "stdout F seven").trim_end());
    append(&path("0.log"), "\n");
    followed.shows("seven\n").await;
    // A rotation: the writer still ends in the old file, then uses the new one.
    fs::rename(path("0.log"), path("0.log.20260102-030408")).expect("renames");
    append(&path("0.log"), "");
    append(&path("0.log.20260102-030408"), &line(8, "stdout F last of the old"));
    followed.shows("last of the old\n").await;
    append(&path("0.log"), &line(9, "stdout F first of the new"));
    followed.shows("first of the new\n").await;
    // Two rotations at once; the oldest files go.
    append(&path("0.log"), &line(10, "stdout F ten"));
    fs::rename(path("0.log"), path("0.log.20260102-030410")).expect("renames");
    append(&path("0.log"), &line(11, "stderr F eleven"));
    fs::rename(path("0.log"), path("0.log.20260102-030411")).expect("renames");
    append(&path("0.log"), &line(12, "stdout F twelve"));
    fs::remove_file(path("0.log.20260102-030401")).expect("removes");
    fs::remove_file(path("0.log.20260102-030408")).expect("removes");
    followed.shows("ten\neleven\ntwelve\n").await;
    append(&path("0.log"), &line(13, "stdout F the end"));
    fake.log_running.send_replace(false);
    followed.shows("the end\n").await;
    followed.ends().await;
    port.stop().await;
}

#[tokio::test]
async fn following_waits_for_a_log_that_is_not_there_yet() {
    let directory = TempDir::new().expect("temporary directory");
    let logs = directory.path().join("c");
    let (port, fake) = serve(&logs).await;
    let mut followed = Followed::start(&port, "").await;
    fs::create_dir(&logs).expect("creates");
    append(&logs.join("0.log"), &line(1, "stdout F at last"));
    followed.shows("at last\n").await;
    append(&logs.join("0.log"), &line(2, "stdout F more"));
    followed.shows("more\n").await;
    fake.log_running.send_replace(false);
    followed.ends().await;
    port.stop().await;
}

#[tokio::test]
async fn following_ends_at_its_limit_and_with_the_server() {
    let directory = three_parts();
    let (port, _) = serve(directory.path()).await;
    let mut limited = Followed::start(&port, "limitBytes=3").await;
    limited.shows("one").await;
    limited.ends().await;
    let mut stopped = Followed::start(&port, "stream=Stderr").await;
    stopped.shows("two\nfour\n").await;
    port.stop().await;
    stopped.ends().await;
}

#[tokio::test]
async fn a_client_that_stops_reading_holds_the_reader_and_one_that_goes_ends_it() {
    let directory = TempDir::new().expect("temporary directory");
    let text = line(1, &format!("stdout F {}", "y".repeat(1000))).repeat(20_000);
    append(&directory.path().join("0.log"), &text);
    let (port, fake) = serve(directory.path()).await;
    let watchers = fake.log_running.clone();
    let followed = Followed::start(&port, "").await;
    soon("the reader", async {
        while watchers.receiver_count() == 0 {
            tokio::task::yield_now().await;
        }
    })
    .await;
    drop(followed);
    soon("the end of the reader", watchers.closed()).await;
    port.stop().await;
}
