//! What the drive says of itself and its disc: one data track in one session.

use super::{INVALID_FIELD, MediaEvent, Sense};

/// Discs of up to this many blocks are told to be CDs (80 minutes of 75 blocks a second), larger ones DVDs.
const CD_BLOCKS: u32 = 80 * 60 * 75;
/// Blocks before the first that can be addressed: two seconds.
const LEAD: u32 = 150;
/// Profiles (MMC-6 §5.3.1).
const PROFILE_CD: u16 = 0x0008;
const PROFILE_DVD: u16 = 0x0010;

/// Fixed-format sense data (SPC-3 §4.5.3).
pub(super) fn sense(sense: Sense) -> Vec<u8> {
    let mut data = vec![0; 18];
    (data[0], data[2], data[7]) = (0x70, sense.key, 10);
    (data[12], data[13]) = (sense.code, sense.qualifier);
    data
}

/// Standard INQUIRY data (SPC-3 §6.4.2).
pub(super) fn inquiry() -> Vec<u8> {
    // Type 5, removable, SPC-3, response format 2.
    let mut data = vec![0x05, 0x80, 0x05, 0x02, 31, 0, 0, 0];
    data.extend(b"Posada  CD-ROM          1.0 ");
    data
}

/// READ CAPACITY (MMC-6 §6.24): the last block, and bytes of a block.
pub(super) fn capacity(blocks: u32) -> Vec<u8> {
    let mut data = blocks.saturating_sub(1).to_be_bytes().to_vec();
    data.extend((super::BLOCK as u32).to_be_bytes());
    data
}

/// The address of a block as a table of contents has it.
fn address(block: u32, in_time: bool) -> [u8; 4] {
    if !in_time {
        return block.to_be_bytes();
    }
    let frames = block.saturating_add(LEAD);
    [0, (frames / 75 / 60).min(255) as u8, (frames / 75 % 60) as u8, (frames % 75) as u8]
}

/// READ TOC/PMA/ATIP (MMC-6 §6.26): the tracks, or where the last session begins.
pub(super) fn table_of_contents(packet: &[u8; 12], blocks: u32) -> Result<Vec<u8>, Sense> {
    const TRACKS: u8 = 0;
    const SESSIONS: u8 = 1;
    const LEAD_OUT: u8 = 0xaa;
    /// A data track, recorded in one piece.
    const DATA: u8 = 0x14;
    let in_time = packet[1] & 2 != 0;
    // Drivers of old say it in the control byte.
    let format = if packet[2] & 0xf != 0 { packet[2] & 0xf } else { packet[9] >> 6 };
    let from = packet[6];
    let entry = |track: u8, block: u32| {
        let mut entry = vec![0, DATA, track, 0];
        entry.extend(address(block, in_time));
        entry
    };
    let mut entries = Vec::new();
    match format {
        TRACKS if from > 1 && from != LEAD_OUT => return Err(INVALID_FIELD),
        TRACKS => {
            if from <= 1 {
                entries.extend(entry(1, 0));
            }
            entries.extend(entry(LEAD_OUT, blocks));
        }
        SESSIONS => entries.extend(entry(1, 0)),
        _ => return Err(INVALID_FIELD),
    }
    let mut data = (entries.len() as u16 + 2).to_be_bytes().to_vec();
    data.extend([1, 1]);
    data.extend(entries);
    Ok(data)
}

