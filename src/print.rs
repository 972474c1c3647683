//! What subcommands print for people and programs.

use std::{
    fmt::Display,
    io::{self, ErrorKind, Write as _},
};

use anyhow::Context as _;

/// Lines of columns that are as wide as they need be, two spaces apart.
pub(crate) fn table<const N: usize>(head: [&str; N], rows: &[[String; N]]) -> String {
    let width = |column: usize| {
        let all = rows.iter().map(|row| row[column].chars().count());
        all.chain([head[column].len()]).max().unwrap_or(0)
    };
    let widths: [usize; N] = std::array::from_fn(width);
    let line = |cells: [&str; N]| {
        let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        let line = padded.collect::<Vec<_>>().join("  ");
        format!("{}\n", line.trim_end())
    };
    let rows = rows.iter().map(|row| line(std::array::from_fn(|column| row[column].as_str())));
    std::iter::once(line(head)).chain(rows).collect()
}

/// Prints to standard output; false where whoever reads has read enough.
pub(crate) fn print(bytes: &[u8]) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(bytes).and_then(|()| out.flush()) {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(false),
        done => done.map(|()| true).context("print"),
    }
}

/// Says a line beside what is printed. Where it cannot be said, the rest goes on.
pub(crate) fn notice(words: impl Display) {
    let _ = writeln!(io::stderr(), "{words}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_and_lines_end_with_words() {
        let rows = [["a".to_owned(), "1".to_owned()], ["longer".to_owned(), String::new()]];
        assert_eq!(table(["POD", "N"], &rows), "POD     N\na       1\nlonger\n");
    }
}
