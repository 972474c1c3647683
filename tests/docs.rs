//! docs/boot.md explains every option that it is about.

const BOOT: &str = include_str!("../docs/boot.md");
const CONFIG: &str = include_str!("../guest/kernel/config");

/// Names in backquotes.
fn explained(text: &str) -> Vec<&str> {
    text.split('`').skip(1).step_by(2).collect()
}

#[test]
fn every_word_of_the_command_line_is_explained() {
    let explained = explained(BOOT);
    for word in vmm_lib::boot::FAST_COMMAND_LINE.split(' ') {
        assert!(explained.contains(&word), "docs/boot.md does not explain {word}");
    }
}

#[test]
fn every_option_of_the_guests_kernel_is_explained() {
    let explained = explained(BOOT);
    let wishes = CONFIG
        .lines()
        .filter_map(|line| line.trim_start_matches("# ").strip_prefix("CONFIG_"));
    let names: Vec<_> = wishes.filter_map(|wish| wish.split(['=', ' ']).next()).collect();
    assert!(names.len() > 300, "the configuration was read: {}", names.len());
    let missing: Vec<_> = names.iter().filter(|name| !explained.contains(name)).collect();
    assert!(missing.is_empty(), "docs/boot.md does not explain {missing:?}");
}
