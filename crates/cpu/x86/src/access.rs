//! Memory accesses of instructions: through a segment, through the TLB, to RAM or to a device.
//!
//! The fast way is inlined into every instruction; whatever it cannot do takes the slow way below it, which
//! checks everything before it changes anything.

use posada_vcpu::x86::{Segment, cr4};

use crate::core::{Core, segment};
use crate::exception::vector;
use crate::int::Int;
use crate::mmu::{Access, PAGE_MASK, Place, View};
use crate::op::{Op, Step, Stop};

/// Bit of [`crate::core::SegmentView::check`] that speaks of reads.
const CHECK_READ: u8 = 1;
/// Bit of [`crate::core::SegmentView::check`] that speaks of writes.
const CHECK_WRITE: u8 = 2;

impl Core {
    /// The linear address of `size` bytes at `offset` of segment `number`, once limit and rights allow it.
    #[inline(always)]
    pub(crate) fn linear(&mut self, number: u8, offset: u64, size: u64, write: bool) -> Step<u64> {
        let view = self.views[usize::from(number & 7)];
        if view.check & if write { CHECK_WRITE } else { CHECK_READ } != 0 {
            self.check_segment(number, offset, size, write)?;
        }
        Ok(view.base.wrapping_add(offset) & self.linear_mask)
    }

    /// Limit and rights of a segment outside 64-bit mode (AMD APM volume 2, sections 4.8 and 4.12).
    #[cold]
    fn check_segment(&mut self, number: u8, offset: u64, size: u64, write: bool) -> Step {
        let s: Segment = self.segments[usize::from(number)];
        let code = s.kind() & 8 != 0;
        let bit1 = s.kind() & 2 != 0;
        let rights = s.present() && if write { !code && bit1 } else { !code || bit1 };
        let inside = holds(&s, offset, size);
        if inside && (rights || !self.uses_descriptors()) {
            return Ok(());
        }
        Err(if number == segment::SS { self.ss_fault(0) } else { self.gp(0) })
    }

    /// Reads a memory operand.
    #[inline(always)]
    pub(crate) fn read<T: Int>(&mut self, number: u8, offset: u64) -> Step<T> {
        let linear = self.linear(number, offset, T::BYTES, false)?;
        match self.mmu.find_read(linear, T::BYTES) {
            Some(at) => Ok(self.connections.ram.load(at)),
            None => self.read_slow(number, linear),
        }
    }

    /// Writes a memory operand.
    #[inline(always)]
    pub(crate) fn write<T: Int>(&mut self, number: u8, offset: u64, value: T) -> Step {
        let linear = self.linear(number, offset, T::BYTES, true)?;
        match self.mmu.find_write(linear, T::BYTES) {
            Some(at) => {
                if self.connections.ram.store(at, value) {
                    self.code_written();
                }
                Ok(())
            }
            None => self.write_slow(number, linear, value),
        }
    }

    /// Reads a memory operand, changes it and writes it back: `change` returns the new value and what the
    /// instruction wants to know. The operand is known to be writable before `change` runs. Not atomic.
    #[inline(always)]
    pub(crate) fn modify<T: Int, R>(
        &mut self,
        number: u8,
        offset: u64,
        change: impl FnOnce(&mut Self, T) -> (T, R),
    ) -> Step<R> {
        let linear = self.linear(number, offset, T::BYTES, true)?;
        if let Some(at) = self.mmu.find_write(linear, T::BYTES) {
            let old = self.connections.ram.load(at);
            let (new, result) = change(self, old);
            if self.connections.ram.store(at, new) {
                self.code_written();
            }
            return Ok(result);
        }
        // Both halves are made sure of first, so that the write cannot fault after `change`.
        self.check_alignment(number, linear, T::BYTES)?;
        self.probe(number, linear, T::BYTES, Access::Write)?;
        let old = self.read_slow(number, linear)?;
        let (new, result) = change(self, old);
        self.write_slow(number, linear, new)?;
        Ok(result)
    }

