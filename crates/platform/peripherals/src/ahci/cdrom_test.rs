use super::Drive;
use super::tests::{DATA, Driver, fis};
use crate::testing::Memory;

const DHRS: u32 = 1;
const TFES: u32 = 1 << 30;

fn drive() -> Driver {
    let mut driver = Driver::new(Drive::CdRom { disc: Memory::new(4 * 100), serial: "cd".to_owned() });
    // The first command hears of the power having come.
    assert_eq!(driver.packet(&[0x00], 0), Err(0x60));
    assert_eq!(driver.packet(&[0x03, 0, 0, 0, 18], 18).unwrap()[12], 0x29);
    driver
}

impl Driver {
    /// Sends a packet; its data, or the error register, after which the list is started anew.
    fn packet(&mut self, packet: &[u8], len: usize) -> Result<Vec<u8>, u8> {
        let mut whole = [0; 12];
        whole[..packet.len()].copy_from_slice(packet);
        let places = [(DATA, 1 << 16)];
        self.put(0, &fis(0xa0, 1, 0, 0), &whole, &places);
        let (is, task_file) = self.issue();
        if is & TFES == 0 {
            assert_eq!((is, task_file), (DHRS, 0x50), "{packet:x?}");
            return Ok(self.bytes(DATA, len));
        }
        self.write(0x118, 0x10);
        self.write(0x118, 0x11);
        Err((task_file >> 8) as u8)
    }
}

#[test]
fn a_drive_presents_and_describes_itself() {
    let mut driver = drive();
    assert_eq!(driver.read(0x124), 0xeb14_0101);
    driver.put(0, &fis(0xa1, 0, 0, 0), &[0; 12], &[(DATA, 512)]);
    assert_eq!(driver.issue(), (2, 0x50));
    assert_eq!(driver.bytes(DATA, 2), [0xc0, 0x85]);
    let inquiry = driver.packet(&[0x12, 0, 0, 0, 36], 36).unwrap();
    assert_eq!((inquiry[0], inquiry[1], inquiry.len()), (5, 0x80, 36));
    let configuration = driver.packet(&[0x46, 0, 0, 0, 0, 0, 0, 1, 0], 8).unwrap();
    assert_eq!(configuration[6..], [0, 8], "a CD");
    let pages = driver.packet(&[0x5a, 0, 0x2a, 0, 0, 0, 0, 0, 64], 10).unwrap();
    assert_eq!(pages[8..10], [0x2a, 20]);
}

#[test]
fn blocks_are_read_and_the_disc_measured() {
    let mut driver = drive();
    assert_eq!(driver.packet(&[0x25], 8).unwrap(), [0, 0, 0, 99, 0, 0, 8, 0]);
    let data = driver.packet(&[0x28, 0, 0, 0, 0, 10, 0, 0, 2], 4096).unwrap();
    assert_eq!((data[0], data[2048]), (40, 44));
    assert!(driver.packet(&[0xa8, 0, 0, 0, 0, 99, 0, 0, 0, 1], 2048).is_ok());
    assert_eq!(driver.packet(&[0xa8, 0, 0, 0, 0, 99, 0, 0, 0, 2], 0), Err(0x54), "past the end");
    assert_eq!(driver.packet(&[0x03, 0, 0, 0, 18], 18).unwrap()[12], 0x21);
    let toc = driver.packet(&[0x43, 0, 0, 0, 0, 0, 0, 0, 20], 20).unwrap();
    assert_eq!(toc[..8], [0, 18, 1, 1, 0, 0x14, 1, 0]);
    assert_eq!(toc[14..], [0xaa, 0, 0, 0, 0, 100]);
    // No more than is wanted: what lies after it stays.
    let before = driver.bytes(DATA + 4, 8);
    assert_eq!(driver.packet(&[0x43, 0, 0, 0, 0, 0, 0, 0, 4], 12).unwrap()[4..], before);
}

#[test]
fn the_tray_goes_out_and_in_unless_it_is_locked() {
    let mut driver = drive();
    let media = [0x4a, 1, 0, 0, 0x10, 0, 0, 0, 8];
    assert_eq!(driver.packet(&media, 6).unwrap(), [0, 6, 4, 0x10, 2, 2]);
    assert!(driver.packet(&[0x1e, 0, 0, 0, 1], 0).is_ok());
    assert_eq!(driver.packet(&[0x1b, 0, 0, 0, 2], 0), Err(0x54));
    assert!(driver.packet(&[0x1e, 0, 0, 0, 0], 0).is_ok());
    assert!(driver.packet(&[0x1b, 0, 0, 0, 2], 0).is_ok());
    assert_eq!(driver.packet(&[0x00], 0), Err(0x20), "no medium");
    assert_eq!(driver.packet(&media, 6).unwrap(), [0, 6, 4, 0x10, 3, 1]);
    assert!(driver.packet(&[0x1b, 0, 0, 0, 3], 0).is_ok());
    assert_eq!(driver.packet(&[0x00], 0), Err(0x60), "the medium has changed");
    assert!(driver.packet(&[0x00], 0).is_ok());
}

#[test]
fn writing_is_no_command_of_a_cd_rom() {
    let mut driver = drive();
    assert_eq!(driver.packet(&[0x2a, 0, 0, 0, 0, 0, 0, 0, 1], 0), Err(0x54));
    driver.put(0, &fis(0xec, 0, 0, 0), &[0; 12], &[(DATA, 512)]);
    let (is, task_file) = driver.issue();
    assert_eq!((is, task_file), (DHRS | TFES, 0x0451));
}
