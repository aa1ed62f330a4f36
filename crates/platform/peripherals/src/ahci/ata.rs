//! An ATA disk: commands of ATA8-ACS, and TRIM of ACS-2.

use std::sync::Arc;

use posada_storage::{Disk, SECTOR};

use super::command::{Command, Device, End, Fault, Transfer, error, status};
use super::fis::{Answer, TaskFile};
use super::identify::{self, Block, HEADS, MAX_MULTIPLE, MAX_RANGE_BLOCKS, SECTORS_A_TRACK, Settings};
use crate::u64_at;

/// How many bytes go through the buffer at once.
const PIECE: usize = 256 << 10;
/// Bit 6 of the device register: the address is a sector's number, not cylinder, head and sector.
const LBA: u8 = 1 << 6;
/// Bit 7 of the device register of queued writes: to stable storage.
const FUA: u8 = 1 << 7;

/// Command codes (ATA8-ACS §7, ACS-2 §7.5 for DATA SET MANAGEMENT).
mod code {
    pub(super) const DATA_SET_MANAGEMENT: u8 = 0x06;
    pub(super) const READ_SECTORS: u8 = 0x20;
    pub(super) const READ_SECTORS_EXT: u8 = 0x24;
    pub(super) const READ_DMA_EXT: u8 = 0x25;
    pub(super) const READ_MULTIPLE_EXT: u8 = 0x29;
    pub(super) const READ_LOG_EXT: u8 = 0x2f;
    pub(super) const WRITE_SECTORS: u8 = 0x30;
    pub(super) const WRITE_SECTORS_EXT: u8 = 0x34;
    pub(super) const WRITE_DMA_EXT: u8 = 0x35;
    pub(super) const WRITE_MULTIPLE_EXT: u8 = 0x39;
    pub(super) const WRITE_DMA_FUA_EXT: u8 = 0x3d;
    pub(super) const READ_VERIFY: u8 = 0x40;
    pub(super) const READ_VERIFY_EXT: u8 = 0x42;
    pub(super) const READ_FPDMA_QUEUED: u8 = 0x60;
    pub(super) const WRITE_FPDMA_QUEUED: u8 = 0x61;
    pub(super) const EXECUTE_DIAGNOSTIC: u8 = 0x90;
    pub(super) const INITIALIZE_PARAMETERS: u8 = 0x91;
    pub(super) const READ_MULTIPLE: u8 = 0xc4;
    pub(super) const WRITE_MULTIPLE: u8 = 0xc5;
    pub(super) const SET_MULTIPLE_MODE: u8 = 0xc6;
    pub(super) const READ_DMA: u8 = 0xc8;
    pub(super) const WRITE_DMA: u8 = 0xca;
    pub(super) const STANDBY_IMMEDIATE: u8 = 0xe0;
    pub(super) const IDLE_IMMEDIATE: u8 = 0xe1;
    pub(super) const STANDBY: u8 = 0xe2;
    pub(super) const IDLE: u8 = 0xe3;
    pub(super) const CHECK_POWER_MODE: u8 = 0xe5;
    pub(super) const SLEEP: u8 = 0xe6;
    pub(super) const FLUSH_CACHE: u8 = 0xe7;
    pub(super) const FLUSH_CACHE_EXT: u8 = 0xea;
    pub(super) const IDENTIFY_DEVICE: u8 = 0xec;
    pub(super) const SET_FEATURES: u8 = 0xef;
}

/// Subcommands of SET FEATURES (ATA8-ACS §7.47).
mod feature {
    pub(super) const WRITE_CACHE_ON: u8 = 0x02;
    pub(super) const TRANSFER_MODE: u8 = 0x03;
    pub(super) const LOOK_AHEAD_OFF: u8 = 0x55;
    pub(super) const WRITE_CACHE_OFF: u8 = 0x82;
    pub(super) const LOOK_AHEAD_ON: u8 = 0xaa;
}

/// Logs of READ LOG EXT: which logs there are, and what the last queued command that failed was (ATA8-ACS §A.2, §A.11).
const LOG_DIRECTORY: u8 = 0x00;
const LOG_QUEUED_ERROR: u8 = 0x10;