    /// Replaces a memory operand by `change` of it under a bus lock; returns what it was. `change` may run
    /// several times.
    #[inline(always)]
    pub(crate) fn modify_locked<T: Int>(
        &mut self,
        number: u8,
        offset: u64,
        mut change: impl FnMut(T) -> T,
    ) -> Step<T> {
        let linear = self.linear(number, offset, T::BYTES, true)?;
        let at = if let Some(at) = self.mmu.find_write(linear, T::BYTES) {
            at
        } else {
            self.watch_data(number, linear, T::BYTES, true)?;
            self.probe(number, linear, T::BYTES, Access::Write)?;
            match self.place(number, linear, Access::Write)? {
                Place::Ram(at) if (linear & PAGE_MASK) + T::BYTES <= PAGE_MASK + 1 => at,
                Place::Ram(at) if self.next_is_neighbour(number, linear, at)? => at,
                // A device, or two pages that are no neighbours in RAM: no host lock covers them.
                _ => {
                    let ram = self.connections.ram.clone();
                    let _only = ram.lock_split();
                    let old = self.read_places(number, linear)?;
                    self.write_places(number, linear, change(old))?;
                    return Ok(old);
                }
            }
        };
        let (old, code) = self.connections.ram.update(at, change);
        if code {
            self.code_written();
        }
        Ok(old)
    }

    /// Whether the page after that of `linear`, which lies at `at`, follows it in RAM, too.
    fn next_is_neighbour(&mut self, number: u8, linear: u64, at: usize) -> Step<bool> {
        let next = (linear | PAGE_MASK).wrapping_add(1) & self.linear_mask;
        Ok(self.place(number, next, Access::Write)? == Place::Ram((at | PAGE_MASK as usize) + 1))
    }

    /// The operand at an instruction's memory address.
    #[inline(always)]
    pub(crate) fn read_op<T: Int>(&mut self, op: &Op) -> Step<T> {
        let offset = op.address(self);
        self.read(op.segment, offset)
    }

    #[inline(always)]
    pub(crate) fn write_op<T: Int>(&mut self, op: &Op, value: T) -> Step {
        let offset = op.address(self);
        self.write(op.segment, offset, value)
    }

    /// A 16-byte operand, low half first. With `aligned`, an address that is no multiple of 16 is `#GP(0)`.
    #[inline(always)]
    pub(crate) fn read_128(&mut self, number: u8, offset: u64, aligned: bool) -> Step<[u64; 2]> {
        let linear = self.linear(number, offset, 16, false)?;
        match self.mmu.find_read(linear, 16) {
            Some(at) if !aligned || linear & 15 == 0 => Ok(self.connections.ram.load_16(at)),
            _ => self.read_128_slow(number, linear, aligned),
        }
    }

    #[cold]
    #[inline(never)]
    fn read_128_slow(&mut self, number: u8, linear: u64, aligned: bool) -> Step<[u64; 2]> {
        if aligned && linear & 15 != 0 {
            return Err(self.gp(0));
        }
        self.check_alignment(number, linear, 16)?;
        self.probe(number, linear, 16, Access::Read)?;
        Ok([
            self.read_slow(number, linear)?,
            self.read_slow(number, linear.wrapping_add(8) & self.linear_mask)?,
        ])
    }

    /// Writes a 16-byte operand; see [`read_128`](Self::read_128).
    #[inline(always)]
    pub(crate) fn write_128(&mut self, number: u8, offset: u64, value: [u64; 2], aligned: bool) -> Step {
        let linear = self.linear(number, offset, 16, true)?;
        match self.mmu.find_write(linear, 16) {
            Some(at) if !aligned || linear & 15 == 0 => {
                if self.connections.ram.store_16(at, value) {
                    self.code_written();
                }
                Ok(())
            }
            _ => self.write_128_slow(number, linear, value, aligned),
        }
    }

    #[cold]
    #[inline(never)]
    fn write_128_slow(&mut self, number: u8, linear: u64, value: [u64; 2], aligned: bool) -> Step {
        if aligned && linear & 15 != 0 {
            return Err(self.gp(0));
        }
        self.check_alignment(number, linear, 16)?;
        self.probe(number, linear, 16, Access::Write)?;
        self.write_slow(number, linear, value[0])?;
        self.write_slow(number, linear.wrapping_add(8) & self.linear_mask, value[1])
    }

    /// Reads `data.len()` bytes (any number up to a few hundred) through a segment, all or nothing. Where
    /// alignment is checked, it must be a multiple of `alignment`.
    pub(crate) fn read_bytes(&mut self, number: u8, offset: u64, alignment: u64, data: &mut [u8]) -> Step {
        let mut at = self.span(number, offset, data.len() as u64, alignment, Access::Read)?;
        let (words, rest) = data.as_chunks_mut::<8>();
        for word in words {
            *word = self.read_piece::<u64>(number, at)?.to_le_bytes();
            at = at.wrapping_add(8) & self.linear_mask;
        }
        for byte in rest {
            *byte = self.read_piece(number, at)?;
            at = at.wrapping_add(1) & self.linear_mask;
        }
        Ok(())
    }

