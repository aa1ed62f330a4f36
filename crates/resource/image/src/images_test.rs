use std::sync::atomic::{AtomicUsize, Ordering};

use posada_storage::{Format, NewImage};

use super::*;
use crate::cache::{Made, Staging};
use crate::progress::Silent;

/// Makes an image of a few bytes, and counts how often.
#[derive(Default)]
struct Counting {
    made: AtomicUsize,
    fails: bool,
    has_disk: bool,
    /// The newest version that there is; none means that there is always a newer one.
    newest: Option<&'static str>,
}

impl Recipe for Counting {
    fn name(&self) -> &'static str {
        "counting"
    }

    fn make(
        &self,
        have: &[Package],
        _machine: Option<&dyn Machine>,
        staging: &mut Staging,
        progress: &mut dyn Progress,
    ) -> Result<Option<Made>> {
        if self.newest.is_some_and(|newest| have.iter().any(|package| package.version == newest)) {
            return Ok(None);
        }
        progress.stage("Counting", None);
        let number = self.made.fetch_add(1, Ordering::SeqCst);
        staging.file(KERNEL, |out| out.write_all(b"kernel"))?;
        if self.fails {
            return Err(Error::NoPackage { package: "linux".into(), said: String::new() });
        }
        staging.file(INITRD, |out| out.write_all(b"base"))?;
        if self.has_disk {
            let disk = staging.scratch().join("new");
            posada_storage::create(&disk, &NewImage::new(Format::Qcow2, 1 << 20)).unwrap();
            staging.adopt(DISK, &disk)?;
        }
        // Slow enough that others come meanwhile.
        std::thread::sleep(std::time::Duration::from_millis(50));
        let version = format!("1.{number}");
        let package = Package { name: "linux".into(), version: version.clone(), sha256: String::new() };
        Ok(Some(Made { name: self.name().to_owned(), version, packages: vec![package] }))
    }
}

/// An image named `counting` that has a disk of 1 MiB, below `root`.
pub(crate) fn image_with_disk(root: &Path) -> Image {
    let images = Images::at(root);
    images.get_from(&Counting { has_disk: true, ..Counting::default() }, &mut Silent).unwrap()
}

fn images() -> (tempfile::TempDir, Images) {
    let folder = tempfile::tempdir().unwrap();
    let images = Images::at(folder.path());
    (folder, images)
}

#[test]
fn an_image_is_made_once_and_found_from_then_on() {
    let (_folder, images) = images();
    let recipe = Counting::default();
    let first = images.get_from(&recipe, &mut Silent).unwrap();
    let second = images.get_from(&recipe, &mut Silent).unwrap();
    assert_eq!(first, second);
    assert_eq!(recipe.made.load(Ordering::SeqCst), 1);
    assert_eq!(fs::read(first.kernel()).unwrap(), b"kernel");
    first.verify().unwrap();
}

#[test]
fn an_update_makes_a_newer_version_and_leaves_alone_what_is_the_newest() {
    let (_folder, images) = images();
    let recipe = Counting { newest: Some("1.1"), ..Counting::default() };
    assert_eq!(images.get_from(&recipe, &mut Silent).unwrap().version(), "1.0");
    assert_eq!(images.update_from(&recipe, &mut Silent).unwrap().version(), "1.1");
    assert_eq!(images.update_from(&recipe, &mut Silent).unwrap().version(), "1.1");
    assert_eq!(recipe.made.load(Ordering::SeqCst), 2);
    assert_eq!(images.get_from(&recipe, &mut Silent).unwrap().version(), "1.1");
}

#[test]
fn many_at_once_make_it_once() {
    let (_folder, images) = images();
    let recipe = Counting::default();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| images.get_from(&recipe, &mut Silent).unwrap());
        }
    });
    assert_eq!(recipe.made.load(Ordering::SeqCst), 1);
}

#[test]
fn a_failure_is_told_caches_nothing_and_is_tried_again() {
    let (_folder, images) = images();
    let failing = Counting { fails: true, ..Counting::default() };
    assert!(images.get_from(&failing, &mut Silent).is_err());
    assert!(images.list().unwrap().is_empty());
    assert!(images.get_from(&failing, &mut Silent).is_err());
    assert_eq!(failing.made.load(Ordering::SeqCst), 2);
}

#[test]
fn a_damaged_image_is_made_again() {
    let (_folder, images) = images();
    let recipe = Counting::default();
    let image = images.get_from(&recipe, &mut Silent).unwrap();
    fs::write(image.kernel(), "ker").unwrap();
    let again = images.get_from(&recipe, &mut Silent).unwrap();
    assert_eq!(fs::read(again.kernel()).unwrap(), b"kernel");
}

