//! Any bytes on a control socket, at either end.
//!
//! Beside "no panic" it checks that no line is longer than it may be, that nothing of what follows a line is taken, and
//! that what was understood is said and understood again.

use std::io::ErrorKind;

use posada_manage::protocol::{Answer, MAX_LINE, Request, line, parse, read_line};

/// Reads lines until `data` ends.
///
/// # Panics
/// If the reader or the parser misbehaves: that is the finding.
pub(crate) fn run(data: &[u8]) {
    let mut rest = data;
    loop {
        let before = rest;
        match read_line(&mut rest) {
            Ok(read) => {
                assert!(read.len() <= MAX_LINE && !read.contains(&b'\n'));
                assert_eq!(
                    before.len(),
                    read.len() + 1 + rest.len(),
                    "a line, its end, and no more are taken"
                );
                understand(&read);
            }
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => return,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::InvalidData);
                return;
            }
        }
    }
}

fn understand(read: &[u8]) {
    if let Ok(request) = parse::<Request>(read) {
        assert_eq!(parse(line(&request).trim_ascii_end()), Ok(request));
    }
    if let Ok(answer) = parse::<Answer>(read) {
        let again = line(&answer);
        assert_eq!(
            again.iter().position(|&byte| byte == b'\n'),
            Some(again.len() - 1),
            "an answer is one line"
        );
        let heard = parse::<Answer>(again.trim_ascii_end()).expect("what is said is understood");
        // Figures may lose their last digit, once.
        assert_eq!(parse(line(&heard).trim_ascii_end()), Ok(heard));
    }
}
