//! Any requests to a good qcow2 image, which must do what they do to an array; afterwards the image is in order.

use posada_storage::{Disk, Format, NewImage, Options, Repair, check, create, open};

/// The first byte is the size of clusters and whether there is a backing file; each request is six bytes.
///
/// # Panics
/// If the storage misbehaves: that is the finding.
pub(crate) fn run(data: &[u8]) {
    const SIZE: usize = 300 * 1024;
    let Some((&kind, requests)) = data.split_first() else { return };
    let folder =
        tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder can be had");
    let path = folder.path().join("image");
    let mut image = NewImage { cluster_size: 512 << (kind & 7), ..NewImage::new(Format::Qcow2, SIZE as u64) };
    let mut model = vec![0; SIZE];
    if kind & 8 != 0 {
        let base = folder.path().join("base");
        model[..200_192].fill(3);
        std::fs::write(&base, &model[..200_192]).expect("a file can be written");
        image.backing = Some(posada_storage::Backing { path: base, format: Some(Format::Raw) });
    }
    create(&path, &image).expect("an image can be made");
    let disk = open(&path, &Options::default()).expect("it can be opened");
    for request in requests.chunks_exact(6).take(64) {
        request_one(&*disk, &mut model, request);
    }
    let mut read = vec![0; SIZE];
    disk.read(0, &mut read).expect("it can be read");
    assert!(read == model, "it holds something else");
    drop(disk);
    let report = check(&path, Repair::Nothing).expect("it can be checked");
    assert_eq!((report.leaks, report.damage), (0, 0), "{:?}", report.findings);
}

fn request_one(disk: &dyn Disk, model: &mut [u8], request: &[u8]) {
    let number = |at: usize| usize::from(u16::from_le_bytes([request[at], request[at + 1]]));
    let start = number(1) * 5 % model.len();
    let range = start..(start + number(3)).min(model.len());
    let (offset, length) = (start as u64, range.len() as u64);
    let done = match request[0] % 6 {
        0 => disk.flush(),
        1 => {
            model[range].fill(0);
            disk.write_zeroes(offset, length, request[5] & 1 != 0)
        }
        2 => disk.discard(offset, length).and_then(|()| disk.read(offset, &mut model[range])),
        _ => {
            model[range.clone()].fill(request[5]);
            disk.write(offset, &model[range])
        }
    };
    done.expect("it works");
}
