//! What a tap refuses before it asks the host. How it works is in `tests/tap.rs`, in a network namespace.

use std::io;

use rustix::io::Errno;

use super::{Error, Tap};
use crate::limit::Rates;
use crate::link::{Capacity, pair};

#[test]
fn names_that_are_none_are_refused() {
    for name in ["", "a-name-that-is-too-long", "../x", "a b", ".", "a\0b", "tap%d"] {
        let error = Tap::start(name, Rates::default(), pair(Capacity::default()).unwrap().1).unwrap_err();
        assert!(matches!(error, Error::Name { .. }), "{name:?}: {error}");
    }
}

#[test]
fn a_missing_right_is_named() {
    let error = Error::opening("tap0", io::Error::from(Errno::PERM)).to_string();
    assert!(
        error.contains("CAP_NET_ADMIN") && error.contains("ip tuntap add mode tap user $USER name tap0"),
        "{error}"
    );
    let error = Error::opening("tap0", io::Error::from(Errno::BUSY)).to_string();
    assert!(error.contains("has it open"), "{error}");
}