/// GET CONFIGURATION (MMC-6 §6.5): features from number `from` on; `kind` 1 asks for current ones only, 2 for one.
pub(super) fn configuration(kind: u8, from: u16, disc: Option<u32>) -> Vec<u8> {
    let is_cd = disc.map(|blocks| blocks <= CD_BLOCKS);
    let profile = is_cd.map_or(0, |is_cd| if is_cd { PROFILE_CD } else { PROFILE_DVD });
    let listed = |number: u16| {
        let [high, low] = number.to_be_bytes();
        [high, low, u8::from(profile == number), 0]
    };
    let profiles = [listed(PROFILE_DVD), listed(PROFILE_CD)].concat();
    let readable = [&(super::BLOCK as u32).to_be_bytes()[..], &[0, 1, 0, 0]].concat();
    // Number, version, whether it is current with any disc, and the rest: profiles; core (ATAPI); morphing; removable
    // medium (a tray, which can be locked and ejected); random reading; CD reading; DVD reading.
    let features: [(u16, u8, bool, Vec<u8>); 7] = [
        (0x0000, 0, true, profiles),
        (0x0001, 2, true, vec![0, 0, 0, 2, 1, 0, 0, 0]),
        (0x0002, 1, true, vec![0; 4]),
        (0x0003, 0, true, vec![0x29, 0, 0, 0]),
        (0x0010, 0, disc.is_some(), readable),
        (0x001e, 2, is_cd == Some(true), vec![0; 4]),
        (0x001f, 0, is_cd == Some(false), vec![]),
    ];
    let mut data = vec![0; 8];
    data[6..].copy_from_slice(&profile.to_be_bytes());
    for (number, version, current, more) in features {
        let wanted = if kind == 2 { number == from } else { number >= from && (current || kind == 0) };
        if wanted {
            data.extend(number.to_be_bytes());
            // Bit 1: whether it is current with any disc.
            let persistent = u8::from(number <= 3) << 1;
            data.extend([version << 2 | persistent | u8::from(current), more.len() as u8]);
            data.extend(more);
        }
    }
    let len = data.len() as u32 - 4;
    data[..4].copy_from_slice(&len.to_be_bytes());
    data
}

/// GET EVENT STATUS NOTIFICATION (MMC-6 §6.6): of media, the only class that there is.
pub(super) fn event(wants_media: bool, event: MediaEvent, is_open: bool) -> Vec<u8> {
    const MEDIA: u8 = 4;
    const NONE: u8 = 0x80;
    if !wants_media {
        return vec![0, 2, NONE, 1 << MEDIA];
    }
    // The tray is out, or a disc is in.
    let status = if is_open { 1 } else { 2 };
    vec![0, 6, MEDIA, 1 << MEDIA, event as u8, status, 0, 0]
}

/// READ DISC INFORMATION (MMC-6 §6.22): a finished disc with one session.
pub(super) fn disc_information() -> Vec<u8> {
    let mut data = vec![0; 34];
    // Length; finished, last session complete; first track; sessions; first and last track of the last session.
    (data[1], data[2]) = (32, 0x0e);
    (data[3], data[4], data[5], data[6]) = (1, 1, 1, 1);
    data
}

/// MODE SENSE(10) (SPC-3 §6.10): read error recovery (MMC-6 §7.3), and capabilities (MMC-3 §6.3.11), which drivers
/// still ask for. Only current values; none of them can be changed.
pub(super) fn mode_pages(selector: u8, is_locked: bool) -> Result<Vec<u8>, Sense> {
    const RECOVERY: u8 = 0x01;
    const CAPABILITIES: u8 = 0x2a;
    const ALL: u8 = 0x3f;
    const SAVED: u8 = 3;
    const CHANGEABLE: u8 = 1;
    let (page, control) = (selector & 0x3f, selector >> 6);
    if control == SAVED || !matches!(page, RECOVERY | CAPABILITIES | ALL) {
        return Err(INVALID_FIELD);
    }
    let mut data = vec![0; 8];
    let mut add = |number: u8, mut body: Vec<u8>| {
        if page == number || page == ALL {
            if control == CHANGEABLE {
                body.fill(0);
            }
            data.extend([number, body.len() as u8]);
            data.extend(body);
        }
    };
    // As often as a drive tries.
    add(RECOVERY, vec![0, 5, 0, 0, 0, 0, 0, 0, 0, 0]);
    let mut body = vec![0; 20];
    // CD-R, CD-RW and DVD-ROM can be read; nothing written; several sessions, mode 2 forms 1 and 2.
    (body[0], body[2]) = (0x0b, 0x70);
    // A tray that can be locked and ejects, and whether it is locked.
    body[4] = 0x29 | u8::from(is_locked) << 1;
    // Speeds in kB/s, the most and now (16 times), and buffer in KiB.
    body[6..8].copy_from_slice(&2816_u16.to_be_bytes());
    body[10..12].copy_from_slice(&512_u16.to_be_bytes());
    body[12..14].copy_from_slice(&2816_u16.to_be_bytes());
    add(CAPABILITIES, body);
    let len = data.len() as u16 - 2;
    data[..2].copy_from_slice(&len.to_be_bytes());
    Ok(data)
}
