//! Compressed clusters: reading, and packing while an image is made.
//!
//! Deflate is raw, with a window of 4 KiB when written, for that is what QEMU reads (`block/qcow2-threads.c`).

use std::io::Read;
use std::sync::{Arc, Mutex, PoisonError};

use flate2::{Compress, Compression as Level, Decompress, FlushCompress, FlushDecompress, Status};

use super::Qcow2;
use super::entry::{Mapping, Span};
use super::geometry::Geometry;
use super::header::Compression;
use super::tables::past_end;
use crate::Result;

/// How many bytes of unpacked clusters are kept.
const MEMORY: u64 = 4 << 20;
/// The window that a zstd frame may ask for.
const MAX_ZSTD_WINDOW: u64 = 8 << 20;

/// Clusters that were unpacked lately, by their L2 entry, the latest last.
#[derive(Debug)]
pub(super) struct Unpacked {
    clusters: Mutex<Vec<(u64, Arc<[u8]>)>>,
    capacity: usize,
}

impl Unpacked {
    pub(super) fn new(geometry: &Geometry) -> Self {
        let capacity = (MEMORY / geometry.cluster()).clamp(2, 64) as usize;
        Self { clusters: Mutex::default(), capacity }
    }

    fn get(&self, entry: u64) -> Option<Arc<[u8]>> {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        let at = clusters.iter().rposition(|cluster| cluster.0 == entry)?;
        clusters[at..].rotate_left(1);
        clusters.last().map(|cluster| cluster.1.clone())
    }

    fn put(&self, entry: u64, cluster: Arc<[u8]>) {
        let mut clusters = self.clusters.lock().unwrap_or_else(PoisonError::into_inner);
        if clusters.len() >= self.capacity {
            clusters.remove(0);
        }
        clusters.push((entry, cluster));
    }

    /// Forgets all: clusters of the file may soon hold something else.
    pub(super) fn clear(&self) {
        self.clusters.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}

impl Qcow2 {
    /// Reads a part of the cluster that an L2 entry describes, from `within` on.
    pub(super) fn read_packed(&self, entry: u64, within: u64, buffer: &mut [u8]) -> Result<()> {
        let cluster = match self.unpacked.get(entry) {
            Some(cluster) => cluster,
            None => {
                let cluster: Arc<[u8]> = self.unpack(entry)?.into();
                self.unpacked.put(entry, cluster.clone());
                cluster
            }
        };
        buffer.copy_from_slice(&cluster[within as usize..][..buffer.len()]);
        Ok(())
    }

    fn unpack(&self, entry: u64) -> Result<Vec<u8>> {
        let Mapping::Compressed(span) = self.decode(entry)? else { unreachable!("the caller has looked") };
        // At most two clusters, as the entry has so few bits for it.
        let mut packed = vec![0; span.length as usize];
        // The last sector may be incomplete.
        let had = self.file.read_some(span.offset, &mut packed)?;
        if had == 0 {
            return Err(past_end(&self.file, "compressed data", span.offset));
        }
        let mut cluster = vec![0; self.geometry.cluster() as usize];
        match self.header.compression {
            Compression::Deflate => inflate(&packed[..had], &mut cluster),
            Compression::Zstd => unpack_zstd(&packed[..had], &mut cluster),
        }
        .map_err(|problem| {
            self.corrupt(format!(
                "its compressed cluster at {:#x} cannot be decompressed: {problem}",
                span.offset
            ))
        })?;
        Ok(cluster)
    }

    /// Writes a whole cluster of the disk compressed, if that makes it smaller. The cluster has had no data before, and
    /// one thread writes the image.
    pub(crate) fn write_packed(&self, offset: u64, data: &[u8]) -> Result<bool> {
        self.check_change(offset, data.len() as u64)?;
        let mut cluster;
        let data = if data.len() as u64 == self.geometry.cluster() {
            data
        } else {
            cluster = data.to_vec();
            cluster.resize(self.geometry.cluster() as usize, 0);
            &cluster
        };
        let Some(packed) = deflate(data) else { return Ok(false) };
        let _inside = self.enter();
        self.make_room()?;
        let number = offset >> self.geometry.cluster_bits;
        let _claim = self.claims.claim(number..number + 1);
        let (l1, l2) = self.geometry.indices(offset);
        let mut state = self.state_mut();
        self.own_table(&mut state, l1)?;
        let span = self.pack_space(&mut state, packed.len() as u64)?;
        let Some(entry) = Mapping::compressed(span, &self.geometry) else { return Ok(false) };
        self.file.write(span.offset, &packed)?;
        self.relink(&mut state, l1, l2, entry)?;
        Ok(true)
    }

    /// Finds room for less than a cluster, behind what was packed before if it can be.
    fn pack_space(&self, state: &mut super::State, length: u64) -> Result<Span> {
        let bits = self.geometry.cluster_bits;
        let (mut at, cluster) = (state.packed_end, state.packed_end >> bits);
        let room = state.packed_end.next_multiple_of(self.geometry.cluster()) - state.packed_end;
        let shared = |state: &mut super::State| {
            let count = state.refcounts.get(&self.file, cluster)?;
            state.refcounts.set(&self.file, cluster, count + 1)
        };
        if room >= length {
            shared(state)?;
        } else {
            let run = state.refcounts.allocate(&self.file, 1)?;
            if room > 0 && run.start == cluster + 1 {
                shared(state)?;
            } else {
                at = run.start << bits;
            }
        }
        state.packed_end = at + length;
        Ok(Span { offset: at, length })
    }
}

/// Fills `cluster` from raw deflate data, after which there may be other bytes.
fn inflate(packed: &[u8], cluster: &mut [u8]) -> Result<(), String> {
    let mut decoder = Decompress::new(false);
    match decoder.decompress(packed, cluster, FlushDecompress::Finish) {
        Err(error) => Err(error.to_string()),
        Ok(_) if decoder.total_out() == cluster.len() as u64 => Ok(()),
        Ok(_) => Err(format!("it has only {} bytes", decoder.total_out())),
    }
}

fn unpack_zstd(packed: &[u8], cluster: &mut [u8]) -> Result<(), String> {
    let decoder = ruzstd::decoding::StreamingDecoder::new_with_max_window_size(packed, MAX_ZSTD_WINDOW);
    decoder.map_err(|error| error.to_string())?.read_exact(cluster).map_err(|error| error.to_string())
}

/// Compresses a cluster, unless it would not become smaller.
fn deflate(cluster: &[u8]) -> Option<Vec<u8>> {
    let mut encoder = Compress::new_with_window_bits(Level::default(), false, 12);
    let mut packed = vec![0; cluster.len() - 1];
    match encoder.compress(cluster, &mut packed, FlushCompress::Finish) {
        Ok(Status::StreamEnd) => {
            packed.truncate(encoder.total_out() as usize);
            Some(packed)
        }
        _ => None,
    }
}
