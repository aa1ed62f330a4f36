//! What one writes the other reads, and finds in order.

use fastrand::Rng;
use posada_storage::{Convert, Error, Format, NewImage, Options, Repair, check, convert, create, info, open};

use crate::support::{Folder, change, contents, mixed};

const SIZE: usize = 9 << 20;

/// QEMU reads from `image` what the array holds, and both find it in order.
fn agree(folder: &Folder, image: &str, model: &[u8]) {
    folder.check(image);
    let report = check(folder.path(image), Repair::Nothing).unwrap();
    assert_eq!((report.leaks, report.damage), (0, 0), "{:?}", report.findings);
    folder.raw("expected.raw", model);
    folder.qemu_img(&format!("compare -F raw {image} expected.raw"));
}

#[test]
fn images_of_ours_are_in_order_for_qemu() {
    let folder = Folder::new();
    let mut rng = Rng::with_seed(1);
    for cluster_size in [512, 4096, 65536, 2 << 20] {
        let name = format!("{cluster_size}.qcow2");
        create(folder.path(&name), &NewImage { cluster_size, ..NewImage::new(Format::Qcow2, SIZE as u64) })
            .unwrap();
        let mut model = vec![0; SIZE];
        agree(&folder, &name, &model);
        for _ in 0..2 {
            change(&*folder.open(&name), &mut model, 60, &mut rng);
            agree(&folder, &name, &model);
        }
    }
}

#[test]
fn images_of_qemu_can_be_written() {
    let folder = Folder::new();
    let mut rng = Rng::with_seed(2);
    for options in [
        "compat=0.10",
        "compat=1.1",
        "compat=1.1,cluster_size=512",
        "compat=0.10,cluster_size=4096",
        "refcount_bits=1",
        "refcount_bits=2,cluster_size=1024",
        "refcount_bits=8",
        "refcount_bits=64",
        "lazy_refcounts=on",
        "preallocation=metadata",
        "preallocation=falloc",
        "compression_type=zstd",
    ] {
        let name = "image.qcow2";
        let start = mixed(SIZE, &mut rng);
        folder.raw("start.raw", &start);
        folder.qemu_img(&format!("create -f qcow2 -o {options} {name} {SIZE}"));
        folder.qemu_img(&format!("convert -n -f raw -O qcow2 start.raw {name}"));
        let mut model = start;
        {
            let disk = folder.open(name);
            assert!(contents(&*disk) == model, "{options}");
            change(&*disk, &mut model, 60, &mut rng);
        }
        agree(&folder, name, &model);
        std::fs::remove_file(folder.path(name)).unwrap();
    }
}

#[test]
fn compressed_clusters_are_read_and_overwritten() {
    let folder = Folder::new();
    let mut rng = Rng::with_seed(3);
    for options in [
        "compression_type=zlib",
        "compression_type=zstd",
        "cluster_size=4096",
        "compression_type=zstd,cluster_size=2M",
    ] {
        let mut model = mixed(SIZE, &mut rng);
        folder.raw("start.raw", &model);
        folder.qemu_img(&format!("convert -c -f raw -O qcow2 -o {options} start.raw packed.qcow2"));
        {
            let disk = folder.open("packed.qcow2");
            assert!(contents(&*disk) == model, "{options}");
            change(&*disk, &mut model, 80, &mut rng);
            assert!(contents(&*disk) == model, "{options}");
        }
        agree(&folder, "packed.qcow2", &model);
    }
}

#[test]
fn a_backing_file_is_found_beside_its_image() {
    let folder = Folder::new();
    let mut rng = Rng::with_seed(4);
    let mut model = mixed(SIZE / 2, &mut rng);
    std::fs::create_dir(folder.path("bases")).unwrap();
    folder.raw("bases/base.raw", &model);
    folder.qemu_img("create -q -f qcow2 -b base.raw -F raw bases/middle.qcow2");
    create(
        folder.path("top.qcow2"),
        &NewImage { size: Some(SIZE as u64), ..NewImage::over(folder.path("bases/middle.qcow2")) },
    )
    .unwrap();
    model.resize(SIZE, 0);
    {
        let disk = folder.open("top.qcow2");
        assert!(contents(&*disk) == model);
        change(&*disk, &mut model, 80, &mut rng);
    }
    agree(&folder, "top.qcow2", &model);
    let told = info(folder.path("top.qcow2"), None).unwrap();
    assert!(told.warnings[0].contains("bases/middle.qcow2"), "{:?}", told.warnings);
    // The images beneath were only read.
    folder.check("bases/middle.qcow2");
    std::fs::remove_file(folder.path("bases/base.raw")).unwrap();
    let error = open(folder.path("top.qcow2"), &Options::default()).unwrap_err().to_string();
    assert!(error.contains("backing file") && error.contains("base.raw"), "{error}");
}

