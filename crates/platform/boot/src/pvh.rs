//! The PVH start-up of ELF kernels (Xen, docs/misc/pvh.pandoc and public/arch-x86/hvm/start_info.h): flat
//! 32-bit protected mode without paging, `ebx` pointing to a `hvm_start_info`.

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use posada_memory::vm_memory::ByteValued;
use posada_memory::{Gpa, PAGE_SIZE};
use posada_vcpu::x86::{State, Table, gpr};

use crate::elf::Elf;
use crate::placement::Placement;
use crate::{Error, Kernel, handover};

const MAGIC: u32 = 0x336e_c578;
/// The version with a memory map.
const VERSION: u32 = 1;
/// The protocol has no limit of its own; this keeps the line in low memory.
const COMMAND_LINE: usize = 0xffff;

pub(crate) fn load(
    elf: &Elf,
    entry: u64,
    kernel: &Kernel,
    placement: &mut Placement<'_>,
    rsdp: Option<Gpa>,
) -> Result<State, Error> {
    let entry = elf.checked_pvh_entry(entry)?;
    elf.load(&kernel.image, placement)?;
    let mut modules = Vec::with_capacity(kernel.modules.len());
    for module in kernel.modules.iter().filter(|module| !module.source.is_empty()) {
        let size = module.source.len();
        let at = placement.highest("the initrd", size, PAGE_SIZE as u64, 1 << 32)?;
        placement.copy("the initrd", &module.source, 0, size, at)?;
        let name = handover::command_line(placement, &module.name, COMMAND_LINE)?;
        modules.push(hvm_modlist_entry { paddr: at.0, size, cmdline_paddr: name.0, reserved: 0 });
    }
    let line = handover::command_line(placement, &kernel.append, COMMAND_LINE)?;
    let map = placement.entries(|addr, size, kind| hvm_memmap_table_entry {
        addr,
        size,
        type_: kind as u32,
        reserved: 0,
    });
    let map_bytes: Vec<u8> = map.iter().flat_map(|entry| entry.as_slice().to_vec()).collect();
    let module_bytes: Vec<u8> = modules.iter().flat_map(|entry| entry.as_slice().to_vec()).collect();
    let map_at = placement.put("the PVH memory map", &map_bytes, 16)?;
    let modules_at = placement.put("the PVH module list", &module_bytes, 16)?;
    let info = hvm_start_info {
        magic: MAGIC,
        version: VERSION,
        flags: 0,
        nr_modules: modules.len() as u32,
        modlist_paddr: if modules.is_empty() { 0 } else { modules_at.0 },
        cmdline_paddr: line.0,
        rsdp_paddr: rsdp.map_or(0, |at| at.0),
        memmap_paddr: map_at.0,
        memmap_entries: map.len() as u32,
        reserved: 0,
    };
    let info = placement.put("the PVH start info", info.as_slice(), 16)?;
    let mut state = State::protected_mode(entry);
    state.gdtr = handover::gdt(placement, false)?;
    state.idtr = Table::default();
    state.gpr[gpr::RBX] = info.0;
    Ok(state)
}
