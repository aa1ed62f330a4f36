//! The sizes of an image that never change while it is open, and what follows from them.

/// The largest L1 table that is read, in bytes: 2 EiB of disk with clusters of 64 KiB. QEMU has the same limit.
pub(crate) const MAX_L1: u64 = 32 << 20;
/// The largest refcount table, in bytes. QEMU has the same limit.
pub(crate) const MAX_REFCOUNT_TABLE: u64 = 8 << 20;

/// How an image is divided.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Geometry {
    /// 2 or 3.
    pub version: u32,
    /// A cluster has `1 << cluster_bits` bytes; 9 to 21.
    pub cluster_bits: u32,
    /// A refcount has `1 << refcount_order` bits; 0 to 6.
    pub refcount_order: u32,
    /// The disk's size in bytes.
    pub size: u64,
}

impl Geometry {
    pub(crate) fn cluster(&self) -> u64 {
        1 << self.cluster_bits
    }

    /// How many entries an L2 table has, as a power of two.
    pub(crate) fn l2_bits(&self) -> u32 {
        self.cluster_bits - 3
    }

    pub(crate) fn l2_entries(&self) -> usize {
        1 << self.l2_bits()
    }

    /// How many bytes of the disk one L2 table describes, as a power of two.
    pub(crate) fn l1_shift(&self) -> u32 {
        self.cluster_bits + self.l2_bits()
    }

    /// How many L1 entries the disk needs.
    pub(crate) fn l1_entries(&self) -> u64 {
        self.size.div_ceil(1 << self.l1_shift())
    }

    /// How many clusters one refcount block counts.
    pub(crate) fn block_clusters(&self) -> u64 {
        (self.cluster() * 8) >> self.refcount_order
    }

    /// The L1 index and the L2 index of a place on the disk.
    pub(crate) fn indices(&self, offset: u64) -> (usize, usize) {
        let l2 = (offset >> self.cluster_bits) as usize & (self.l2_entries() - 1);
        ((offset >> self.l1_shift()) as usize, l2)
    }

    pub(crate) fn round_down(&self, offset: u64) -> u64 {
        offset & !(self.cluster() - 1)
    }

    pub(crate) fn within(&self, offset: u64) -> u64 {
        offset & (self.cluster() - 1)
    }

    pub(crate) fn clusters(&self, bytes: u64) -> u64 {
        bytes.div_ceil(self.cluster())
    }
}
