//! The thread of the device: all connections over two queues.

use std::collections::{BTreeMap, VecDeque};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};

use super::connection::{Connection, Flushed, Phase};
use super::packet::{HOST, Header, NO_SEND, Ports, STREAM, op};
use super::{RECEIVE, TRANSMIT};
use crate::{Chain, Handler, Rings};

const LISTENER: Token = Token(0);
const BOTH: Interest = Interest::READABLE.add(Interest::WRITABLE);
/// The most connections, and the most programs of the host that have not said yet where they want to.
const MAX_CONNECTIONS: usize = 1024;
const MAX_GREETINGS: usize = 64;
/// How many packets without data wait for the guest before it is listened to no more.
const MAX_WAITING: usize = 1024;
/// The longest line of a greeting: `CONNECT 4294967295`.
const MAX_LINE: usize = 32;
/// The most bytes of data in one packet.
const MAX_DATA: usize = 64 << 10;
/// Packets of the guest that are taken before the other direction's turn.
const BATCH: usize = 64;
/// Host ports of connections that the host begins count from here, where no program of a guest expects a service.
const FIRST_PORT: u32 = 1 << 30;

/// A program of the host that has connected.
#[derive(Debug)]
struct Greeting {
    stream: UnixStream,
    line: Vec<u8>,
}

/// All connections of a device.
#[derive(Debug)]
pub(super) struct Mux {
    rings: Arc<Rings>,
    guest: u64,
    path: PathBuf,
    listener: UnixListener,
    connections: BTreeMap<Ports, Connection>,
    tokens: BTreeMap<Token, Ports>,
    greetings: BTreeMap<Token, Greeting>,
    /// Packets without data for the guest.
    waiting: VecDeque<Header>,
    /// Connections that have something to be read, in turn.
    readable: VecDeque<Ports>,
    next_token: usize,
    next_port: u32,
    /// The guest has no buffers, or is not listened to until it takes what waits.
    needs_buffers: bool,
    holds_transmit: bool,
    buffer: Vec<u8>,
}

impl Mux {
    pub(super) fn new(rings: Arc<Rings>, guest: u32, path: PathBuf, listener: UnixListener) -> Self {
        Self {
            rings,
            guest: guest.into(),
            path,
            listener,
            connections: BTreeMap::new(),
            tokens: BTreeMap::new(),
            greetings: BTreeMap::new(),
            waiting: VecDeque::new(),
            readable: VecDeque::new(),
            next_token: 1,
            next_port: FIRST_PORT,
            needs_buffers: false,
            holds_transmit: false,
            buffer: Vec::new(),
        }
    }

    fn token(&mut self) -> Token {
        self.next_token += 1;
        Token(self.next_token)
    }

    /// A packet to the guest.
    fn header(&self, ports: Ports, op: u16) -> Header {
        Header {
            source: HOST,
            destination: self.guest,
            source_port: ports.host,
            destination_port: ports.guest,
            kind: STREAM,
            op,
            ..Header::default()
        }
    }

    fn say(&mut self, ports: Ports, op: u16, flags: u32) {
        let header = Header { flags, ..self.header(ports, op) };
        self.waiting.push_back(header);
    }

    fn forget(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.remove(&ports) {
            // Closing the socket takes it out of the event loop.
            self.tokens.remove(&connection.token);
        }
    }

    /// Ends a connection and tells the guest.
    fn reset_connection(&mut self, ports: Ports) {
        self.forget(ports);
        self.say(ports, op::RESET, 0);
    }

    // From the host's programs.

    fn accept(&mut self, registry: &Registry) {
        while let Ok((mut stream, _)) = self.listener.accept() {
            let token = self.token();
            if registry.register(&mut stream, token, BOTH).is_err() {
                continue;
            }
            if self.greetings.len() >= MAX_GREETINGS {
                // Who has said nothing for longest goes.
                self.greetings.pop_first();
            }
            self.greetings.insert(token, Greeting { stream, line: Vec::new() });
            self.greet(token);
        }
    }

    /// Reads a greeting as far as it has come.
    fn greet(&mut self, token: Token) {
        let Some(greeting) = self.greetings.get_mut(&token) else { return };
        let mut byte = [0];
        let asked = loop {
            // One by one: what follows the line is the guest's.
            match greeting.stream.read(&mut byte) {
                Ok(1) if byte[0] == b'\n' => break wanted_port(&greeting.line),
                Ok(1) if greeting.line.len() < MAX_LINE => greeting.line.push(byte[0]),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                _ => break None,
            }
        };
        let Some(Greeting { stream, .. }) = self.greetings.remove(&token) else { return };
        if let Some(guest) = asked
            && self.rings.is_active()
            && self.connections.len() < MAX_CONNECTIONS
        {
            let ports = Ports { host: self.free_port(), guest };
            self.connect(ports, Connection::new(stream, token, Phase::Requested));
            self.say(ports, op::REQUEST, 0);
        }
    }

