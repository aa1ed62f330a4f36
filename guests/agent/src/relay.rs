//! The relay loop: one poll(2) over the channel, the command's streams and its end.

use crate::sys::{self, Errno, Fd, PollFd};
use crate::wire::{self, Decoder, Frame, ending, kind};

/// A started command.
pub struct Command {
    pub process: i32,
    /// Becomes readable when the process has ended (pidfd_open(2)).
    pub exited: Fd,
    /// Our ends of its streams; negative where there is none.
    pub stdin: Fd,
    pub stdout: Fd,
    pub stderr: Fd,
    /// Whether its streams go over the channel at all.
    pub relayed: bool,
    /// The terminal whose size follows the host's; negative if there is none.
    pub terminal: Fd,
    /// Set if the process could not become the command.
    pub not_started: Option<Errno>,
}

/// One output stream of the command.
struct Output {
    fd: Fd,
    kind: u8,
    /// Bytes that the host still takes.
    credit: u32,
}

pub struct Relay {
    channel: Fd,
    decoder: Decoder,
    /// Frames on their way to the host.
    out: Buffer<12288>,
    command: Command,
    outputs: [Output; 2],
    /// Standard input on its way to the command.
    input: Buffer<{ wire::STDIN_WINDOW as usize + 1 }>,
    /// Standard input delivered to the command that the host does not know of yet.
    delivered: u32,
    input_ended: bool,
    /// The wait status, once the process has ended.
    status: Option<i32>,
}

/// Room that stream data leaves in `out`, for the few control frames.
const RESERVE: usize = 64;

/// The character that means end of file to a terminal in its default mode.
const CONTROL_D: u8 = 4;

impl Relay {
    pub fn new(channel: Fd, command: Command) -> Self {
        let output = |fd, kind| Output { fd, kind, credit: wire::OUTPUT_WINDOW };
        let outputs = [output(command.stdout, kind::STDOUT), output(command.stderr, kind::STDERR)];
        Self {
            channel,
            decoder: Decoder::new(),
            out: Buffer::new(),
            command,
            outputs,
            input: Buffer::new(),
            delivered: 0,
            input_ended: false,
            status: None,
        }
    }

    /// Relays until the command has ended and everything that it wrote is on its way.
    pub fn run(mut self) {
        if self.channel >= 0 {
            self.out.push(&wire::MAGIC);
            self.send(kind::HELLO, &wire::STDIN_WINDOW.to_le_bytes());
        }
        while !self.finished() {
            let mut fds = self.interests();
            match sys::poll(&mut fds) {
                Ok(_) | Err(Errno::INTR) => self.serve(&fds),
                Err(_) => break,
            }
        }
        self.report();
    }

    fn finished(&self) -> bool {
        self.status.is_some() && self.outputs.iter().all(|output| output.fd < 0)
    }

    /// What to wait for, in the order that `serve` takes it apart.
    fn interests(&self) -> [PollFd; 5] {
        let wait = |fd: Fd, events: i16| PollFd { fd, events, revents: 0 };
        let room = self.room() > 0;
        let output = |output: &Output| {
            let ready = room && output.credit > 0;
            // Without room a closed pipe must not wake us either: it would do so for ever.
            wait(if ready { output.fd } else { -1 }, sys::POLLIN)
        };
        let channel = sys::POLLIN | if self.out.is_empty() { 0 } else { sys::POLLOUT };
        let input = if self.input.is_empty() { 0 } else { sys::POLLOUT };
        // A terminal has one descriptor for both ways; its hang-up is seen on the output side.
        let quiet = self.is_pty() && input == 0;
        [
            wait(self.channel, channel),
            wait(if self.status.is_some() { -1 } else { self.command.exited }, sys::POLLIN),
            wait(if quiet || self.status.is_some() { -1 } else { self.command.stdin }, input),
            output(&self.outputs[0]),
            output(&self.outputs[1]),
        ]
    }

