//! Keys that are ours and not the guest's: Ctrl-A and a letter, as QEMU's users know them.

/// Ctrl-A.
const ESCAPE: u8 = 0x01;

/// What the list of Ctrl-A h says.
pub(crate) const HELP: &str = "\r
Ctrl-A h  this list\r
Ctrl-A x  end the guest\r
Ctrl-A p  press the power button\r
Ctrl-A r  reset the machine\r
Ctrl-A b  send a break (Linux: SysRq)\r
Ctrl-A s  show the processors' registers\r
Ctrl-A t  show what the engine has done\r
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r
";

/// What the list says where a console was joined.
pub(crate) const JOINED_HELP: &str = "\r
Ctrl-A h  this list\r
Ctrl-A d  leave the console; the guest goes on\r
Ctrl-A x  end the guest at once\r
Ctrl-A p  press the power button\r
Ctrl-A Ctrl-A  send Ctrl-A to the guest\r
";

/// What a key asks of us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    Help,
    Quit,
    PowerButton,
    Reset,
    Break,
    Registers,
    Report,
    Detach,
}

/// Tells our keys from the guest's.
#[derive(Debug, Default)]
pub(crate) struct Keys {
    escaped: bool,
}

impl Keys {
    /// Takes what was typed: `act` is told of our keys, and the guest's are returned.
    pub(crate) fn filter(&mut self, typed: &[u8], mut act: impl FnMut(Action)) -> Vec<u8> {
        let mut guests = Vec::with_capacity(typed.len());
        for &byte in typed {
            if !self.escaped {
                self.escaped = byte == ESCAPE;
                if !self.escaped {
                    guests.push(byte);
                }
                continue;
            }
            self.escaped = false;
            match byte {
                b'h' | b'?' => act(Action::Help),
                b'x' => act(Action::Quit),
                b'p' => act(Action::PowerButton),
                b'r' => act(Action::Reset),
                b'b' => act(Action::Break),
                b's' => act(Action::Registers),
                b't' => act(Action::Report),
                b'd' => act(Action::Detach),
                // Ctrl-A twice, or Ctrl-A a, as QEMU and screen have it.
                ESCAPE | b'a' => guests.push(ESCAPE),
                // Not one of ours: nobody's.
                _ => {}
            }
        }
        guests
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(pieces: &[&[u8]]) -> (Vec<u8>, Vec<Action>) {
        let (mut keys, mut guests, mut actions) = (Keys::default(), Vec::new(), Vec::new());
        for piece in pieces {
            guests.extend(keys.filter(piece, |action| actions.push(action)));
        }
        (guests, actions)
    }

    #[test]
    fn ordinary_keys_are_the_guests() {
        assert_eq!(filter(&[b"ls -x\r", b"\x03\x1a\x7f"]), (b"ls -x\r\x03\x1a\x7f".to_vec(), vec![]));
    }

    #[test]
    fn an_escape_may_come_in_two_pieces() {
        assert_eq!(filter(&[b"a\x01", b"xb"]), (b"ab".to_vec(), vec![Action::Quit]));
    }

    #[test]
    fn ctrl_a_twice_sends_one() {
        assert_eq!(filter(&[b"\x01\x01\x01a"]), (b"\x01\x01".to_vec(), vec![]));
    }

    #[test]
    fn unknown_escapes_reach_nobody() {
        assert_eq!(filter(&[b"\x01q\x01h"]), (vec![], vec![Action::Help]));
    }
}
