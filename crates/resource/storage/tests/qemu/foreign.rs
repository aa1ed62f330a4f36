//! Formats that are only read.

use fastrand::Rng;
use posada_storage::{Convert, Format, Options, convert, info, open};

use crate::support::{Folder, contents, mixed};

#[test]
fn appliances_images_are_read() {
    let folder = Folder::new();
    let mut rng = Rng::with_seed(11);
    let mut model = mixed(7 << 20, &mut rng);
    // The last block is not complete.
    model.truncate((7 << 20) - 12 * 512);
    folder.raw("start.raw", &model);
    for (format, options) in [
        ("vmdk", "subformat=monolithicSparse"),
        ("vmdk", "subformat=streamOptimized"),
        ("vdi", "static=off"),
        ("vdi", "static=on"),
        ("vpc", "subformat=dynamic,force_size=on"),
        ("vpc", "subformat=fixed,force_size=on"),
    ] {
        folder.qemu_img(&format!("convert -f raw -O {format} -o {options} start.raw image"));
        let known: Format = format.parse().unwrap();
        let disk = folder.open_as("image", known);
        // Fixed VHDs cannot be told from raw disks by their start.
        if options != "subformat=fixed,force_size=on" {
            assert_eq!(info(folder.path("image"), None).unwrap().format, known, "{options}");
        }
        // VDI has whole blocks of 1 MiB in its map, but its size is exact.
        assert_eq!(disk.size(), model.len() as u64, "{options}");
        assert!(contents(&*disk) == model, "{format} {options}");
        let copy = Convert { from: Some(known), to: Format::Qcow2, compress: false, replace: true };
        drop(disk);
        convert(folder.path("image"), folder.path("copy.qcow2"), &copy, &mut |_, _| {}).unwrap();
        folder.qemu_img("compare -f qcow2 -F raw copy.qcow2 start.raw");
        folder.check("copy.qcow2");
        let error = open(folder.path("image"), &Options { format: Some(known), ..Options::default() });
        assert!(error.unwrap_err().to_string().contains("snapshot"));
    }
}

#[test]
fn an_image_in_several_files_is_refused() {
    let folder = Folder::new();
    folder.qemu_img("create -q -f vmdk -o subformat=twoGbMaxExtentSparse image.vmdk 64M");
    let error = info(folder.path("image.vmdk"), None).unwrap_err().to_string();
    assert!(error.contains("several files"), "{error}");
}
