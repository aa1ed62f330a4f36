use std::io::Write;

use super::*;

/// A tar archive of these files.
fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, contents) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(contents.len() as u64);
        header.set_mode(0o644);
        // Not `append_data`, which refuses the paths that a hostile package may have.
        header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        tar.append(&header, *contents).unwrap();
    }
    tar.into_inner().unwrap()
}

/// A package whose data is `data`, under the name `data.tar` and `suffix`.
fn package(suffix: &str, data: &[u8]) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut archive = ar::Builder::new(&mut file);
    let mut add = |name: String, contents: &[u8]| {
        archive.append(&ar::Header::new(name.into_bytes(), contents.len() as u64), contents).unwrap();
    };
    add("debian-binary".into(), b"2.0\n");
    add("control.tar.xz".into(), b"not looked at");
    add(format!("data.tar{suffix}"), data);
    file
}

fn files(path: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    visit(path, |entry| {
        if entry.is_file {
            files.push((entry.path.to_owned(), entry.read()?));
        }
        Ok(())
    })?;
    Ok(files)
}

fn problem(path: &Path) -> String {
    files(path).unwrap_err().to_string()
}

#[test]
fn every_compression_that_debian_uses_is_read() {
    let plain = tar(&[("./boot/vmlinuz", b"kernel"), ("./usr/bin/busybox", b"box")]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&plain).unwrap();
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&plain).unwrap();
    let zstd = ruzstd::encoding::compress_to_vec(&plain[..], ruzstd::encoding::CompressionLevel::Fastest);
    let cases = [("", plain), (".gz", gzip.finish().unwrap()), (".xz", xz.finish().unwrap()), (".zst", zstd)];
    for (suffix, data) in cases {
        let package = package(suffix, &data);
        let expected = [("boot/vmlinuz".into(), b"kernel".to_vec()), ("bin/busybox".into(), b"box".to_vec())];
        assert_eq!(files(package.path()).unwrap(), expected, "data.tar{suffix}");
    }
}

#[test]
fn a_file_that_is_no_package_is_refused() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(b"<html>Please log in to this network</html>").unwrap();
    assert!(problem(file.path()).contains("no ar archive"), "{}", problem(file.path()));
    let empty = tempfile::NamedTempFile::new().unwrap();
    assert!(files(empty.path()).is_err());
}

#[test]
fn a_cut_off_package_is_refused() {
    let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
    xz.write_all(&tar(&[("./boot/vmlinuz", &vec![7; 100_000])])).unwrap();
    let package = package(".xz", &xz.finish().unwrap());
    let length = package.as_file().metadata().unwrap().len();
    for keep in [10, 70, 100, length / 2, length - 20] {
        package.as_file().set_len(keep).unwrap();
        assert!(
            matches!(files(package.path()), Err(Error::Package { .. })),
            "cut to {keep} of {length} bytes"
        );
    }
}

#[test]
fn every_flipped_bit_of_a_header_is_survived() {
    let whole = std::fs::read(package("", &tar(&[("./a", b"A")])).path()).unwrap();
    let mut file = tempfile::NamedTempFile::new().unwrap();
    for at in 0..whole.len().min(1200) {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x41;
        file.as_file_mut().set_len(0).unwrap();
        std::fs::write(file.path(), &bytes).unwrap();
        // Whatever comes out, it comes out.
        let _ = files(file.path());
    }
}

#[test]
fn an_unknown_compression_and_a_package_without_data_are_refused() {
    assert!(problem(package(".lz4", b"").path()).contains("not known here"));
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let mut archive = ar::Builder::new(&mut file);
    archive.append(&ar::Header::new(b"debian-binary".to_vec(), 4), &b"2.0\n"[..]).unwrap();
    assert!(problem(file.path()).contains("no data.tar"));
}

#[test]
fn a_path_that_leaves_the_package_is_refused() {
    let package = package("", &tar(&[("../../etc/passwd", b"x")]));
    assert!(problem(package.path()).contains("leaves"), "{}", problem(package.path()));
}

#[test]
fn a_file_that_claims_to_be_enormous_is_not_read() {
    let mut header = tar::Header::new_gnu();
    header.set_path("huge").unwrap();
    header.set_size(1 << 40);
    header.set_mode(0o644);
    header.set_cksum();
    let package = package("", header.as_bytes());
    assert!(problem(package.path()).contains("1099511627776"), "{}", problem(package.path()));
}