#[test]
fn version_2_over_a_backing_file_keeps_its_promises() {
    let folder = Folder::new();
    let mut rng = Rng::with_seed(5);
    let mut model = mixed(SIZE, &mut rng);
    folder.raw("base.raw", &model);
    folder.qemu_img("create -q -f qcow2 -o compat=0.10 -b base.raw -F raw old.qcow2");
    change(&*folder.open("old.qcow2"), &mut model, 80, &mut rng);
    agree(&folder, "old.qcow2", &model);
}

#[test]
fn snapshots_inside_an_image_stay_what_they_were() {
    let folder = Folder::new();
    let mut rng = Rng::with_seed(6);
    for options in ["cluster_size=64k", "cluster_size=512", "compat=0.10"] {
        let mut model = mixed(SIZE, &mut rng);
        folder.raw("start.raw", &model);
        folder.qemu_img(&format!("convert -f raw -O qcow2 -o {options} start.raw image.qcow2"));
        folder.qemu_img("snapshot -c first image.qcow2");
        change(&*folder.open("image.qcow2"), &mut model, 40, &mut rng);
        agree(&folder, "image.qcow2", &model);
        folder.qemu_img("snapshot -c second image.qcow2");
        let second = model.clone();
        change(&*folder.open("image.qcow2"), &mut model, 40, &mut rng);
        agree(&folder, "image.qcow2", &model);
        let told = info(folder.path("image.qcow2"), None).unwrap().qcow2.unwrap().snapshots;
        assert_eq!(told.iter().map(|snapshot| &*snapshot.name).collect::<Vec<_>>(), ["first", "second"]);
        folder.raw("second.raw", &second);
        folder.qemu_img("convert -l snapshot.name=first -O raw image.qcow2 was.raw");
        folder.qemu_img("compare -f raw -F raw was.raw start.raw");
        folder.qemu_img("convert -l snapshot.name=second -O raw image.qcow2 was.raw");
        folder.qemu_img("compare -f raw -F raw was.raw second.raw");
    }
}

#[test]
fn conversions_agree_with_qemus() {
    let folder = Folder::new();
    let mut rng = Rng::with_seed(7);
    let model = mixed(SIZE, &mut rng);
    folder.raw("start.raw", &model);
    let path = |name: &str| folder.path(name);
    let to = |to, compress| Convert { from: None, to, compress, replace: false };
    let mut last = (0, 0);
    convert(path("start.raw"), path("plain.qcow2"), &to(Format::Qcow2, false), &mut |done, all| {
        last = (done, all);
    })
    .unwrap();
    assert_eq!(last, (SIZE as u64, SIZE as u64));
    agree(&folder, "plain.qcow2", &model);
    convert(path("plain.qcow2"), path("packed.qcow2"), &to(Format::Qcow2, true), &mut |_, _| {}).unwrap();
    agree(&folder, "packed.qcow2", &model);
    let length = |name| std::fs::metadata(path(name)).unwrap().len();
    assert!(length("packed.qcow2") < length("plain.qcow2") * 3 / 4);
    convert(path("packed.qcow2"), path("again.raw"), &to(Format::Raw, false), &mut |_, _| {}).unwrap();
    assert!(std::fs::read(path("again.raw")).unwrap() == model);
    // Nothing is replaced unless that was asked for, and nothing unfinished is left.
    let error =
        convert(path("start.raw"), path("again.raw"), &to(Format::Raw, false), &mut |_, _| {}).unwrap_err();
    assert_eq!(error.io_kind(), Some(std::io::ErrorKind::AlreadyExists));
    assert!(convert(path("none"), path("new.raw"), &to(Format::Raw, false), &mut |_, _| {}).is_err());
    assert!(!path("new.raw").exists());
    let unfinished = std::fs::read_dir(path("."))
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().starts_with(".posada"));
    assert_eq!(unfinished.count(), 0);
}

