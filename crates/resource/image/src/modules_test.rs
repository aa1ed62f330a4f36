use super::*;

/// A 64-bit little-endian relocatable ELF file whose `.modinfo` section holds `info` (System V gABI, chapters 4 and 5).
pub(crate) fn elf(info: &[u8]) -> Vec<u8> {
    const NAMES: &[u8] = b"\0.modinfo\0.shstrtab\0";
    let mut file = b"\x7fELF\x02\x01\x01".to_vec();
    file.resize(16, 0);
    let sections = 64 + info.len() + NAMES.len();
    file.extend(1_u16.to_le_bytes()); // relocatable
    file.extend(62_u16.to_le_bytes()); // x86-64
    file.extend(1_u32.to_le_bytes());
    file.extend([0; 16]); // entry, program headers
    file.extend((sections as u64).to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 0, 0, 64, 3, 2] {
        file.extend(half.to_le_bytes());
    }
    file.extend(info);
    file.extend(NAMES);
    let mut section = |name: u32, kind: u32, offset: usize, size: usize| {
        file.extend(name.to_le_bytes());
        file.extend(kind.to_le_bytes());
        for word in [0, 0, offset as u64, size as u64, 0, 1, 0] {
            file.extend(word.to_le_bytes());
        }
    };
    section(0, 0, 0, 0);
    section(1, 1, 64, info.len());
    section(10, 3, 64 + info.len(), NAMES.len());
    file
}

fn module(path: &str, info: &str) -> Module {
    Module::read(path, elf(info.replace(' ', "\0").as_bytes())).unwrap()
}

fn modules(list: &[(&str, &str)]) -> Modules {
    let mut modules = Modules::default();
    for (name, info) in list {
        modules.insert(module(&format!("kernel/{name}.ko"), info));
    }
    modules
}

fn names(modules: &Modules) -> Vec<String> {
    modules.iter().map(Module::name).collect()
}

#[test]
fn a_module_tells_its_dependencies_and_aliases() {
    let module = module(
        "kernel/drivers/virtio-rng.ko",
        "license=GPL depends=virtio,virtio-ring alias=virtio:d00000004v*",
    );
    assert_eq!(module.name(), "virtio_rng");
    assert_eq!(module.depends, ["virtio", "virtio_ring"]);
    assert_eq!(module.aliases, ["virtio:d00000004v*"]);
}

#[test]
fn a_compressed_module_is_stored_uncompressed() {
    use std::io::Write;

    let plain = elf(b"depends=\0");
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(&plain[..], ruzstd::encoding::CompressionLevel::Fastest);
    let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gz.write_all(&plain).unwrap();
    for (suffix, bytes) in [("xz", xz.finish().unwrap()), ("zst", zstd), ("gz", gz.finish().unwrap())] {
        let module = Module::read(&format!("kernel/fs/fat.ko.{suffix}"), bytes).unwrap();
        assert_eq!((module.path.as_str(), &module.contents), ("kernel/fs/fat.ko", &plain));
    }
}

#[test]
fn a_file_that_is_no_module_is_refused() {
    for bytes in [b"".to_vec(), b"not ELF".to_vec(), elf(b"")[..100].to_vec()] {
        assert!(Module::read("kernel/x.ko", bytes).is_err());
    }
    assert!(Module::read("kernel/x.ko.xz", b"not xz".to_vec()).is_err());
}

#[test]
fn a_selection_brings_everything_it_depends_on_and_nothing_else() {
    let list = [
        ("net", "depends=ring,failover"),
        ("ring", "depends=virtio"),
        ("virtio", ""),
        ("failover", ""),
        ("sound", ""),
    ];
    assert_eq!(names(&modules(&list).select(&["net"])), ["failover", "net", "ring", "virtio"]);
}

#[test]
fn names_that_are_no_modules_and_modules_that_cannot_be_loaded_are_left_out() {
    let list = [("a", "depends=gone"), ("b", "")];
    assert_eq!(names(&modules(&list).select(&["a", "b", "builtin"])), ["b"]);
}

#[test]
fn soft_dependencies_come_along_when_they_exist() {
    let mut list = modules(&[("sha256_generic", "alias=sha256"), ("late", "")]);
    let btrfs = elf(b"softdep=pre: sha256 nothing post: late\0");
    list.insert(Module::read("kernel/btrfs.ko", btrfs).unwrap());
    assert_eq!(names(&list.select(&["btrfs"])), ["btrfs", "sha256_generic"]);
}

#[test]
fn a_circle_of_dependencies_ends() {
    let circle = modules(&[("a", "depends=b"), ("b", "depends=a")]).select(&["a"]);
    assert_eq!(names(&circle), ["a", "b"]);
    assert!(circle.dep().contains("kernel/a.ko: kernel/b.ko"));
}

#[test]
fn modules_dep_lists_the_first_to_be_loaded_last() {
    let list = modules(&[
        ("net", "depends=ring,failover"),
        ("ring", "depends=virtio"),
        ("virtio", ""),
        ("failover", ""),
    ]);
    let dep = list.dep();
    let line = dep.lines().find(|line| line.starts_with("kernel/net.ko:")).unwrap();
    let at = |name: &str| line.find(&format!("kernel/{name}.ko")).unwrap();
    assert!(at("virtio") > at("ring"), "{line}");
    assert!(dep.contains("kernel/virtio.ko:\n"));
}

#[test]
fn modules_alias_names_the_driver_of_each_pattern() {
    let list = modules(&[("virtio-blk", "alias=virtio:d00000002v* alias=other")]);
    assert_eq!(list.alias(), "alias virtio:d00000002v* virtio_blk\nalias other virtio_blk\n");
}

#[test]
fn large_modules_are_compressed_and_found_under_their_new_path() {
    let mut list = modules(&[("small", ""), ("large", "depends=small")]);
    list.insert(module("kernel/large.ko", &format!("depends=small x={}", "y".repeat(10_000))));
    list.compress(5000).unwrap();
    assert_eq!(list.dep(), "kernel/large.ko.gz: kernel/small.ko\nkernel/small.ko:\n");
    let large = list.iter().find(|module| module.path.contains(".gz")).unwrap();
    assert_eq!(large.contents[..2], [0x1f, 0x8b], "a gzip member (RFC 1952, 2.3.1)");
    assert_eq!(large.name(), "large");
}
