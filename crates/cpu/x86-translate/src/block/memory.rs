//! Memory operands: addresses, and the looks into the TLB.

use iced_x86::{Instruction, Register};

use super::{Access, Address, ForInterpreter, PAGE, Writer};
use crate::asm::{Condition, Op, Place, Sum};
use crate::context::register::{R11, RAX, RSP};
use crate::context::{Context, DISTANCES, StackPage, offset};
use crate::groups::{ALIGNMENT, Member};
use crate::stub::Kind;
use crate::{registers, tlb};

impl Writer<'_> {
    /// The guest's memory operand.
    pub(crate) fn memory_operand(&self, i: &Instruction) -> Result<Address, ForInterpreter> {
        let segment = match i.memory_segment() {
            Register::FS => Some(0),
            Register::GS => Some(1),
            _ => None,
        };
        let displacement = i.memory_displacement64();
        if i.is_ip_rel_memory_operand() {
            if i.memory_base() != Register::RIP {
                return Err(ForInterpreter);
            }
            let displacement =
                i32::try_from(displacement as i64 + i64::from(self.start)).map_err(|_| ForInterpreter)?;
            let address =
                Address { base: None, index: None, displacement, in_code: true, segment, wide: true };
            return Ok(address);
        }
        let (base, index) = (i.memory_base(), i.memory_index());
        let number = |register: Register| match register {
            Register::None => Ok(None),
            _ if register.is_gpr64() || register.is_gpr32() => Ok(registers::number(register)),
            _ => Err(ForInterpreter),
        };
        let sizes =
            [base, index].map(|register| if register == Register::None { 8 } else { register.size() });
        // An absolute 32-bit address, which is not sign-extended, is rare.
        let absolute = base == Register::None && index == Register::None;
        if absolute && i.memory_displ_size() != 8 {
            return Err(ForInterpreter);
        }
        let wide = sizes == [8, 8];
        let displacement = if wide {
            i32::try_from(displacement as i64).map_err(|_| ForInterpreter)?
        } else {
            displacement as i32
        };
        let shift = i.memory_index_scale().trailing_zeros() as u8;
        let index = number(index)?.map(|index| (index, shift));
        Ok(Address { base: number(base)?, index, displacement, in_code: false, segment, wide })
    }

    /// Computes an address into `rax`; changes `r11`, and no flags.
    pub(super) fn address(&mut self, address: &Address) {
        self.address_to(RAX, address.wide, address);
        if let Some(segment) = address.segment {
            self.asm.with_context(Op::Load, R11, offset::BASES + 8 * i32::from(segment));
            self.asm.lea(true, RAX, Sum { base: Some(RAX), index: Some((R11, 0)), displacement: 0 });
        }
    }

    /// Computes an address without its segment into a host register, 32 or 64 bits of it; changes `rax`, `r11`, and no
    /// flags.
    pub(super) fn address_to(&mut self, to: u8, wide: bool, address: &Address) {
        if address.in_code {
            self.asm.with_context(Op::Load, RAX, offset::CODE_BASE);
            self.asm.lea(wide, to, Sum { base: Some(RAX), index: None, displacement: address.displacement });
        } else {
            let mut place = |guest: u8, scratch: u8| {
                registers::host(guest).unwrap_or_else(|| {
                    self.asm.with_context(Op::Load, scratch, Context::slot_offset(guest));
                    scratch
                })
            };
            let base = address.base.map(|base| place(base, RAX));
            let index = address.index.map(|(index, shift)| (place(index, R11), shift));
            let sum = Sum { base, index, displacement: address.displacement };
            match (base, index) {
                (Some(base), None) if sum.displacement == 0 && wide => {
                    if base != to {
                        self.asm.mov(to, base);
                    }
                }
                _ => self.asm.lea(wide, to, sum),
            }
        }
    }

    /// Finds where an access goes in the host's memory; changes `rax` and `r11`. The flags may be lost.
    pub(crate) fn access(&mut self, access: Access) -> Place {
        let place = self.access_by_both(access);
        if place.index != Some(R11) {
            return place;
        }
        self.asm.lea(
            true,
            RAX,
            Sum { base: Some(RAX), index: Some((R11, 0)), displacement: place.displacement },
        );
        Place { index: None, displacement: 0 }
    }

    /// [`access`](Self::access), but the place may be one that is found by `r11`, too.
    pub(super) fn access_by_both(&mut self, access: Access) -> Place {
        if let Some(place) = self.access_in_group(&access) {
            return place;
        }
        self.settle_stack();
        self.flags.lose(&mut self.asm);
        self.poll_if_free();
        let retry = self.place_of(self.asm.here());
        if let Some(grain) = access.grain().filter(|_| self.low) {
            return self.access_aligned(access, grain, retry);
        }
        self.address(&access.address);
        let view = self.mode.view;
        self.look_up(&access, |_| Kind::Access { access, view, retry, unaligned: None });
        if let Some(base) = access.address.only_base() {
            // This way does not wait for what the check does to `rax`.
            self.load_delta();
            return Place { index: Some(base), displacement: access.address.displacement };
        }
        self.found_by_both(&access.address)
    }

    /// The same for an access that is likely to be at a multiple of `grain`, with RAM at low addresses. If it is not, but need not be,
    /// the jump to the stub comes to lead elsewhere.
    fn access_aligned(&mut self, access: Access, grain: u16, retry: u32) -> Place {
        let view = self.mode.view;
        let table = Context::tlb_offset(view) + if access.write { tlb::LOW_WRITE } else { tlb::LOW_READ };
        let (sum, place) = if let Some(base) = access.address.only_base() {
            let displacement = access.address.displacement;
            // The access does not wait for the sum.
            if displacement == 0 {
                self.asm.page_to_rax(base);
                self.asm.with_index(Op::Load, RAX, (RAX, tlb::SHIFT), table);
                self.asm.lea(true, R11, Sum { base: Some(RAX), index: Some((base, 0)), displacement: 0 });
            } else {
                self.asm.add_to(R11, base, displacement);
                self.asm.page_to_rax(R11);
                self.asm.with_index(Op::Load, RAX, (RAX, tlb::SHIFT), table);
                self.asm.with_register(Op::Add, true, R11, RAX);
            }
            (R11, Place { index: Some(base), displacement: access.address.displacement })
        } else {
            self.address(&access.address);
            self.asm.page_to_r11();
            self.asm.with_table(Op::Add, RAX, tlb::SHIFT, table);
            (RAX, Place { index: None, displacement: 0 })
        };
        let mask = tlb::low_mask(grain);
        match Context::constant_offset(mask) {
            Some(offset) => self.asm.test_context(sum, offset),
            None => self.asm.test_value(true, sum, mask),
        }
        let hole = self.asm.jump_if(Condition::NE);
        let unaligned = Some(self.place_of(self.asm.address(hole)));
        self.stub(hole, self.at as i32, Kind::Access { access, view, retry, unaligned });
        place
    }

    /// Where an address is in the host's memory, whose entry's number is in `r11`.
    fn found_by_both(&mut self, address: &Address) -> Place {
        self.asm.with_table(
            Op::Load,
            R11,
            tlb::SHIFT,
            Context::tlb_offset(self.mode.view) + tlb::distances(self.low),
        );
        if address.leaves_r11() {
            // That does not wait for what the check has done to `rax`.
            self.address(address);
        } else {
            self.asm.store_context(offset::TEMPORARY, R11);
            self.address(address);
            self.asm.with_context(Op::Load, R11, offset::TEMPORARY);
        }
        Place { index: Some(R11), displacement: 0 }
    }

    /// Looks for the page of the linear address in `rax` in the TLB; `rax` becomes the offset in the page, and `r11` the
    /// entry's number. The stub is for when it is not there, or the access goes beyond the page, or is not
    /// aligned; `kind` is told where the jump to it is.
    fn look_up(&mut self, access: &Access, kind: impl FnOnce(u32) -> Kind) {
        let tags = if access.write { tlb::WRITE } else { tlb::READ };
        self.asm.page_to_r11();
        self.asm.with_table(Op::Xor, RAX, tlb::SHIFT, Context::tlb_offset(self.mode.view) + tags);
        self.check(access, kind);
    }

    /// Leads to a stub unless `rax` is an offset in a page where there is room for the access.
    fn check(&mut self, access: &Access, kind: impl FnOnce(u32) -> Kind) {
        self.asm.with_value(Op::Cmp, true, RAX, PAGE - i32::from(access.size));
        let hole = self.asm.jump_if(Condition::ABOVE);
        let stub = self.new_stub(self.at as i32, kind(self.place_of(self.asm.address(hole))));
        self.asm.lead_to(hole, stub);
        if access.alignment > 1 {
            self.asm.test_value(false, RAX, i32::from(access.alignment) - 1);
            let hole = self.asm.jump_if(Condition::NE);
            self.asm.lead_to(hole, stub);
        }
    }

    /// Loads what leads from the guest's addresses to the host's in the page that a look-up has found.
    fn load_delta(&mut self) {
        let table = Context::tlb_offset(self.mode.view) + tlb::distances(self.low);
        self.asm.with_table(Op::Load, RAX, tlb::SHIFT, table);
    }

    /// An address of code, as stubs have it.
    pub(super) fn place_of(&self, address: usize) -> u32 {
        (address - self.memory) as u32
    }

    /// The group that an access belongs to.
    fn group_of(&self, access: &Access) -> Option<usize> {
        let Address { base: Some(base), index, displacement, in_code: false, segment: None, wide: true } =
            access.address
        else {
            return None;
        };
        let moved = if base == RSP { self.moved } else { 0 };
        let distance = displacement.checked_add(moved)?;
        let size = i32::from(access.size);
        let aligned = access.alignment > 1;
        if aligned && i32::from(access.alignment) != ALIGNMENT {
            return None;
        }
        let member = Member { base, index, distance, size, write: access.write, aligned };
        self.groups.iter().position(|group| group.has(self.item, &member))
    }

    /// [`access`](Self::access), if it belongs to a group.
    pub(super) fn access_in_group(&mut self, access: &Access) -> Option<Place> {
        let n = self.group_of(access)?;
        let group = self.groups[n];
        // For the others it is known where the lowest access leads.
        let index = registers::host(group.base).filter(|_| group.index.is_none());
        let mut place = Place { index, displacement: access.address.displacement };
        if index.is_none() {
            place.displacement = place.displacement.checked_sub(group.low)?;
        }
        let slot = match group.base {
            RSP => Context::stack_offset(self.mode.view) + StackPage::DELTA,
            _ => DISTANCES + 8 * n as i32,
        };
        if self.known & 1 << n != 0 {
            if self.in_rax.0 != n || !self.rax_is_known() {
                self.asm.with_context(Op::Load, RAX, slot);
            }
            if group.base == RSP {
                place.displacement = place.displacement.checked_add(self.put_off)?;
            }
            return Some(place);
        }
        self.settle_stack();
        let moved = if group.base == RSP { self.moved } else { 0 };
        let displacement = group.low.checked_sub(moved)?;
        let address = Address { index: group.index, ..Address::based(group.base, displacement) };
        let all = Access {
            address,
            size: (group.high - group.low) as u16,
            write: group.write,
            alignment: if group.aligned.is_some() { ALIGNMENT as u16 } else { 1 },
        };
        self.flags.lose(&mut self.asm);
        self.poll_if_free();
        let mode = self.mode;
        let retry = self.place_of(self.asm.here());
        self.address(&address);
        self.known |= 1 << n;
        let stores = access.write;
        let kind = |hole| Kind::Group { access: all, stores, mode, retry, hole };
        if group.base == RSP {
            let tag = if group.write { StackPage::WRITE } else { StackPage::READ };
            self.asm.with_context(Op::Xor, RAX, Context::stack_offset(mode.view) + tag);
            self.check(&all, kind);
            self.asm.with_context(Op::Load, RAX, slot);
            return Some(place);
        }
        self.look_up(&all, kind);
        if index.is_none() {
            // Where the lowest of them is, for what is then only a displacement away.
            let lowest = self.found_by_both(&address);
            self.asm.lea(
                true,
                RAX,
                Sum { base: Some(RAX), index: lowest.index.map(|r11| (r11, 0)), displacement: 0 },
            );
        } else {
            self.load_delta();
        }
        self.asm.store_context(slot, RAX);
        Some(place)
    }

    /// `rax` is still what an access has left there.
    pub(super) fn keep_rax(&mut self, access: &Access) {
        if let Some(n) = self.group_of(access) {
            self.in_rax = (n, self.asm.len());
        }
    }

    /// Whether `rax` has some group's distance.
    pub(super) fn rax_is_known(&self) -> bool {
        self.in_rax.1 == self.asm.len()
    }

    /// What has been written since `rax` was `known` has left it.
    pub(super) fn has_left_rax(&mut self, known: bool) {
        if known {
            self.in_rax.1 = self.asm.len();
        }
    }

    /// What has been found out about pages may hold no longer.
    pub(crate) fn forget_groups(&mut self) {
        self.known = 0;
    }
}