    fn serve(&mut self, fds: &[PollFd; 5]) {
        let [channel, exited, stdin, stdout, stderr] = fds.map(|fd| fd.revents);
        if exited & sys::POLLIN != 0 {
            self.status = sys::wait(self.command.process).ok().or(Some(0));
        }
        if channel & (sys::POLLIN | sys::POLLHUP | sys::POLLERR) != 0 {
            self.receive();
        }
        if stdin & (sys::POLLOUT | sys::POLLERR | sys::POLLHUP) != 0 {
            self.feed(stdin);
        }
        for (at, events) in [stdout, stderr].into_iter().enumerate() {
            if self.status.is_some() {
                // What an ended command has left in its pipes is read without waiting: others may hold them open.
                while self.take_output(at) {}
            } else if events != 0 {
                self.take_output(at);
            }
        }
        self.grant();
        self.flush();
    }

    fn is_pty(&self) -> bool {
        self.command.stdin >= 0 && self.command.stdin == self.command.stdout
    }

    /// How many bytes of a stream a frame could carry now.
    fn room(&self) -> usize {
        self.out.room().saturating_sub(wire::HEADER + RESERVE).min(wire::MAX_PAYLOAD)
    }

    fn send(&mut self, kind: u8, payload: &[u8]) {
        if self.channel >= 0 {
            self.out.push(&wire::header(kind, payload.len()));
            self.out.push(payload);
        }
    }

    /// Reads one of the command's outputs straight into a frame. False if there was nothing, or no leave to send it.
    fn take_output(&mut self, at: usize) -> bool {
        let room = self.room().min(self.outputs[at].credit as usize);
        let output = &mut self.outputs[at];
        if output.fd < 0 || room == 0 {
            return false;
        }
        let space = self.out.space(wire::HEADER + room);
        match sys::read(output.fd, &mut space[wire::HEADER..]) {
            Ok(count @ 1..) => {
                space[..wire::HEADER].copy_from_slice(&wire::header(output.kind, count));
                self.out.commit(wire::HEADER + count);
                output.credit -= count as u32;
                return true;
            }
            Err(Errno::AGAIN) if self.status.is_none() => {}
            // Cannot be here, with every signal at its default; a retry costs nothing.
            Err(Errno::INTR) => return true,
            // End of file, or nothing left of an ended command.
            _ => self.close_output(at),
        }
        false
    }

    fn close_output(&mut self, at: usize) {
        if self.is_pty() {
            // One descriptor for everything: the command loses its terminal, and is told so by SIGHUP.
            self.command.stdin = -1;
            self.command.terminal = -1;
            self.command.stdout = -1;
        }
        let output = &mut self.outputs[at];
        if output.fd >= 0 {
            let _ = sys::close(output.fd);
            output.fd = -1;
        }
    }

    /// Writes to the command's standard input.
    fn feed(&mut self, events: i16) {
        if !self.input.is_empty() {
            match sys::write(self.command.stdin, self.input.bytes()) {
                Ok(count) => {
                    self.input.consume(count);
                    self.delivered += count as u32;
                }
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(_) => return self.close_input(true),
            }
            if self.input.is_empty() && self.input_ended && !self.is_pty() {
                self.close_input(false);
            }
        } else if events & sys::POLLERR != 0 {
            self.close_input(true);
        }
    }

    fn close_input(&mut self, tell: bool) {
        if !self.is_pty() {
            let _ = sys::close(self.command.stdin);
        }
        self.command.stdin = -1;
        self.input = Buffer::new();
        if tell {
            self.send(kind::STDIN_CLOSED, &[]);
        }
    }

    /// Tells the host that it may send more, in steps that are worth a frame.
    fn grant(&mut self) {
        if self.delivered >= wire::STDIN_WINDOW / 4 && self.out.room() >= RESERVE {
            let delivered = core::mem::take(&mut self.delivered);
            self.send(kind::STDIN_CREDIT, &delivered.to_le_bytes());
        }
    }

    fn receive(&mut self) {
        let mut bytes = [0; 4096];
        match sys::read(self.channel, &mut bytes) {
            Ok(count @ 1..) => {
                let mut input = &bytes[..count];
                // The decoder is lent out while a frame is looked at, which changes nothing of it.
                let mut decoder = core::mem::take(&mut self.decoder);
                loop {
                    match decoder.next(&mut input) {
                        Ok(Some(frame)) => self.obey(frame),
                        Ok(None) => break,
                        Err(_) => return self.lose_channel(),
                    }
                }
                self.decoder = decoder;
            }
            Err(Errno::AGAIN | Errno::INTR) => {}
            _ => self.lose_channel(),
        }
    }

