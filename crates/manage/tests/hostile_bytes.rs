//! Any bytes on a control socket, bounded and from a fixed seed.

#![allow(missing_docs)]

#[path = "../../../fuzz/src/control_socket.rs"]
mod control_socket;

const LINES: [&str; 7] = [
    r#"{"request":"pause"}"#,
    r#"{"request":"balloon","bytes":1048576}"#,
    r#"{"request":"console","more":[1,2.5e300,null]}"#,
    r#"{"answer":"done"}"#,
    r#"{"answer":"refused","problem":"line\nend \ud83d\ude00"}"#,
    r#"{"answer":"status","paused":true,"guest_time":12.25}"#,
    r#"{"answer":"stats","paused":false,"guest_time":0.1,"cpu_time":1e9,"memory":5,"processors":["a\n"]}"#,
];

#[test]
fn bytes_of_any_kind_are_read() {
    let mut random = fastrand::Rng::with_seed(0x706f_7361);
    for _ in 0..20_000 {
        let mut text: Vec<u8> = Vec::new();
        for _ in 0..random.usize(1..4) {
            text.extend(LINES[random.usize(..LINES.len())].bytes());
            text.push(b'\n');
        }
        for _ in 0..random.usize(0..4) {
            let at = random.usize(..text.len());
            text[at] = if random.bool() { random.u8(..) } else { b"{}[]\",:\\0e\n"[random.usize(..11)] };
        }
        control_socket::run(&text);
    }
    control_socket::run(&vec![b'['; 1 << 20]);
}
