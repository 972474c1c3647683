//! What the documents say of themselves and of the source, as far as that can be looked up: links, chapters, reasons.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs,
    path::{Component, Path, PathBuf},
};

use pulldown_cmark::{Event, Options, Parser, Tag, TagEnd};

use crate::paths::repository;

/// A document: what it links to, and the anchors of its headings.
struct Document {
    links: Vec<String>,
    anchors: BTreeSet<String>,
}

/// The anchor of a heading, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let kept = heading
        .chars()
        .filter(|c| c.is_alphanumeric() || c.is_whitespace() || "-_".contains(*c));
    kept.flat_map(char::to_lowercase)
        .map(|c| if c.is_whitespace() { '-' } else { c })
        .collect()
}

fn parse(text: &str) -> Document {
    let (mut links, mut anchors) = (Vec::new(), BTreeSet::new());
    let (mut heading, mut seen) = (None::<String>, HashMap::<String, usize>::new());
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => links.push(dest_url.into_string()),
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::Text(text) | Event::Code(text) => {
                if let Some(heading) = &mut heading {
                    heading.push_str(&text);
                }
            }
            Event::End(TagEnd::Heading(_)) => {
                let name = anchor(&heading.take().unwrap_or_default());
                let before = seen.entry(name.clone()).or_default();
                anchors.insert(if *before == 0 { name } else { format!("{name}-{before}") });
                *before += 1;
            }
            _ => {}
        }
    }
    Document { links, anchors }
}

/// Files below a folder with this ending, those of builds left out.
fn files(folder: &Path, ending: &str, all: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy();
        if path.is_dir() && name != "target" && !name.starts_with('.') {
            files(&path, ending, all);
        } else if path.is_file() && name.ends_with(ending) {
            all.push(path);
        }
    }
}

fn documents() -> BTreeMap<PathBuf, Document> {
    let mut all = Vec::new();
    files(&repository(), ".md", &mut all);
    let read = |path: PathBuf| {
        let text = fs::read_to_string(&path).unwrap();
        (path, parse(&text))
    };
    all.into_iter().map(read).collect()
}

/// A path without `..`, links not followed.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            part => plain.push(part),
        }
    }
    plain
}

/// What is wrong with a link of the document at `path`; links to other sites are only looked at, not followed.
fn mistake(path: &Path, link: &str, documents: &BTreeMap<PathBuf, Document>) -> Option<&'static str> {
    if let Some((scheme, rest)) = link.split_once(':') {
        let host = rest.strip_prefix("//").and_then(|rest| rest.split('/').next()).unwrap_or_default();
        let is_host = host.contains('.') && host.chars().all(|c| c.is_ascii_alphanumeric() || "-.:".contains(c));
        return (!["http", "https"].contains(&scheme) || !is_host).then_some("is no address");
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(file, anchor)| (file, Some(anchor)));
    let target = match file {
        "" => path.to_path_buf(),
        file => plain(&path.parent()?.join(file)),
    };
    if !target.starts_with(repository()) || !target.exists() {
        return Some("leads nowhere");
    }
    let anchor = anchor?;
    let has = documents.get(&target).is_some_and(|document| document.anchors.contains(anchor));
    (!has).then_some("has no such heading")
}

#[test]
fn each_link_of_the_documents_leads_somewhere() {
    let documents = documents();
    let links = documents
        .iter()
        .flat_map(|(path, document)| document.links.iter().map(move |link| (path, link)));
    let wrong: Vec<String> = links
        .filter_map(|(path, link)| Some(format!("{}: {link} {}", path.display(), mistake(path, link, &documents)?)))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    let readme = &documents[&repository().join("README.md")];
    assert!(
        readme.links.len() > 10 && readme.anchors.contains("use-it-with-kubectl"),
        "{:?}",
        readme.anchors
    );
}

#[test]
fn a_link_that_leads_nowhere_is_seen() {
    let documents = documents();
    let here = repository().join("docs/install.md");
    let wrong = |link: &str| mistake(&here, link, &documents);
    for (link, why) in [
        ("burst.md", None),
        ("../README.md#use-it-with-kubectl", None),
        ("#the-package", None),
        ("https://kubernetes.io/docs/", None),
        ("bursts.md", Some("leads nowhere")),
        ("../../README.md", Some("leads nowhere")),
        ("burst.md#policy", Some("has no such heading")),
        ("#policies", Some("has no such heading")),
        ("https://", Some("is no address")),
        ("mailto:somebody", Some("is no address")),
    ] {
        assert_eq!(wrong(link), why, "{link}");
    }
}

#[test]
fn the_book_has_each_document_of_its_folder_once() {
    let folder = repository().join("docs");
    let summary = parse(&fs::read_to_string(folder.join("SUMMARY.md")).unwrap());
    let mut chapters = summary.links.clone();
    chapters.sort();
    let mut all = Vec::new();
    files(&folder, ".md", &mut all);
    let names = all
        .iter()
        .map(|path| path.strip_prefix(&folder).unwrap().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| name != "SUMMARY.md").collect();
    names.sort();
    assert_eq!(chapters, names);
}

/// Whether it is written as reasons of events and statuses are: `ErrImagePull`.
fn is_reason(code: &str) -> bool {
    let humps = code.chars().filter(char::is_ascii_uppercase).count();
    code.chars().all(|c| c.is_ascii_alphanumeric()) && code.starts_with(|c: char| c.is_ascii_uppercase()) && humps > 1 && humps < code.len()
}

#[test]
fn each_reason_that_the_troubleshooting_names_is_in_the_source() {
    let mut sources = Vec::new();
    for folder in ["src", "provider", "guest/protocol/src"] {
        files(&repository().join(folder), ".rs", &mut sources);
    }
    let source: String = sources.iter().map(|path| fs::read_to_string(path).unwrap()).collect();
    let text = fs::read_to_string(repository().join("docs/troubleshooting.md")).unwrap();
    let codes = Parser::new_ext(&text, Options::ENABLE_TABLES).filter_map(|event| match event {
        Event::Code(code) => Some(code.into_string()),
        _ => None,
    });
    let reasons: BTreeSet<String> = codes.filter(|code| is_reason(code)).collect();
    let missing: Vec<_> = reasons.iter().filter(|reason| !source.contains(&format!("\"{reason}\""))).collect();
    assert!(reasons.len() > 20, "{reasons:?}");
    assert!(missing.is_empty(), "{missing:?}");
}