#[test]
fn holes_stay_holes() {
    use std::os::unix::fs::MetadataExt;
    let folder = Folder::new();
    let path = |name: &str| folder.path(name);
    create(path("huge.raw"), &NewImage::new(Format::Raw, 1 << 40)).unwrap();
    folder.open("huge.raw").write(1 << 39, b"in the middle").unwrap();
    let to = |to| Convert { from: None, to, compress: false, replace: false };
    convert(path("huge.raw"), path("huge.qcow2"), &to(Format::Qcow2), &mut |_, _| {}).unwrap();
    convert(path("huge.qcow2"), path("again.raw"), &to(Format::Raw), &mut |_, _| {}).unwrap();
    let mut read = [0; 13];
    folder.open("again.raw").read(1 << 39, &mut read).unwrap();
    assert_eq!(&read, b"in the middle");
    for name in ["huge.raw", "huge.qcow2", "again.raw"] {
        let blocks = std::fs::metadata(path(name)).unwrap().blocks();
        assert!(blocks * 512 < 4 << 20, "{name} takes {blocks} sectors");
    }
    folder.check("huge.qcow2");
}

#[test]
fn leaks_are_found_and_repaired_as_qemu_does() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f qcow2 image.qcow2 64M");
    folder.qemu_io("image.qcow2", &["write -P 1 0 1M"]);
    // The refcounts of clusters far behind, in the first block.
    let image = folder.path("image.qcow2");
    let bytes = std::fs::read(&image).unwrap();
    let table = u64::from_be_bytes(bytes[48..56].try_into().unwrap()) as usize;
    let block = u64::from_be_bytes(bytes[table..table + 8].try_into().unwrap()) as usize;
    let last = bytes.len() / 65536 - 1;
    let damaged = |at: usize, count: u16| {
        let mut bytes = bytes.clone();
        bytes[block + 2 * at..block + 2 * at + 2].copy_from_slice(&count.to_be_bytes());
        std::fs::write(&image, bytes).unwrap();
    };
    damaged(last, 2);
    let report = check(&image, Repair::Nothing).unwrap();
    assert_eq!(
        (report.leaks, report.damage > 0),
        (1, true),
        "its flag is wrong as well: {:?}",
        report.findings
    );
    // A whole cluster that nothing refers to.
    let mut longer = bytes.clone();
    longer.resize(bytes.len() + 65536, 0);
    longer[block + 2 * (last + 1) + 1] = 1;
    std::fs::write(&image, longer).unwrap();
    assert_eq!(folder.try_qemu_img("check image.qcow2").status.code(), Some(3));
    let report = check(&image, Repair::Nothing).unwrap();
    assert_eq!((report.leaks, report.damage, report.repaired), (1, 0, false));
    assert!(check(&image, Repair::Leaks).unwrap().repaired);
    folder.check("image.qcow2");
    // A refcount that is too low.
    damaged(last, 0);
    assert_eq!(folder.try_qemu_img("check image.qcow2").status.code(), Some(2));
    let report = check(&image, Repair::Leaks).unwrap();
    assert!(report.damage > 0 && !report.repaired);
    assert!(check(&image, Repair::All).unwrap().repaired);
    folder.check("image.qcow2");
}

#[test]
fn an_image_whose_writer_died_with_lazy_refcounts_is_repaired_first() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f qcow2 -o lazy_refcounts=on image.qcow2 64M");
    // `abort` leaves the image dirty.
    let arguments = ["-c", "write -P 1 0 1M", "-c", "flush", "-c", "abort", "image.qcow2"];
    let _ =
        std::process::Command::new("qemu-io").args(arguments).current_dir(folder.path(".")).output().unwrap();
    assert!(info(folder.path("image.qcow2"), None).unwrap().qcow2.unwrap().dirty);
    // Reading needs no refcounts.
    assert!(contents(&*folder.open_read_only("image.qcow2"))[..1 << 20].iter().all(|&byte| byte == 1));
    folder.open("image.qcow2").write(2 << 20, &vec![2; 100_000]).unwrap();
    folder.check("image.qcow2");
    assert!(!info(folder.path("image.qcow2"), None).unwrap().qcow2.unwrap().dirty);
    folder.qemu_io("image.qcow2", &["read -P 1 0 1M", "read -P 2 2M 100000"]);
}

