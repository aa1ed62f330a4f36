//! The devices that cannot be found by looking, as AML (chapters 6, 19 and 20).

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Memory32Fixed, Name, Package, PackageBuilder,
    Path, ResourceTemplate, Scope, ZERO,
};
use acpi_tables::sdt::Sdt;
use acpi_tables::{Aml, AmlSink};

use super::{Machine, OEM_ID, OEM_REVISION, OEM_TABLE_ID, bytes};

/// The differentiated system description table.
pub(super) fn dsdt(machine: &Machine) -> Sdt {
    // Revision 2 and above: integers have 64 bits.
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM_ID, OEM_TABLE_ID, OEM_REVISION);
    let mut add = |object: &dyn Aml| dsdt.append_slice(&bytes(object));
    let off = machine.power.off;
    add(&Name::new("_S5_".into(), &Package::new(vec![&off, &off, &ZERO, &ZERO])));

    let mut devices = vec![pci_root(machine), motherboard(machine), clock()];
    devices.extend((0..).zip(&machine.serial).map(|(index, serial)| {
        let registers = IO::new(serial.port, serial.port, 1, 8);
        isa_device(&format!("COM{}", index + 1), "PNP0501", index + 1, &[registers], serial.irq)
    }));
    if machine.keyboard {
        let ports = [IO::new(0x60, 0x60, 1, 1), IO::new(0x64, 0x64, 1, 1)];
        devices.push(isa_device("KBD_", "PNP0303", 0, &ports, 1));
    }
    if machine.mouse {
        devices.push(isa_device("MOU_", "PNP0F13", 0, &[], 12));
    }
    devices.extend((0..machine.cpus).map(processor));
    let devices: Vec<&dyn Aml> = devices.iter().map(|device| device as &dyn Aml).collect();
    add(&Scope::new("_SB_".into(), devices));
    dsdt
}

/// AML that has been put together already.
struct Raw(Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// An edge-triggered, exclusive ISA interrupt: the two-byte IRQ descriptor (section 6.4.2.1).
struct Irq(u8);

impl Aml for Irq {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.byte(0x22);
        sink.word(1 << (self.0 & 15));
    }
}

fn device(name: &str, children: &[&dyn Aml]) -> Raw {
    Raw(bytes(&Device::new(name.into(), children.to_vec())))
}

fn isa_device(name: &str, id: &str, unique: u8, ports: &[IO], irq: u8) -> Raw {
    let irq = Irq(irq);
    let mut resources: Vec<&dyn Aml> = ports.iter().map(|ports| ports as &dyn Aml).collect();
    resources.push(&irq);
    device(
        name,
        &[
            &Name::new("_HID".into(), &EISAName::new(id)),
            &Name::new("_UID".into(), &unique),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
        ],
    )
}

fn clock() -> Raw {
    isa_device("RTC_", "PNP0B00", 0, &[IO::new(0x70, 0x70, 1, 2)], 8)
}

/// The PCI Express root (section 6.2.2 and PCI Firmware Specification 3.3, section 4).
fn pci_root(machine: &Machine) -> Raw {
    let pci = &machine.pci;
    let buses = AddressSpace::new_bus_number(0, u16::from(pci.last_bus));
    let configuration_ports = IO::new(0xcf8, 0xcf8, 1, 8);
    let ports: Vec<_> =
        pci.ports.iter().map(|ports| AddressSpace::new_io(*ports.start(), *ports.end(), None)).collect();
    let memory = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        *pci.memory.start(),
        *pci.memory.end(),
        None,
    );
    let memory_64 = pci.memory_64.as_ref().map(|memory| {
        AddressSpace::new_memory(AddressSpaceCacheable::Cacheable, true, *memory.start(), *memory.end(), None)
    });
    let mut resources: Vec<&dyn Aml> = vec![&buses, &configuration_ports];
    resources.extend(ports.iter().map(|ports| ports as &dyn Aml));
    resources.push(&memory);
    if let Some(memory) = &memory_64 {
        resources.push(memory);
    }
    device(
        "PCI0",
        &[
            &Name::new("_HID".into(), &EISAName::new("PNP0A08")),
            &Name::new("_CID".into(), &EISAName::new("PNP0A03")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_SEG".into(), &ZERO),
            &Name::new("_BBN".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(resources)),
            &Name::new("_PRT".into(), &interrupt_routing(machine)),
        ],
    )
}

/// `_PRT` (section 6.2.13): device and pin to an input of the I/O APIC.
fn interrupt_routing(machine: &Machine) -> PackageBuilder {
    let mut table = PackageBuilder::new();
    for route in &machine.pci.interrupts {
        let any_function = u32::from(route.device) << 16 | 0xffff;
        table.add_element(&Package::new(vec![&any_function, &route.pin, &ZERO, &route.input]));
    }
    table
}

/// What no device claims and yet must not be given to any: configuration space and the power registers.
fn motherboard(machine: &Machine) -> Raw {
    let power = &machine.power;
    let size = (u32::from(machine.pci.last_bus) + 1) << 20;
    let configuration = Memory32Fixed::new(true, machine.pci.configuration, size);
    let event = IO::new(power.event, power.event, 1, 4);
    let control = IO::new(power.control, power.control, 1, 2);
    let timer = IO::new(power.timer, power.timer, 1, 4);
    device(
        "MB0_",
        &[
            &Name::new("_HID".into(), &EISAName::new("PNP0C02")),
            &Name::new("_UID".into(), &ZERO),
            &Name::new("_CRS".into(), &ResourceTemplate::new(vec![&configuration, &event, &control, &timer])),
        ],
    )
}

fn processor(id: u8) -> Raw {
    device(
        &format!("C{id:03}"),
        &[&Name::new("_HID".into(), &"ACPI0007"), &Name::new(Path::new("_UID"), &id)],
    )
}
