//! Cuts a byte stream into lines of at most [`LIMIT`] bytes. Pure.

/// The longest piece of a line, without its newline.
pub(crate) const LIMIT: usize = 16 << 10;

/// Keeps an unfinished line until its end comes.
#[derive(Debug, Default)]
pub(crate) struct Splitter {
    line: Vec<u8>,
}

impl Splitter {
    /// Takes bytes; calls `emit` with every piece and whether the line goes on.
    pub(crate) fn push(&mut self, mut bytes: &[u8], mut emit: impl FnMut(Vec<u8>, bool)) {
        while !bytes.is_empty() {
            let end = bytes.iter().position(|b| *b == b'\n');
            let take = end.unwrap_or(bytes.len()).min(LIMIT - self.line.len());
            self.line.extend_from_slice(&bytes[..take]);
            bytes = &bytes[take..];
            if bytes.first() == Some(&b'\n') {
                bytes = &bytes[1..];
                emit(std::mem::take(&mut self.line), false);
            } else if !bytes.is_empty() {
                emit(std::mem::take(&mut self.line), true);
            }
        }
    }

    /// The stream has ended: an unfinished line is one that would go on, so that readers make up no newline (as of containerd).
    pub(crate) fn finish(self, mut emit: impl FnMut(Vec<u8>, bool)) {
        if !self.line.is_empty() {
            emit(self.line, true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(pieces: &[&[u8]]) -> Vec<(Vec<u8>, bool)> {
        let mut out = Vec::new();
        let mut splitter = Splitter::default();
        for piece in pieces {
            splitter.push(piece, |data, partial| out.push((data, partial)));
        }
        splitter.finish(|data, partial| out.push((data, partial)));
        out
    }

    #[test]
    fn lines_are_joined_across_reads_and_the_last_gets_no_newline_that_it_had_not() {
        assert_eq!(
            split(&[b"a", b"b\n\nc", b"d"]),
            [(b"ab".to_vec(), false), (vec![], false), (b"cd".to_vec(), true)]
        );
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole() {
        let mut line = vec![b'x'; LIMIT];
        line.push(b'\n');
        assert_eq!(split(&[&line]), [(vec![b'x'; LIMIT], false)]);
    }

    #[test]
    fn a_longer_line_comes_in_partial_pieces() {
        let mut line = vec![b'x'; 2 * LIMIT + 1];
        line.push(b'\n');
        let pieces: Vec<_> = split(&[&line]).into_iter().map(|(data, partial)| (data.len(), partial)).collect();
        assert_eq!(pieces, [(LIMIT, true), (LIMIT, true), (1, false)]);
    }

    #[test]
    fn nothing_is_lost_however_the_reads_fall() {
        let text: Vec<u8> = (0..70_000u32)
            .map(|i| if i % 23_001 == 23_000 { b'\n' } else { (i % 251) as u8 | 0x80 })
            .collect();
        let whole = split(&[&text]);
        for step in [1, 7, 4096, LIMIT, LIMIT + 1] {
            assert_eq!(split(&text.chunks(step).collect::<Vec<_>>()), whole, "reads of {step}");
        }
    }
}