    /// Writes `data` through a segment, all or nothing; see [`read_bytes`](Self::read_bytes).
    pub(crate) fn write_bytes(&mut self, number: u8, offset: u64, alignment: u64, data: &[u8]) -> Step {
        let mut at = self.span(number, offset, data.len() as u64, alignment, Access::Write)?;
        let (words, rest) = data.as_chunks::<8>();
        for word in words {
            self.write_piece(number, at, u64::from_le_bytes(*word))?;
            at = at.wrapping_add(8) & self.linear_mask;
        }
        for byte in rest {
            self.write_piece(number, at, *byte)?;
            at = at.wrapping_add(1) & self.linear_mask;
        }
        Ok(())
    }

    /// Where `size` bytes begin, once all of them can be accessed.
    fn span(&mut self, number: u8, offset: u64, size: u64, alignment: u64, access: Access) -> Step<u64> {
        let write = access == Access::Write;
        let linear = self.linear(number, offset, size, write)?;
        self.check_alignment(number, linear, alignment)?;
        self.probe(number, linear, size, access)?;
        self.watch(linear, size, write);
        Ok(linear)
    }

    /// A part of a span that is known to be readable; nothing is checked again.
    fn read_piece<T: Int>(&mut self, number: u8, linear: u64) -> Step<T> {
        match self.mmu.find_read(linear, T::BYTES) {
            Some(at) => Ok(self.connections.ram.load(at)),
            None => self.read_places(number, linear),
        }
    }

    /// A part of a span that is known to be writable; nothing is checked again.
    fn write_piece<T: Int>(&mut self, number: u8, linear: u64, value: T) -> Step {
        match self.mmu.find_write(linear, T::BYTES) {
            Some(at) => {
                if self.connections.ram.store(at, value) {
                    self.code_written();
                }
                Ok(())
            }
            None => self.write_places(number, linear, value),
        }
    }

    /// A store has changed code that is decoded somewhere, perhaps the very block that runs.
    #[cold]
    pub(crate) fn code_written(&mut self) {
        self.code_changed = true;
    }

    /// Whether an address has the form that 64-bit mode demands: bits 63:47 all the same.
    pub(crate) fn is_canonical(address: u64) -> bool {
        (address as i64) << 16 >> 16 == address as i64
    }

    /// Where one byte at `linear` is, for an access with the current rights.
    pub(crate) fn place(&mut self, number: u8, linear: u64, access: Access) -> Step<Place> {
        let hit = match access {
            Access::Read => self.mmu.find_read(linear, 1),
            Access::Write => self.mmu.find_write(linear, 1),
            Access::Execute => self.mmu.find_code(linear),
        };
        if let Some(at) = hit {
            return Ok(Place::Ram(at));
        }
        if self.long64 && !Self::is_canonical(linear) {
            return Err(if number == segment::SS { self.ss_fault(0) } else { self.gp(0) });
        }
        let view = self.mmu.view();
        if self.mmu.revive_global(linear) && view != View::Watched {
            return self.place(number, linear, access);
        }
        self.translate(linear, access, self.mmu.user, view)
    }

    /// Makes sure that `size` bytes at `linear` can be accessed, without accessing them.
    pub(crate) fn probe(&mut self, number: u8, linear: u64, size: u64, access: Access) -> Step {
        let last = linear.wrapping_add(size - 1) & self.linear_mask;
        if (last ^ linear) & !PAGE_MASK == 0 {
            return self.place(number, linear, access).map(|_| ());
        }
        self.check_span(number, linear, size)?;
        self.place(number, linear, access)?;
        // A fault there is at the first byte of the page.
        self.place(number, last & !PAGE_MASK, access).map(|_| ())
    }

    /// What must hold of an operand in two pages before either is looked at: in 64-bit mode both ends are
    /// canonical; outside it the operand does not run past the end of a segment of 4 GiB, which has no limit to
    /// tell of that.
    pub(crate) fn check_span(&mut self, number: u8, linear: u64, size: u64) -> Step {
        let good = if self.long64 {
            Self::is_canonical(linear) && Self::is_canonical(linear.wrapping_add(size - 1))
        } else {
            let offset = linear.wrapping_sub(self.views[usize::from(number & 7)].base) as u32;
            offset.checked_add(size as u32 - 1).is_some()
        };
        if good {
            return Ok(());
        }
        Err(if number == segment::SS { self.ss_fault(0) } else { self.gp(0) })
    }

