//! The tables that are plain data.

use acpi_tables::Aml;
use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;

use super::{Machine, OEM_ID, OEM_REVISION, OEM_TABLE_ID};

/// `IAPC_BOOT_ARCH` (table 5.11).
mod boot_arch {
    pub(super) const LEGACY_DEVICES: u16 = 1 << 0;
    pub(super) const HAS_8042: u16 = 1 << 1;
    pub(super) const NO_VGA: u16 = 1 << 2;
}

/// Fixed registers (section 5.2.9). `SMI_CMD` stays 0: the machine is always in ACPI mode.
pub(super) fn fadt(machine: &Machine, facs: u32, dsdt: u32) -> FADT {
    let power = &machine.power;
    let port = |bits: u8, size, port: u16| GAS::new(AddressSpace::SystemIo, bits, 0, size, u64::from(port));
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION)
        .preferred_pm_profile(PmProfile::Desktop)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // There is no sleep button, and the RTC's alarm wakes nothing.
        .flag(Flags::SlpButton)
        .flag(Flags::FixRtc)
        .flag(Flags::TmrValExt)
        .flag(Flags::ResetRegSup);
    fadt.firmware_ctrl = facs.into();
    fadt.dsdt = dsdt.into();
    fadt.x_dsdt = u64::from(dsdt).into();
    fadt.sci_int = u16::from(power.sci).into();
    fadt.pm1a_evt_blk = u32::from(power.event).into();
    fadt.pm1a_cnt_blk = u32::from(power.control).into();
    fadt.pm_tmr_blk = u32::from(power.timer).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1_cnt_len = 2;
    fadt.pm_tmr_len = 4;
    fadt.x_pm1a_evt_blk = port(32, AccessSize::WordAccess, power.event);
    fadt.x_pm1a_cnt_blk = port(16, AccessSize::WordAccess, power.control);
    fadt.x_pm_tmr_blk = port(32, AccessSize::DwordAccess, power.timer);
    // No C2 and no C3 state: latencies above the limits of section 5.2.9.
    fadt.p_lvl2_lat = 101.into();
    fadt.p_lvl3_lat = 1001.into();
    fadt.century = power.century;
    let keyboard = if machine.keyboard { boot_arch::HAS_8042 } else { 0 };
    fadt.iapc_boot_arch = (boot_arch::LEGACY_DEVICES | boot_arch::NO_VGA | keyboard).into();
    let (reset_port, reset_value) = power.reset;
    fadt.reset_reg = port(8, AccessSize::ByteAccess, reset_port);
    fadt.reset_value = reset_value;
    fadt.finalize()
}

/// Processors and interrupt controllers (section 5.2.12).
pub(super) fn madt(machine: &Machine) -> Sdt {
    const HEADER: u32 = 44;
    const DUAL_8259: u32 = 1;
    let mut madt = Sdt::new(*b"APIC", HEADER, 4, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    madt.write_u32(36, machine.local_apic);
    madt.write_u32(40, DUAL_8259);
    for id in 0..machine.cpus {
        append(&mut madt, &ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    append(&mut madt, &IoApic::new(machine.io_apic.id, machine.io_apic.address, 0));
    if machine.io_apic.timer_pin != 0 {
        madt.append_slice(&source_override(0, machine.io_apic.timer_pin, CONFORMS));
    }
    madt.append_slice(&source_override(machine.power.sci, machine.power.sci, LEVEL_HIGH));
    madt.append_slice(&LOCAL_NMI);
    madt.update_checksum();
    madt
}

fn append(table: &mut Sdt, entry: &dyn Aml) {
    table.append_slice(&super::bytes(entry));
}

/// As ISA has it: edge-triggered, active high.
const CONFORMS: u16 = 0;
/// Level-triggered, active high (table 5.26).
const LEVEL_HIGH: u16 = 0b1101;

/// An ISA interrupt that is not what its number says (section 5.2.12.5).
fn source_override(irq: u8, input: u8, flags: u16) -> [u8; 10] {
    let [low, high] = flags.to_le_bytes();
    [2, 10, 0, irq, input, 0, 0, 0, low, high]
}

/// LINT1 of all processors is the non-maskable interrupt (section 5.2.12.7).
const LOCAL_NMI: [u8; 6] = [4, 6, 0xff, 0, 0, 1];

/// PCI configuration space in memory.
pub(super) fn mcfg(machine: &Machine) -> MCFG {
    let mut mcfg = MCFG::new(OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    mcfg.add_ecam(u64::from(machine.pci.configuration), 0, 0, machine.pci.last_bus);
    mcfg
}