    fn obey(&mut self, frame: Frame<'_>) {
        match (frame.kind, frame.payload) {
            (kind::STDIN, bytes) => {
                if self.command.stdin < 0 || self.input_ended {
                    return;
                }
                if bytes.len() >= self.input.room() {
                    return self.lose_channel();
                }
                self.input.push(bytes);
            }
            (kind::STDIN_EOF, _) if !self.input_ended => {
                self.input_ended = true;
                if self.is_pty() {
                    self.input.push(&[CONTROL_D]);
                } else if self.input.is_empty() && self.command.stdin >= 0 {
                    self.close_input(false);
                }
            }
            (kind::OUTPUT_CREDIT, payload) => {
                if let Some((stream, bytes)) = wire::read_u8_u32(payload)
                    && let Some(output) = self.outputs.iter_mut().find(|output| output.kind == stream)
                {
                    output.credit = output.credit.saturating_add(bytes);
                }
            }
            (kind::OUTPUT_CLOSED, &[stream]) => {
                if let Some(at) = self.outputs.iter().position(|output| output.kind == stream) {
                    self.close_output(at);
                }
            }
            (kind::SIZE, payload) => {
                if let Some((rows, columns)) = wire::read_u16_u16(payload)
                    && self.command.terminal >= 0
                {
                    sys::set_size(self.command.terminal, rows, columns);
                }
            }
            (kind::SIGNAL, &[signal]) if self.status.is_none() => {
                let _ = sys::kill(-self.command.process, signal);
            }
            _ => {}
        }
    }

    /// Nobody listens any more. A command whose streams went over the channel has lost its purpose.
    fn lose_channel(&mut self) {
        let _ = sys::close(self.channel);
        self.channel = -1;
        self.out = Buffer::new();
        if self.command.relayed {
            let _ = sys::kill(-self.command.process, sys::SIGKILL);
            self.close_output(0);
            self.close_output(1);
        }
    }

    fn flush(&mut self) {
        if self.channel < 0 || self.out.is_empty() {
            return;
        }
        match sys::write(self.channel, self.out.bytes()) {
            Ok(count) => self.out.consume(count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => self.lose_channel(),
        }
    }

    /// Tells the host how the command ended, and waits until the port has sent it.
    fn report(mut self) {
        let status = self.status.unwrap_or(0);
        // The encoding of a wait status: wait(2), WIFEXITED and its kin.
        let (how, value) = match (self.command.not_started, status & 0x7f) {
            (Some(error), _) => (ending::NOT_STARTED, error.0),
            (None, 0) => (ending::EXITED, status >> 8 & 0xff),
            (None, signal) => (ending::SIGNALLED, signal),
        };
        self.send(kind::EXIT, &wire::write_u8_u32(how, value as u32));
        while self.channel >= 0 && !self.out.is_empty() {
            let mut fds = [PollFd { fd: self.channel, events: sys::POLLOUT, revents: 0 }];
            let _ = sys::poll(&mut fds);
            self.flush();
        }
        if self.channel >= 0 {
            sys::drain(self.channel);
        }
    }
}

/// A queue of bytes in one piece: written at its end, read from its front.
struct Buffer<const SIZE: usize> {
    bytes: [u8; SIZE],
    start: usize,
    end: usize,
}

impl<const SIZE: usize> Buffer<SIZE> {
    const fn new() -> Self {
        Self { bytes: [0; SIZE], start: 0, end: 0 }
    }

    fn is_empty(&self) -> bool {
        self.start == self.end
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..self.end]
    }

    fn room(&self) -> usize {
        SIZE - (self.end - self.start)
    }

    /// `length` bytes behind the end, to be filled and then committed.
    fn space(&mut self, length: usize) -> &mut [u8] {
        if self.end + length > SIZE {
            self.bytes.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
        &mut self.bytes[self.end..self.end + length]
    }

    fn commit(&mut self, length: usize) {
        self.end += length;
    }

    fn push(&mut self, bytes: &[u8]) {
        self.space(bytes.len()).copy_from_slice(bytes);
        self.commit(bytes.len());
    }

    fn consume(&mut self, length: usize) {
        self.start += length;
        if self.start == self.end {
            (self.start, self.end) = (0, 0);
        }
    }
}
