//! Two writers, or a writer and a reader, do not meet, whoever they are.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use posada_storage::{Error, Format, NewImage, Options, create, open};

use crate::support::Folder;

fn folder() -> Folder {
    let folder = Folder::new();
    create(folder.path("image.qcow2"), &NewImage::new(Format::Qcow2, 1 << 20)).unwrap();
    folder
}

#[test]
fn one_writes_or_several_read() {
    let folder = folder();
    let image = folder.path("image.qcow2");
    let (write, read) = (Options::default(), Options { read_only: true, ..Options::default() });
    let writer = open(&image, &write).unwrap();
    let error = open(&image, &write).unwrap_err();
    assert!(matches!(error, Error::Locked { writing: true, .. }), "{error}");
    assert!(matches!(open(&image, &read), Err(Error::Locked { writing: false, .. })));
    drop(writer);
    let readers = [open(&image, &read).unwrap(), open(&image, &read).unwrap()];
    let snapshot = open(&image, &Options { snapshot: true, ..Options::default() }).unwrap();
    assert!(matches!(open(&image, &write), Err(Error::Locked { .. })));
    drop((readers, snapshot));
    open(&image, &write).unwrap();
}

#[test]
fn a_backing_file_in_use_is_not_written() {
    let folder = folder();
    create(folder.path("top.qcow2"), &NewImage::over(folder.path("image.qcow2"))).unwrap();
    let top = folder.open("top.qcow2");
    assert!(matches!(open(folder.path("image.qcow2"), &Options::default()), Err(Error::Locked { .. })));
    folder.open_read_only("image.qcow2");
    drop(top);
    let writer = folder.open("image.qcow2");
    assert!(open(folder.path("top.qcow2"), &Options::default()).unwrap_err().to_string().contains("in use"));
    drop(writer);
}

#[test]
fn qemu_notices_and_is_noticed() {
    let folder = folder();
    let disk = folder.open("image.qcow2");
    let output = folder.try_qemu_img("check image.qcow2");
    assert!(String::from_utf8_lossy(&output.stderr).contains("lock"), "{output:?}");
    drop(disk);
    folder.check("image.qcow2");
    let mut qemu = Command::new("qemu-io");
    qemu.arg("image.qcow2").current_dir(folder.path(".")).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut qemu = qemu.spawn().unwrap();
    let mut stdin = qemu.stdin.take().unwrap();
    stdin.write_all(b"length\n").unwrap();
    let mut line = String::new();
    BufReader::new(qemu.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert!(
        matches!(open(folder.path("image.qcow2"), &Options::default()), Err(Error::Locked { .. })),
        "{line}"
    );
    drop(stdin);
    qemu.wait().unwrap();
    folder.open("image.qcow2");
}