    fn free_port(&mut self) -> u32 {
        loop {
            self.next_port = self.next_port.wrapping_add(1).max(FIRST_PORT);
            let host = self.next_port;
            let (first, last) = (Ports { host, guest: 0 }, Ports { host, guest: u32::MAX });
            if self.connections.range(first..=last).next().is_none() {
                return host;
            }
        }
    }

    fn connect(&mut self, ports: Ports, connection: Connection) {
        self.tokens.insert(connection.token, ports);
        self.connections.insert(ports, connection);
    }

    /// Queues a connection for reading, if reading may give something.
    fn want_read(&mut self, ports: Ports) {
        if let Some(connection) = self.connections.get_mut(&ports)
            && connection.can_read()
            && !std::mem::replace(&mut connection.is_queued, true)
        {
            self.readable.push_back(ports);
        }
    }

    /// Passes on to a program of the host what the guest has sent.
    fn flush(&mut self, ports: Ports) {
        let Some(connection) = self.connections.get_mut(&ports) else { return };
        match connection.flush() {
            Flushed::Room(true) => self.say(ports, op::CREDIT_UPDATE, 0),
            Flushed::Room(false) => {}
            Flushed::Gone | Flushed::Finished => self.reset_connection(ports),
        }
    }

    // From the guest.

    fn transmit(&mut self, registry: &Registry) -> bool {
        self.holds_transmit = self.waiting.len() >= MAX_WAITING;
        if self.holds_transmit {
            return false;
        }
        let rings = Arc::clone(&self.rings);
        rings.serve(TRANSMIT, BATCH, |chain| self.packet(chain, registry))
    }

    fn packet(&mut self, chain: &mut Chain, registry: &Registry) {
        let Ok(header) = chain.read_array().map(|bytes| Header::read(&bytes)) else { return };
        let ports = header.ports();
        if header.source != self.guest || header.destination != HOST {
            return;
        }
        if header.kind != STREAM {
            let refusal = Header { kind: header.kind, ..self.header(ports, op::RESET) };
            return self.waiting.push_back(refusal);
        }
        if let Some(connection) = self.connections.get_mut(&ports) {
            connection.note_credit(&header);
        }
        let phase = self.connections.get(&ports).map(|connection| connection.phase);
        match (header.op, phase) {
            (op::REQUEST, None) => self.reach(ports, &header, registry),
            (op::RESPONSE, Some(Phase::Requested)) => {
                if let Some(connection) = self.connections.get_mut(&ports) {
                    connection.phase = Phase::Connected;
                    connection.greet(&format!("OK {}\n", ports.host));
                }
                self.flush(ports);
            }
            (op::RESET, _) => self.forget(ports),
            (op::SHUTDOWN, Some(Phase::Connected)) => {
                if let Some(connection) = self.connections.get_mut(&ports) {
                    connection.shut_down(header.flags);
                }
                self.flush(ports);
            }
            (op::DATA, Some(Phase::Connected)) => self.data(ports, &header, chain),
            (op::CREDIT_REQUEST, Some(Phase::Connected)) => self.say(ports, op::CREDIT_UPDATE, 0),
            (op::CREDIT_UPDATE, Some(_)) => {}
            // Whatever it is about is not there.
            _ => self.reset_connection(ports),
        }
        self.want_read(ports);
    }

    /// The guest wants to reach a program of the host.
    fn reach(&mut self, ports: Ports, header: &Header, registry: &Registry) {
        let mut path = self.path.clone().into_os_string();
        path.push(format!("_{}", ports.host));
        let token = self.token();
        let stream = UnixStream::connect(path).and_then(|mut stream| {
            registry.register(&mut stream, token, BOTH)?;
            Ok(stream)
        });
        match stream {
            Ok(stream) if self.connections.len() < MAX_CONNECTIONS => {
                let mut connection = Connection::new(stream, token, Phase::Connected);
                connection.note_credit(header);
                self.connect(ports, connection);
                self.say(ports, op::RESPONSE, 0);
            }
            _ => self.say(ports, op::RESET, 0),
        }
    }

    fn data(&mut self, ports: Ports, header: &Header, chain: &mut Chain) {
        let taken = chain.read_all(MAX_DATA).is_ok_and(|data| {
            let len = header.len as usize;
            len <= data.len()
                && self.connections.get_mut(&ports).is_some_and(|connection| connection.take(&data[..len]))
        });
        if taken {
            self.flush(ports);
        } else {
            self.reset_connection(ports);
        }
    }

