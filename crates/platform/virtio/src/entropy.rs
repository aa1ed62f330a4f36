//! The entropy device (virtio 1.2 §5.4): random bytes from the host.

use std::io;
use std::sync::Arc;

use crate::{Bell, Chain, Device, Handler, Kind, Rings, Service};

/// The most bytes that one request gets: more would keep others waiting, and no driver asks for more.
const MAX_BYTES: u64 = 64 << 10;

/// The entropy device.
#[derive(Debug, Default)]
pub struct Entropy;

impl Device for Entropy {
    fn kind(&self) -> Kind {
        Kind { id: 4, class: [0xff, 0, 0], name: "entropy device" }
    }

    fn queues(&self) -> Vec<u16> {
        vec![64]
    }

    fn services(&mut self, rings: &Arc<Rings>) -> io::Result<Vec<Service>> {
        let rings = Arc::clone(rings);
        Ok(vec![Service::new([0], move |_: Arc<Bell>| Source(rings))])
    }
}

struct Source(Arc<Rings>);

impl Handler for Source {
    fn queue(&mut self, queue: usize) -> bool {
        self.0.serve(queue, 16, give)
    }
}

/// Fills the request. The driver is told how much of it was.
fn give(chain: &mut Chain) {
    let mut left = chain.writable().min(MAX_BYTES) as usize;
    let mut bytes = [0; 1024];
    while left != 0 {
        let part = &mut bytes[..left.min(1024)];
        let filled =
            getrandom::fill(part).map_err(|error| tracing::warn!(%error, "the host gives no random bytes"));
        if filled.is_err() || chain.write(part).is_err() {
            return;
        }
        left -= part.len();
    }
}