#[test]
fn persistent_bitmaps_are_no_leaks() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f qcow2 image.qcow2 64M");
    folder.qemu_img("bitmap --add image.qcow2 changed");
    folder.qemu_io("image.qcow2", &["write -P 1 0 1M"]);
    let report = check(folder.path("image.qcow2"), Repair::Nothing).unwrap();
    assert_eq!((report.leaks, report.damage), (0, 0), "{:?}", report.findings);
}

#[test]
fn what_is_not_supported_is_said() {
    let folder = Folder::new();
    let refused = |said: &str| {
        let error = open(folder.path("image.qcow2"), &Options::default()).unwrap_err();
        assert!(matches!(error, Error::Unsupported { .. }) && error.to_string().contains(said), "{error}");
    };
    for (options, said) in [("extended_l2=on", "extended L2"), ("data_file=data.raw", "another file")] {
        folder.qemu_img(&format!("create -q -f qcow2 -o {options} image.qcow2 64M"));
        refused(said);
    }
    folder.qemu_img("create -q -f qcow2 image.qcow2 64M");
    let mut bytes = std::fs::read(folder.path("image.qcow2")).unwrap();
    bytes[35] = 2; // LUKS
    folder.raw("image.qcow2", &bytes);
    refused("encrypted");
}

#[test]
fn a_snapshot_is_thrown_away() {
    let folder = Folder::new();
    let mut rng = Rng::with_seed(8);
    let start = mixed(SIZE, &mut rng);
    folder.raw("start.raw", &start);
    folder.qemu_img("convert -f raw -O qcow2 start.raw image.qcow2");
    let mut model = start.clone();
    {
        let options = Options { snapshot: true, ..Options::default() };
        let disk = open(folder.path("image.qcow2"), &options).unwrap();
        assert!(!disk.is_read_only());
        change(&*disk, &mut model, 40, &mut rng);
        assert!(contents(&*disk) == model);
    }
    agree(&folder, "image.qcow2", &start);
}

#[test]
fn a_circle_of_backing_files_is_refused() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f qcow2 a.qcow2 64M");
    folder.qemu_img("create -q -f qcow2 -b a.qcow2 -F qcow2 b.qcow2");
    folder.qemu_img("rebase -u -b b.qcow2 -F qcow2 a.qcow2");
    for read_only in [false, true] {
        let options = Options { read_only, ..Options::default() };
        let error = open(folder.path("a.qcow2"), &options).unwrap_err().to_string();
        assert!(error.contains("its own backing file"), "{error}");
    }
    folder.qemu_img("rebase -u -b nbd:localhost:1 a.qcow2 -F raw");
    let error = open(folder.path("a.qcow2"), &Options::default()).unwrap_err().to_string();
    assert!(error.contains("only files can be"), "{error}");
}

#[test]
fn a_backing_file_that_shrinks_is_a_clear_error() {
    let folder = Folder::new();
    folder.raw("base.raw", &vec![1; SIZE]);
    create(folder.path("top.qcow2"), &NewImage::over(folder.path("base.raw"))).unwrap();
    let disk = folder.open("top.qcow2");
    let file = std::fs::OpenOptions::new().write(true).open(folder.path("base.raw")).unwrap();
    file.set_len(1 << 20).unwrap();
    disk.read(0, &mut [0; 4096]).unwrap();
    let error = disk.read(2 << 20, &mut [0; 4096]).unwrap_err().to_string();
    assert!(error.contains("base.raw has shrunk"), "{error}");
    // A write that needs old bytes fails, one that does not works.
    assert!(disk.write((2 << 20) + 1, &[0; 4]).is_err());
    disk.write(4 << 20, &vec![7; 65536]).unwrap();
    drop(disk);
    folder.check("top.qcow2");
}
