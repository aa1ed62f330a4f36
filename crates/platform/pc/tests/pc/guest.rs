//! What the guests of these tests have in common.

use std::io::{self, Write};
use std::ops::{Deref, DerefMut};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use iced_x86::BlockEncoderOptions;
use iced_x86::code_asm::*;
use posada_boot::{Kernel, Source};
use posada_pc::{Outcome, Pc, PcBuilder, Port};

/// Where guests are loaded and where their code begins.
const BASE: u32 = 0x10_0000;
const CODE: u32 = BASE + 32;
/// Where, in the image, the interrupt table lies, and before it what its register is loaded with.
const IDT: u32 = BASE + 0x4000;
const IDTR: u32 = IDT - 8;
const GATES: usize = 256;
/// Where guests keep their stack and their own variables.
const STACK: u32 = 0x30_0000;
pub(crate) const DATA: u32 = 0x21_0000;
/// The selector of flat 32-bit code that multiboot guests start with here.
const CODE_SELECTOR: u64 = 0x10;

/// A guest that does not end by itself is stopped after this long, and its test fails.
const PATIENCE: Duration = Duration::from_mins(1);

/// A guest under construction: 32-bit code, and its interrupt handlers.
pub(crate) struct Guest {
    assembler: CodeAssembler,
    gates: Vec<(u8, CodeLabel)>,
}

impl Deref for Guest {
    type Target = CodeAssembler;

    fn deref(&self) -> &CodeAssembler {
        &self.assembler
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut CodeAssembler {
        &mut self.assembler
    }
}

/// Assembles a guest. It starts in flat protected mode with a stack and interrupts off.
pub(crate) fn assemble(program: impl FnOnce(&mut Guest) -> Result<(), IcedError>) -> Kernel {
    let mut guest = Guest { assembler: CodeAssembler::new(32).unwrap(), gates: Vec::new() };
    guest.mov(esp, STACK).unwrap();
    guest.lidt(ptr(IDTR)).unwrap();
    program(&mut guest).unwrap();
    let options = BlockEncoderOptions::RETURN_NEW_INSTRUCTION_OFFSETS;
    let code = guest.assembler.assemble_options(u64::from(CODE), options).unwrap();
    let magic = 0x1bad_b002u32;
    let flags = 1 << 16;
    let header = [magic, flags, 0u32.wrapping_sub(magic + flags), BASE, BASE, 0, 0, CODE];
    let mut image: Vec<u8> = header.iter().flat_map(|word| word.to_le_bytes()).collect();
    image.extend(&code.inner.code_buffer);
    assert!(image.len() <= (IDTR - BASE) as usize, "the guest is too large");

    image.resize((IDTR - BASE) as usize, 0);
    image.extend((GATES as u16 * 8 - 1).to_le_bytes());
    image.extend(IDT.to_le_bytes());
    image.resize((IDT - BASE) as usize, 0);
    let mut table = [0u64; GATES];
    for (vector, handler) in &guest.gates {
        let handler = code.label_ip(handler).unwrap();
        // A present interrupt gate (Intel SDM volume 3, section 6.11).
        table[usize::from(*vector)] =
            handler & 0xffff | CODE_SELECTOR << 16 | 0x8e00 << 32 | handler >> 16 << 48;
    }
    image.extend(table.iter().flat_map(|gate| gate.to_le_bytes()));
    Kernel::new(Source::bytes(image))
}

/// A machine for a guest: 4 MiB and the test port.
pub(crate) fn machine(program: impl FnOnce(&mut Guest) -> Result<(), IcedError>) -> PcBuilder {
    PcBuilder::new(assemble(program)).memory(4 << 20).debug_exit(true)
}

/// Runs a machine to its end.
pub(crate) fn run(builder: PcBuilder) -> Outcome {
    run_built(&mut builder.build().unwrap())
}

pub(crate) fn run_built(pc: &mut Pc) -> Outcome {
    let handle = pc.handle();
    let (done, watch) = std::sync::mpsc::channel::<()>();
    let watchdog = std::thread::spawn(move || {
        if watch.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Timeout) {
            for state in handle.states().unwrap_or_default() {
                eprintln!("{state}");
            }
            handle.stop();
        }
    });
    let outcome = pc.run().unwrap();
    drop(done);
    watchdog.join().unwrap();
    outcome
}

/// Everything that a guest writes to a serial port.
#[derive(Clone, Default)]
pub(crate) struct Screen(Arc<Mutex<Vec<u8>>>);

impl Screen {
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
    }
}

impl Write for Screen {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Guest {
    /// `out` of a constant byte to a constant port.
    pub(crate) fn out_byte(&mut self, port: u16, value: u8) -> Result<(), IcedError> {
        self.mov(dx, u32::from(port))?;
        self.mov(al, u32::from(value))?;
        self.out(dx, al)
    }

    /// `in al` from a constant port.
    pub(crate) fn in_byte(&mut self, port: u16) -> Result<(), IcedError> {
        self.mov(dx, u32::from(port))?;
        self.in_(al, dx)
    }

    /// Ends the run with exit status `(value << 1) | 1`.
    pub(crate) fn exit(&mut self, value: u8) -> Result<(), IcedError> {
        self.mov(al, u32::from(value))?;
        self.exit_with_al()
    }

    /// Ends the run with exit status `(al << 1) | 1`.
    pub(crate) fn exit_with_al(&mut self) -> Result<(), IcedError> {
        self.out(0xf4, al)?;
        self.forever()
    }

    /// Does nothing for ever.
    pub(crate) fn forever(&mut self) -> Result<(), IcedError> {
        let mut here = self.create_label();
        self.set_label(&mut here)?;
        self.jmp(here)
    }

    /// What follows handles `vector`.
    pub(crate) fn handler(&mut self, vector: u8) -> Result<(), IcedError> {
        let mut here = self.create_label();
        self.set_label(&mut here)?;
        self.gates.push((vector, here));
        Ok(())
    }

    /// Initializes both PICs for vectors from 0x20 on and sets their masks.
    pub(crate) fn set_up_pic(&mut self, master_mask: u8, slave_mask: u8) -> Result<(), IcedError> {
        for (port, words) in
            [(0x20, [0x11, 0x20, 0x04, 0x01, master_mask]), (0xa0, [0x11, 0x28, 0x02, 0x01, slave_mask])]
        {
            self.out_byte(port, words[0])?;
            for word in &words[1..] {
                self.out_byte(port + 1, *word)?;
            }
        }
        Ok(())
    }

    /// Programs the timer for about this many interrupts a second.
    pub(crate) fn set_up_timer(&mut self, hertz: u32) -> Result<(), IcedError> {
        let [low, high, ..] = (1_193_182 / hertz).to_le_bytes();
        self.out_byte(0x43, 0x34)?;
        self.out_byte(0x40, low)?;
        self.out_byte(0x40, high)
    }

    /// A store of a constant to a constant address.
    pub(crate) fn store(&mut self, address: u32, value: u32) -> Result<(), IcedError> {
        self.mov(dword_ptr(address), value)
    }
}

/// The port that a test listens to.
pub(crate) const CONSOLE: Port = Port::Com1;