/// Why a command failed.
enum Failure {
    /// The drive says so: the error register.
    Device(u8),
    /// There is nobody to say so to.
    Host(Fault),
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Host(fault)
    }
}

const ABORTED: Failure = Failure::Device(error::ABRT);

/// Sectors that a command is about.
#[derive(Clone, Copy, Debug)]
struct Range {
    sector: u64,
    sectors: u64,
}

/// The disk.
#[derive(Debug)]
pub(super) struct AtaDisk {
    disk: Arc<dyn Disk>,
    serial: String,
    settings: Settings,
    /// The last queued command that failed, as its log page.
    queued_error: Block,
    buffer: Vec<u8>,
    /// How many requests the host's storage has failed.
    failures: u64,
}

const SETTINGS: Settings = Settings { write_cache: true, multiple: 0 };

impl AtaDisk {
    pub(super) fn new(disk: Arc<dyn Disk>, serial: &str) -> Self {
        let serial = serial.to_owned();
        Self { disk, serial, settings: SETTINGS, queued_error: [0; 512], buffer: Vec::new(), failures: 0 }
    }

    fn sectors(&self) -> u64 {
        self.disk.size() / SECTOR
    }

    /// What the host's storage says. The guest is told that its command failed; why, the host's user.
    fn note(&mut self, result: posada_storage::Result<()>, register: u8) -> Result<(), Failure> {
        result.map_err(|error| {
            self.failures += 1;
            // Not as many messages as a guest may try again.
            if self.failures.is_power_of_two() {
                tracing::warn!("a disk command of the guest failed ({} so far): {error}", self.failures);
            }
            Failure::Device(register)
        })
    }

    /// The range of a command with 28-bit or 48-bit addresses; all of it is on the disk.
    fn range(&self, task: &TaskFile, is_ext: bool) -> Result<Range, Failure> {
        let or_most = |count: u16, most| if count == 0 { most } else { u64::from(count) };
        let (sector, sectors) = if is_ext {
            (task.lba, or_most(task.count, 1 << 16))
        } else {
            (short_address(task)?, or_most(task.count & 0xff, 1 << 8))
        };
        self.on_disk(sector, sectors)
    }

    fn on_disk(&self, sector: u64, sectors: u64) -> Result<Range, Failure> {
        match sector.checked_add(sectors) {
            Some(end) if end <= self.sectors() => Ok(Range { sector, sectors }),
            _ => Err(Failure::Device(error::IDNF)),
        }
    }

    fn read(&mut self, range: Range, data: &mut Transfer<'_>) -> Result<(), Failure> {
        let (mut offset, mut left) = (range.sector * SECTOR, range.sectors * SECTOR);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut result = Ok(());
        while left != 0 && result.is_ok() {
            let len = left.min(PIECE as u64);
            buffer.resize(len as usize, 0);
            let read = self.disk.read(offset, &mut buffer);
            result = self.note(read, error::UNC).and_then(|()| Ok(data.write(&buffer)?));
            (offset, left) = (offset + len, left - len);
        }
        self.buffer = buffer;
        result
    }