#[test]
fn a_changed_byte_is_found_by_verifying() {
    let (_folder, images) = images();
    let image = images.get_from(&Counting::default(), &mut Silent).unwrap();
    fs::write(image.kernel(), "kernal").unwrap();
    let error = image.verify().unwrap_err().to_string();
    assert!(error.contains("vmlinuz") && error.contains("posada image rm counting"), "{error}");
}

#[test]
fn the_initramfs_is_the_images_own_and_behind_it_the_sessions() {
    let (_folder, images) = images();
    let image = images.get_from(&Counting::default(), &mut Silent).unwrap();
    let initrd = image.initrd(&Session::command(["printf", "a b"])).unwrap();
    assert!(initrd.starts_with(b"base070701"), "a newc archive follows at a multiple of four");
    let has = |bytes: &[u8]| initrd.windows(bytes.len()).any(|window| window == bytes);
    assert!(has(b"etc/posada/session\0") && has(b"arg=printf\0arg=a b\0") && has(b"sbin/posada-agent\0"));
    assert!(has(b"counting\n"), "the guest's host name is the image's");
    assert!(matches!(image.initrd(&Session::command([""; 0])), Err(Error::Session(_))));
}

#[test]
fn a_command_boots_quietly_and_a_shell_shows_the_kernels_messages() {
    let (_folder, images) = images();
    let image = images.get_from(&Counting::default(), &mut Silent).unwrap();
    let words = |session| image.append(&session).split(' ').map(str::to_owned).collect::<Vec<_>>();
    let (shell, command) = (words(Session::shell()), words(Session::command(["true"])));
    assert!(shell.contains(&"console=ttyS0".to_owned()) && !shell.contains(&"quiet".to_owned()));
    assert!(command.contains(&"console=ttyS0".to_owned()) && command.contains(&"quiet".to_owned()));
}

#[test]
fn an_unknown_name_is_told_the_known_ones() {
    let (_folder, images) = images();
    for error in [
        images.get("deiban", &mut Silent).unwrap_err().to_string(),
        images.update("deiban", &mut Silent).unwrap_err().to_string(),
    ] {
        assert!(error.contains("`deiban`") && error.contains("debian"), "{error}");
    }
}

#[test]
fn images_are_removed_by_name_version_or_folder() {
    let (_folder, images) = images();
    let recipe = Counting::default();
    let name = |images: &Images| {
        let entries = images.list().unwrap();
        entries[0].path.file_name().unwrap().to_str().unwrap().to_owned()
    };
    for by in 0..3 {
        let image = images.get_from(&recipe, &mut Silent).unwrap();
        let wanted = [image.name().to_owned(), image.version().to_owned(), name(&images)];
        let removed = images.remove(&wanted[by], &mut Silent).unwrap();
        assert_eq!(removed.len(), 1);
        assert!(images.list().unwrap().is_empty());
    }
    assert!(matches!(images.remove("counting", &mut Silent), Err(Error::NotCached { .. })));
    images.get_from(&recipe, &mut Silent).unwrap();
    assert_eq!(images.remove_all(&mut Silent).unwrap().len(), 1);
    assert!(images.remove_all(&mut Silent).unwrap().is_empty());
}

#[test]
fn an_image_with_a_disk_boots_from_it() {
    let (_folder, images) = images();
    let plain = images.get_from(&Counting::default(), &mut Silent).unwrap();
    assert_eq!((plain.disk(), plain.memory()), (None, 512 << 20));
    let folder = tempfile::tempdir().unwrap();
    let image = image_with_disk(folder.path());
    let disk = image.disk().unwrap();
    assert!(fs::metadata(&disk).unwrap().permissions().readonly());
    assert_eq!(image.memory(), 1 << 30);
    image.verify().unwrap();
    let initrd = image.initrd(&Session::command(["true"])).unwrap();
    let has = |bytes: &[u8]| initrd.windows(bytes.len()).any(|window| window == bytes);
    assert!(initrd.starts_with(b"base070701") && has(b"posada-session.service\0") && has(b"switch_root"));
    assert!(image.append(&Session::shell()).contains("net.ifnames=0"));
}

#[test]
fn names_with_a_suite_are_known_and_their_disks_need_a_machine() {
    let (_folder, images) = images();
    let error = images.get("debian:bookworm", &mut Silent).unwrap_err();
    assert!(matches!(error, Error::NoMachine { .. }), "{error}");
    for name in ["debian:", "debian:../x", "debian:A", "ubuntu:noble"] {
        assert!(matches!(images.get(name, &mut Silent), Err(Error::UnknownImage { .. })), "{name}");
    }
}
