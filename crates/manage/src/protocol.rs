//! What is said on a control socket.
//!
//! One request a connection: a line of JSON, at most [`MAX_LINE`] bytes, answered by a line of JSON. After the answer to
//! [`Request::Console`] the connection carries the console's bytes, both ways.
//!
//! ```
//! use posada_manage::protocol::{Request, parse};
//!
//! assert_eq!(parse::<Request>(br#"{"request":"pause"}"#), Ok(Request::Pause));
//! assert!(parse::<Request>(b"pause").is_err());
//! ```

use std::io::{self, Read};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The longest line, in bytes, its end not counted.
pub const MAX_LINE: usize = 256 << 10;

/// What a supervisor can be asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "request", rename_all = "kebab-case")]
pub enum Request {
    /// How is it?
    Status,
    /// Ask the guest to end: its power button is pressed; a command gets SIGTERM, the first time.
    Stop,
    /// End the run at once.
    Kill,
    /// Have processors and clocks stand still.
    Pause,
    /// Let them go on.
    Resume,
    /// What has it used?
    Stats,
    /// Ask the guest to do without so many bytes of its memory; 0 gives all back.
    Balloon {
        /// How many.
        bytes: u64,
    },
    /// Join the console.
    Console,
}

/// What it answers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "answer", rename_all = "kebab-case")]
pub enum Answer {
    /// It is done.
    Done,
    /// How it is.
    Status(Status),
    /// What it has used.
    Stats(Stats),
    /// It cannot be done.
    Refused {
        /// Why.
        problem: String,
    },
}

/// How a guest is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Whether it is paused.
    pub paused: bool,
    /// How long the guest has lived: the time of its own clocks, in seconds.
    pub guest_time: f64,
}

/// What a guest has used.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    /// Whether it is paused.
    pub paused: bool,
    /// How long the guest has lived, in seconds.
    pub guest_time: f64,
    /// Time of the host's processors that the supervisor has used, in seconds.
    pub cpu_time: f64,
    /// Memory of the host that it occupies, in bytes.
    pub memory: u64,
    /// What the engine tells of each processor.
    pub processors: Vec<String>,
    /// Its disks, those of an image first. Supervisors of before do not tell.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Its network cards.
    #[serde(default)]
    pub networks: Vec<Network>,
    /// Its balloon.
    #[serde(default)]
    pub balloon: Option<Balloon>,
}

/// How much of its memory a guest does without.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Balloon {
    /// How much it is asked to, in bytes.
    pub target: u64,
    /// How much it says that it does, in bytes.
    pub actual: u64,
}

/// How much a guest has used a disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Disk {
    /// The disk's serial number, by which the guest knows it, too.
    pub serial: String,
    /// Requests to read. Those of more than 256 KiB count as several, here and below.
    pub reads: u64,
    /// Bytes read.
    pub read_bytes: u64,
    /// Requests to write, or to write zeroes.
    pub writes: u64,
    /// Bytes written.
    pub written_bytes: u64,
    /// Requests to bring what was written to stable storage.
    pub flushes: u64,
    /// Requests to discard.
    pub discards: u64,
    /// Bytes discarded.
    pub discarded_bytes: u64,
    /// Requests that failed, which are not counted above.
    pub errors: u64,
}

/// How much a guest has used a network card.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// The card's Ethernet address.
    pub address: String,
    /// Packets that the guest has sent; what a card cuts into segments counts once.
    pub sent_packets: u64,
    /// Bytes of these, with their Ethernet headers.
    pub sent_bytes: u64,
    /// Packets that it has received.
    pub received_packets: u64,
    /// Bytes of these.
    pub received_bytes: u64,
}

/// Reads a line, without its end, and nothing after it.
///
/// # Errors
/// The reader's; `InvalidData` if the line is longer than [`MAX_LINE`]; `UnexpectedEof` if there is no end to it.
pub fn read_line(mut reader: impl Read) -> io::Result<Vec<u8>> {
    let mut line = Vec::new();
    let mut byte = [0];
    loop {
        match reader.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(_) if byte[0] == b'\n' => return Ok(line),
            Ok(_) if line.len() == MAX_LINE => {
                return Err(io::Error::new(io::ErrorKind::InvalidData, "a line is too long"));
            }
            Ok(_) => line.push(byte[0]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// What a line says.
///
/// # Errors
/// Why it says nothing that is known.
pub fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, String> {
    serde_json::from_slice(line).map_err(|error| error.to_string())
}

/// A line that says it, with its end.
pub fn line(what: &impl Serialize) -> Vec<u8> {
    let mut line = serde_json::to_vec(what).unwrap_or_default();
    line.push(b'\n');
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_said_is_understood() {
        let requests = [
            Request::Status,
            Request::Stop,
            Request::Kill,
            Request::Pause,
            Request::Resume,
            Request::Stats,
            Request::Balloon { bytes: 1 << 40 },
            Request::Console,
        ];
        for request in requests {
            let text = [line(&request), b"rest".to_vec()].concat();
            let mut reader = &text[..];
            assert_eq!(parse(&read_line(&mut reader).unwrap()), Ok(request));
            assert_eq!(reader, b"rest");
        }
        for answer in [
            Answer::Done,
            Answer::Status(Status { paused: true, guest_time: 1.5 }),
            Answer::Refused { problem: "no".into() },
        ] {
            assert_eq!(parse(line(&answer).trim_ascii_end()), Ok(answer));
        }
    }

    #[test]
    fn a_supervisor_of_before_is_understood() {
        let said =
            br#"{"answer":"stats","paused":false,"guest_time":1,"cpu_time":2,"memory":3,"processors":[]}"#;
        let Ok(Answer::Stats(stats)) = parse(said) else { panic!("it is an answer") };
        assert!(stats.disks.is_empty() && stats.networks.is_empty());
    }

    #[test]
    fn other_lines_are_errors() {
        for text in ["", "{}", "null", r#"{"request":"fly"}"#, r#"{"request":"pause"} x"#, "[[[[", "\u{0}"] {
            assert!(parse::<Request>(text.as_bytes()).is_err(), "{text}");
        }
        let deep = "[".repeat(MAX_LINE);
        assert!(parse::<Request>(deep.as_bytes()).is_err());
        let kind = |text: &[u8]| read_line(text).unwrap_err().kind();
        assert_eq!(kind(b"no end"), io::ErrorKind::UnexpectedEof);
        assert_eq!(kind(&vec![b'x'; MAX_LINE + 2]), io::ErrorKind::InvalidData);
    }
}
