use std::ffi::OsStr;

use super::*;

fn fields(session: &Session) -> Vec<Vec<u8>> {
    let file = session.encode().unwrap();
    assert_eq!(file.last(), Some(&0), "every field ends with a zero byte");
    file[..file.len() - 1].split(|&byte| byte == 0).map(<[u8]>::to_vec).collect()
}

fn has(session: &Session, field: &[u8]) -> bool {
    fields(session).iter().any(|other| other == field)
}

#[test]
fn arguments_are_passed_byte_for_byte_and_in_order() {
    let odd = OsStr::from_bytes(b"\xff\xfe not UTF-8 \"'$`\\\n\t");
    let session = Session::command([OsStr::new("printf"), OsStr::new(""), odd, OsStr::new("a=b")]);
    let arguments: Vec<_> = fields(&session)
        .into_iter()
        .filter_map(|field| Some(field.strip_prefix(b"arg=")?.to_vec()))
        .collect();
    assert_eq!(arguments, [&b"printf"[..], b"", odd.as_bytes(), b"a=b"]);
}

#[test]
fn a_command_has_pipes_and_a_command_on_a_terminal_a_pty_of_the_given_size() {
    let session = Session::command(["ls"]);
    assert!(has(&session, b"terminal=none"));
    let session = session.on_terminal().size(Size { rows: 24, columns: 132 });
    assert!(has(&session, b"terminal=pty") && has(&session, b"rows=24") && has(&session, b"columns=132"));
}

#[test]
fn a_shell_is_a_login_shell_on_the_console() {
    let session = Session::shell();
    assert!(session.is_shell());
    assert!(has(&session, b"terminal=/dev/ttyS0") && has(&session, b"arg=-l"));
    assert!(has(&session.on_terminal(), b"terminal=/dev/ttyS0"), "it has a terminal already");
}

#[test]
fn variables_replace_the_ones_that_every_command_has() {
    let session = Session::command(["env"]).env("HOME", "/tmp").env("EMPTY", "");
    assert!(has(&session, b"env=HOME=/tmp") && has(&session, b"env=EMPTY="));
    assert_eq!(fields(&session).iter().filter(|field| field.starts_with(b"env=HOME=")).count(), 1);
}

#[test]
fn what_linux_cannot_pass_on_is_refused() {
    let zero = SessionError::ZeroByte { what: "argument", value: "a\0b".into() };
    assert_eq!(Session::command(["a\0b"]).encode(), Err(zero));
    assert_eq!(Session::command([""; 0]).encode(), Err(SessionError::NoCommand));
    let name = SessionError::VariableName { name: "A=B".into() };
    assert_eq!(Session::command(["env"]).env("A=B", "").encode(), Err(name));
    let long = Session::command(["echo".to_owned(), "x".repeat(3 << 20)]).encode();
    assert!(matches!(long, Err(SessionError::TooLong { .. })), "{long:?}");
}