    // To the guest.

    /// Fills the guest's buffers with what waits for it; whether there may be more.
    fn receive(&mut self) -> bool {
        let (rings, mut filled) = (Arc::clone(&self.rings), 0);
        while filled < BATCH && !(self.waiting.is_empty() && self.readable.is_empty()) {
            let Ok(Some(mut chain)) = rings.pop(RECEIVE) else {
                if rings.listen(RECEIVE) {
                    continue;
                }
                self.needs_buffers = true;
                break;
            };
            match self.next_packet(chain.writable()) {
                None => rings.put_back(RECEIVE, 1),
                Some(header) => {
                    // Buffers that are too small, or outside memory, swallow what was for them.
                    let _ = chain.write(&header.write()).and_then(|()| chain.write(&self.buffer));
                    rings.push(RECEIVE, &chain);
                    filled += 1;
                }
            }
        }
        if filled != 0 {
            rings.signal(RECEIVE);
        }
        filled == BATCH
    }

    /// The next packet for the guest, its data in `buffer`; none if what looked readable was not.
    fn next_packet(&mut self, room: u64) -> Option<Header> {
        self.buffer.clear();
        if let Some(mut header) = self.waiting.pop_front() {
            let ports = Ports { host: header.source_port, guest: header.destination_port };
            if let Some(connection) = self.connections.get_mut(&ports) {
                connection.stamp(&mut header);
            }
            return Some(header);
        }
        let ports = self.readable.pop_front()?;
        let mut header = self.header(ports, op::DATA);
        let connection = self.connections.get_mut(&ports)?;
        connection.is_queued = false;
        if !connection.can_read() {
            return None;
        }
        let max = usize::try_from(room.saturating_sub(Header::LEN as u64)).unwrap_or(MAX_DATA).min(MAX_DATA);
        if max == 0 {
            // A buffer without room for data: the guest's own loss.
            return Some(header);
        }
        match connection.read(&mut self.buffer, max) {
            Ok(()) if connection.is_at_end => {
                header.op = op::SHUTDOWN;
                header.flags = NO_SEND;
            }
            Ok(()) => header.len = self.buffer.len() as u32,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.buffer.clear();
                return None;
            }
            Err(_) => {
                self.buffer.clear();
                self.forget(ports);
                header.op = op::RESET;
                return Some(header);
            }
        }
        connection.stamp(&mut header);
        self.want_read(ports);
        Some(header)
    }
}

/// The port in a greeting, `CONNECT port`.
fn wanted_port(line: &[u8]) -> Option<u32> {
    let line = std::str::from_utf8(line).ok()?;
    let (word, port) = line.trim_end().split_once(' ')?;
    if word.eq_ignore_ascii_case("CONNECT") { port.trim().parse().ok() } else { None }
}

impl Handler for Mux {
    fn start(&mut self, registry: &Registry) -> io::Result<()> {
        registry.register(&mut self.listener, LISTENER, Interest::READABLE)
    }

    fn queue(&mut self, queue: usize) -> bool {
        match queue {
            RECEIVE => self.needs_buffers = false,
            TRANSMIT => self.holds_transmit = true,
            // Events are for a guest that has moved, which none does yet.
            _ => {}
        }
        // The round does both.
        false
    }

    fn ready(&mut self, token: Token, registry: &Registry) {
        if token == LISTENER {
            return self.accept(registry);
        }
        if self.greetings.contains_key(&token) {
            return self.greet(token);
        }
        let Some(ports) = self.tokens.get(&token).copied() else { return };
        if let Some(connection) = self.connections.get_mut(&ports) {
            connection.is_readable = true;
        }
        self.flush(ports);
        self.want_read(ports);
    }

    fn round(&mut self, registry: &Registry) -> bool {
        if !self.rings.is_active() {
            return false;
        }
        let mut more = false;
        if self.holds_transmit {
            more = self.transmit(registry);
            self.holds_transmit |= more;
        }
        if !self.needs_buffers {
            more |= self.receive();
            // What waited has gone: the guest is listened to again.
            more |= self.holds_transmit && self.waiting.len() < MAX_WAITING;
        }
        more
    }

    fn reset(&mut self) {
        self.connections.clear();
        self.tokens.clear();
        self.greetings.clear();
        self.waiting.clear();
        self.readable.clear();
        (self.needs_buffers, self.holds_transmit) = (false, false);
    }
}

impl Drop for Mux {
    fn drop(&mut self) {
        // Whoever finds it otherwise finds nobody there.
        let _ = std::fs::remove_file(&self.path);
    }
}