    fn write(&mut self, range: Range, data: &mut Transfer<'_>, to_storage: bool) -> Result<(), Failure> {
        if self.disk.is_read_only() {
            return Err(ABORTED);
        }
        let (mut offset, mut left) = (range.sector * SECTOR, range.sectors * SECTOR);
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut result = Ok(());
        while left != 0 && result.is_ok() {
            let len = left.min(PIECE as u64);
            buffer.resize(len as usize, 0);
            result = data.read(&mut buffer).map_err(Failure::Host).and_then(|()| {
                let written = self.disk.write(offset, &buffer);
                self.note(written, error::ABRT)
            });
            (offset, left) = (offset + len, left - len);
        }
        self.buffer = buffer;
        result?;
        if to_storage || !self.settings.write_cache { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<(), Failure> {
        let flushed = self.disk.flush();
        self.note(flushed, error::ABRT)
    }

    /// DATA SET MANAGEMENT: TRIM is all that there is. Blocks of 64 ranges, of a 48-bit sector and a count each.
    fn trim(&mut self, task: &TaskFile, data: &mut Transfer<'_>) -> Result<(), Failure> {
        const TRIM: u16 = 1;
        if task.feature != TRIM || !(1..=MAX_RANGE_BLOCKS).contains(&task.count) || self.disk.is_read_only() {
            return Err(ABORTED);
        }
        for _ in 0..task.count {
            let mut block: Block = [0; 512];
            data.read(&mut block)?;
            for entry in (0..block.len()).step_by(8).map(|at| u64_at(&block, at)) {
                let (sector, sectors) = (entry & 0xffff_ffff_ffff, entry >> 48);
                if sectors != 0 {
                    let range = self.on_disk(sector, sectors)?;
                    let discarded = self.disk.discard(range.sector * SECTOR, range.sectors * SECTOR);
                    self.note(discarded, error::ABRT)?;
                }
            }
        }
        Ok(())
    }

    fn set_features(&mut self, task: &TaskFile) -> Result<(), Failure> {
        match task.feature as u8 {
            feature::WRITE_CACHE_ON => self.settings.write_cache = true,
            feature::WRITE_CACHE_OFF => {
                self.flush()?;
                self.settings.write_cache = false;
            }
            feature::TRANSFER_MODE | feature::LOOK_AHEAD_OFF | feature::LOOK_AHEAD_ON => {}
            _ => return Err(ABORTED),
        }
        Ok(())
    }

    fn set_multiple(&mut self, task: &TaskFile) -> Result<(), Failure> {
        match task.count as u8 {
            count @ 0..=MAX_MULTIPLE if count == 0 || count.is_power_of_two() => {
                self.settings.multiple = count;
                Ok(())
            }
            _ => Err(ABORTED),
        }
    }

    /// Blocks of a log; one of them is ever asked for.
    fn log(&self, task: &TaskFile) -> Result<Block, Failure> {
        let (log, page) = (task.lba as u8, task.lba >> 8 & 0xff | task.lba >> 24 & 0xff00);
        let mut block: Block = [0; 512];
        match (log, page, task.count) {
            (LOG_DIRECTORY, 0, 1) => {
                // The version, then how many pages each log has.
                block[0] = 1;
                block[2 * usize::from(LOG_QUEUED_ERROR)] = 1;
                Ok(block)
            }
            (LOG_QUEUED_ERROR, 0, 1) => Ok(self.queued_error),
            _ => Err(ABORTED),
        }
    }

    /// Notes a queued command that failed, for its log (ATA8-ACS §A.11).
    fn note_queued(&mut self, task: &TaskFile, answer: Answer) {
        let fis = answer.to_register();
        let mut page: Block = [0; 512];
        page[0] = tag(task);
        page[2..14].copy_from_slice(&fis[2..14]);
        let sum = page.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        page[511] = sum.wrapping_neg();
        self.queued_error = page;
    }

    /// READ and WRITE FPDMA QUEUED: the count is in the features, the tag in the count.
    fn queued(&mut self, task: &TaskFile, data: &mut Transfer<'_>) -> Result<(), Failure> {
        let range = self.range(&TaskFile { count: task.feature, ..*task }, true)?;
        match task.command {
            code::READ_FPDMA_QUEUED => self.read(range, data),
            _ => self.write(range, data, task.device & FUA != 0),
        }
    }

    /// Every command without data, or with data by DMA. The count of the answer.
    fn plain(&mut self, task: &TaskFile, data: &mut Transfer<'_>) -> Result<u16, Failure> {
        match task.command {
            code::READ_DMA | code::READ_DMA_EXT => {
                let range = self.range(task, task.command == code::READ_DMA_EXT)?;
                self.read(range, data)?;
            }
            code::WRITE_DMA | code::WRITE_SECTORS | code::WRITE_MULTIPLE => {
                let range = self.range(task, false)?;
                self.write(range, data, false)?;
            }
            code::WRITE_DMA_EXT
            | code::WRITE_SECTORS_EXT
            | code::WRITE_MULTIPLE_EXT
            | code::WRITE_DMA_FUA_EXT => {
                let range = self.range(task, true)?;
                self.write(range, data, task.command == code::WRITE_DMA_FUA_EXT)?;
            }
            code::READ_VERIFY | code::READ_VERIFY_EXT => {
                self.range(task, task.command == code::READ_VERIFY_EXT)?;
            }
            code::DATA_SET_MANAGEMENT => self.trim(task, data)?,
            code::SET_FEATURES => self.set_features(task)?,
            code::SET_MULTIPLE_MODE => self.set_multiple(task)?,
            code::FLUSH_CACHE
            | code::FLUSH_CACHE_EXT
            | code::STANDBY_IMMEDIATE
            | code::STANDBY
            | code::SLEEP => self.flush()?,
            code::IDLE | code::IDLE_IMMEDIATE | code::INITIALIZE_PARAMETERS => {}
            // Active, or idle.
            code::CHECK_POWER_MODE => return Ok(0xff),
            _ => return Err(ABORTED),
        }
        Ok(0)
    }

    /// Commands that give data to the host by PIO; how many bytes were in the last block.
    fn pio_in(&mut self, task: &TaskFile, data: &mut Transfer<'_>) -> Result<u16, Failure> {
        match task.command {
            code::IDENTIFY_DEVICE => {
                let trims = !self.disk.is_read_only();
                let (sectors, limits) = (self.sectors(), self.disk.limits());
                data.write(&identify::disk(sectors, limits, &self.serial, self.settings, trims))?;
            }
            code::READ_LOG_EXT => data.write(&self.log(task)?)?,
            _ => {
                let is_ext = matches!(task.command, code::READ_SECTORS_EXT | code::READ_MULTIPLE_EXT);
                let range = self.range(task, is_ext)?;
                self.read(range, data)?;
            }
        }
        Ok(SECTOR as u16)
    }
}

/// An address of 28 bits, or of cylinder, head and sector.
fn short_address(task: &TaskFile) -> Result<u64, Failure> {
    let high = u64::from(task.device & 0xf);
    if task.device & LBA != 0 {
        return Ok(task.lba & 0xff_ffff | high << 24);
    }
    let (sector, cylinder) = (task.lba & 0xff, task.lba >> 8 & 0xffff);
    if !(1..=SECTORS_A_TRACK).contains(&sector) || high >= HEADS {
        return Err(Failure::Device(error::IDNF));
    }
    Ok((cylinder * HEADS + high) * SECTORS_A_TRACK + sector - 1)
}

/// The tag of a queued command.
fn tag(task: &TaskFile) -> u8 {
    (task.count >> 3) as u8 & 0x1f
}

/// The answer to a command that came out thus.
fn answer(task: &TaskFile, result: &Result<u16, Failure>) -> Result<Answer, Fault> {
    let (status, error, count) = match result {
        Ok(count) => (status::GOOD, 0, *count),
        Err(Failure::Device(error)) => (status::GOOD | status::ERR, *error, task.count),
        Err(Failure::Host(fault)) => return Err(*fault),
    };
    Ok(Answer { status, error, lba: task.lba, device: task.device, count })
}

impl Device for AtaDisk {
    fn signature(&self) -> Answer {
        Answer { status: status::GOOD, error: 1, lba: 1, device: 0, count: 1 }
    }

    fn execute(&mut self, command: &Command, data: &mut Transfer<'_>) -> Result<End, Fault> {
        let task = &command.task;
        match task.command {
            code::READ_FPDMA_QUEUED | code::WRITE_FPDMA_QUEUED => {
                let result = self.queued(task, data).map(|()| 0);
                let answer = answer(task, &result)?;
                if answer.error != 0 {
                    self.note_queued(task, answer);
                }
                Ok(End::Queued(answer))
            }
            code::IDENTIFY_DEVICE
            | code::READ_LOG_EXT
            | code::READ_SECTORS
            | code::READ_SECTORS_EXT
            | code::READ_MULTIPLE
            | code::READ_MULTIPLE_EXT => {
                let result = self.pio_in(task, data);
                let bytes = *result.as_ref().unwrap_or(&0);
                Ok(End::Pio(answer(task, &result.map(|_| 0))?, bytes))
            }
            code::EXECUTE_DIAGNOSTIC => Ok(End::Register(self.signature())),
            _ => Ok(End::Register(answer(task, &self.plain(task, data))?)),
        }
    }

    fn reset(&mut self) {
        self.settings = SETTINGS;
    }
}