    /// `#AC` for an operand that should lie at a multiple of `align`, a power of two, where that is checked. What
    /// must hold of its ends comes before.
    pub(crate) fn check_alignment(&mut self, number: u8, linear: u64, align: u64) -> Step {
        if self.mmu.checks_alignment() && linear & (align - 1) != 0 {
            self.check_span(number, linear, align)?;
            return Err(self.raise(vector::AC, Some(0)));
        }
        Ok(())
    }

    fn watch_data(&mut self, number: u8, linear: u64, size: u64, write: bool) -> Step {
        self.check_alignment(number, linear, size)?;
        self.watch(linear, size, write);
        Ok(())
    }

    fn watch(&mut self, linear: u64, size: u64, write: bool) {
        if self.mmu.watches() {
            self.note_data_access(linear, size, write);
        }
    }

    /// Makes sure that a store of `size` bytes at `linear`, to lie at a multiple of `align`, will not fault.
    pub(crate) fn check_store(&mut self, number: u8, linear: u64, size: u64, align: u64) -> Step {
        self.check_alignment(number, linear, align)?;
        self.probe(number, linear, size, Access::Write)
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn read_slow<T: Int>(&mut self, number: u8, linear: u64) -> Step<T> {
        self.watch_data(number, linear, T::BYTES, false)?;
        self.read_places(number, linear)
    }

    /// Reads a page or two, aligned or not.
    fn read_places<T: Int>(&mut self, number: u8, linear: u64) -> Step<T> {
        let room = PAGE_MASK + 1 - (linear & PAGE_MASK);
        if room >= T::BYTES {
            let place = self.place(number, linear, Access::Read)?;
            return Ok(self.load_place(place));
        }
        self.check_span(number, linear, T::BYTES)?;
        let first = self.place(number, linear, Access::Read)?;
        let second = self.place(number, linear.wrapping_add(room) & self.linear_mask, Access::Read)?;
        let mut bytes = [0; 8];
        for n in 0..T::BYTES {
            let place = if n < room { advance(first, n) } else { advance(second, n - room) };
            bytes[n as usize] = self.load_place::<u8>(place);
        }
        Ok(T::from_le(bytes))
    }

    #[cold]
    #[inline(never)]
    pub(crate) fn write_slow<T: Int>(&mut self, number: u8, linear: u64, value: T) -> Step {
        self.watch_data(number, linear, T::BYTES, true)?;
        self.write_places(number, linear, value)
    }

    /// Writes to a page or two, aligned or not.
    fn write_places<T: Int>(&mut self, number: u8, linear: u64, value: T) -> Step {
        let room = PAGE_MASK + 1 - (linear & PAGE_MASK);
        if room >= T::BYTES {
            let place = self.place(number, linear, Access::Write)?;
            self.store_place(place, value);
            return Ok(());
        }
        self.check_span(number, linear, T::BYTES)?;
        let first = self.place(number, linear, Access::Write)?;
        let second = self.place(number, linear.wrapping_add(room) & self.linear_mask, Access::Write)?;
        let bytes = value.zext().to_le_bytes();
        for n in 0..T::BYTES {
            let place = if n < room { advance(first, n) } else { advance(second, n - room) };
            self.store_place(place, bytes[n as usize]);
        }
        Ok(())
    }

    pub(crate) fn load_place<T: Int>(&mut self, place: Place) -> T {
        match place {
            Place::Ram(at) => self.connections.ram.load(at),
            Place::Device(physical) => {
                let mut data = [0; 8];
                self.connections.bus.mmio_read(physical, &mut data[..T::BYTES as usize]);
                T::from_le(data)
            }
        }
    }

    pub(crate) fn store_place<T: Int>(&mut self, place: Place, value: T) {
        match place {
            Place::Ram(at) => {
                if self.connections.ram.store(at, value) {
                    self.code_written();
                }
            }
            Place::Device(physical) => {
                let data = value.zext().to_le_bytes();
                self.connections.bus.mmio_write(physical, &data[..T::BYTES as usize]);
            }
        }
    }

    /// Reads a system structure (descriptor table, TSS) at a linear address, with the supervisor's rights
    /// whatever the CPL.
    #[inline]
    pub(crate) fn read_system<T: Int>(&mut self, linear: u64) -> Step<T> {
        // What the buffer knows in a supervisor's view is canonical.
        if !self.mmu.user
            && self.long_active()
            && let Some(at) = self.mmu.find_read(linear, T::BYTES)
        {
            return Ok(self.connections.ram.load(at));
        }
        self.read_system_slow(linear)
    }

    #[cold]
    fn read_system_slow<T: Int>(&mut self, linear: u64) -> Step<T> {
        let mut bytes = [0; 8];
        let place = self.system_place(linear, Access::Read)?;
        if (linear & PAGE_MASK) + T::BYTES <= PAGE_MASK + 1 {
            return Ok(self.load_place(place));
        }
        for n in 0..T::BYTES {
            let place = self.system_place(linear.wrapping_add(n), Access::Read)?;
            bytes[n as usize] = self.load_place::<u8>(place);
        }
        Ok(T::from_le(bytes))
    }

    /// Writes a system structure; see [`read_system`](Self::read_system).
    pub(crate) fn write_system<T: Int>(&mut self, linear: u64, value: T) -> Step {
        let first = self.system_place(linear, Access::Write)?;
        if (linear & PAGE_MASK) + T::BYTES <= PAGE_MASK + 1 {
            self.store_place(first, value);
            return Ok(());
        }
        self.system_place(linear.wrapping_add(T::BYTES - 1), Access::Write)?;
        for (n, byte) in value.zext().to_le_bytes().into_iter().take(T::BYTES as usize).enumerate() {
            let place = self.system_place(linear.wrapping_add(n as u64), Access::Write)?;
            self.store_place(place, byte);
        }
        Ok(())
    }

    /// Where one byte of a system structure is.
    pub(crate) fn system_place(&mut self, linear: u64, access: Access) -> Step<Place> {
        let linear = if self.long_active() { linear } else { linear & 0xffff_ffff };
        if self.long_active() && !Self::is_canonical(linear) {
            return Err(self.gp(0));
        }
        // The processor's own accesses take no notice of `rflags.AC`: SMAP always counts.
        let smap = self.cr4 & cr4::SMAP != 0;
        if !self.mmu.user && self.mmu.smap == smap && self.mmu.view() != View::Watched {
            return self.place(segment::DS, linear, access);
        }
        let before = std::mem::replace(&mut self.mmu.smap, smap);
        let place = self.translate(linear, access, false, View::Watched);
        self.mmu.smap = before;
        place
    }

    /// The stack pointer, cut to the stack's size.
    #[inline(always)]
    pub(crate) fn stack_pointer(&self) -> u64 {
        self.registers[4] & self.stack_mask()
    }

    #[inline(always)]
    pub(crate) fn stack_mask(&self) -> u64 {
        u64::MAX >> (64 - u32::from(self.mode.stack_bits))
    }

    /// Sets the stack pointer; bits above the stack's size stay.
    #[inline(always)]
    pub(crate) fn set_stack_pointer(&mut self, value: u64) {
        let mask = self.stack_mask();
        let kept = if self.mode.stack_bits == 16 { self.registers[4] & !mask } else { 0 };
        self.registers[4] = kept | value & mask;
    }

    /// Pushes a value of the operand's size.
    #[inline(always)]
    pub(crate) fn push<T: Int>(&mut self, value: T) -> Step {
        let pointer = self.stack_pointer().wrapping_sub(T::BYTES) & self.stack_mask();
        self.write(segment::SS, pointer, value)?;
        self.set_stack_pointer(pointer);
        Ok(())
    }

    /// Pops a value of the operand's size.
    #[inline(always)]
    pub(crate) fn pop<T: Int>(&mut self) -> Step<T> {
        let pointer = self.stack_pointer();
        let value = self.read(segment::SS, pointer)?;
        self.set_stack_pointer(pointer.wrapping_add(T::BYTES));
        Ok(value)
    }
}

/// Whether `size` bytes at `offset` lie within a segment's limit, which counts from the other end where the
/// segment expands down.
pub(crate) fn holds(s: &Segment, offset: u64, size: u64) -> bool {
    let end = offset.wrapping_add(size - 1);
    if s.kind() & 0xc == 4 {
        let top = if s.db() { 0xffff_ffff } else { 0xffff };
        offset > u64::from(s.limit) && end <= top && end >= offset
    } else {
        end <= u64::from(s.limit) && end >= offset
    }
}

fn advance(place: Place, by: u64) -> Place {
    match place {
        Place::Ram(at) => Place::Ram(at + by as usize),
        Place::Device(physical) => Place::Device(physical + by),
    }
}

/// For handlers that end their block: interrupts, modes and code are looked at afresh.
pub(crate) const LEAVE: Step = Err(Stop::Leave);
