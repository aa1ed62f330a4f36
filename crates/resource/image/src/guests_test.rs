use super::*;
use crate::progress::Silent;

/// A cache with an image `test` that has a disk, and guests beside it.
struct Fixture {
    folder: tempfile::TempDir,
    guests: Guests,
    image: Image,
}

fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let image = crate::images::tests::image_with_disk(&folder.path().join("cache"));
    let guests = Guests::at(folder.path().join("state/guests"));
    Fixture { folder, guests, image }
}

#[test]
fn names_are_host_names_and_no_paths() {
    for name in ["web", "a", "Web-2", &"a".repeat(63)] {
        assert!(check_name(name).is_ok(), "{name}");
    }
    for name in ["", ".", "..", "a/b", "../x", "a b", "-a", "a-", "a.b", "a_b", "\u{e9}", &"a".repeat(64)] {
        assert!(matches!(check_name(name), Err(Error::GuestName { .. })), "{name}");
    }
}

#[test]
fn nothing_is_created_before_a_guest_is() {
    let fixture = fixture();
    assert!(fixture.guests.list().unwrap().is_empty());
    assert!(fixture.guests.find("web").unwrap().is_none());
    assert!(!fixture.folder.path().join("state").exists());
}

#[test]
fn a_guest_stands_on_its_images_disk_and_is_found_again() {
    let fixture = fixture();
    fixture.guests.create("web", &fixture.image).unwrap();
    let guest = fixture.guests.find("web").unwrap().unwrap();
    assert_eq!((guest.name(), guest.image_name()), ("web", fixture.image.name()));
    assert_eq!(guest.image().unwrap(), fixture.image);
    let info = posada_storage::info(guest.disk(), None).unwrap();
    assert_eq!(info.virtual_size, 1 << 20);
    let names: Vec<String> = fixture.guests.list().unwrap().into_iter().map(|guest| guest.name).collect();
    assert_eq!(names, ["web"]);
    // Whoever comes second finds it.
    fixture.guests.create("web", &fixture.image).unwrap();
    assert_eq!(fs::read_dir(&fixture.guests.folder).unwrap().count(), 1, "nothing is left behind");
}

#[test]
fn an_image_that_guests_stand_on_is_in_use() {
    let fixture = fixture();
    let entries = Images::at(fixture.folder.path().join("cache")).list().unwrap();
    fixture.guests.check_unused(&entries).unwrap();
    fixture.guests.create("web", &fixture.image).unwrap();
    fixture.guests.create("db", &fixture.image).unwrap();
    let error = fixture.guests.check_unused(&entries).unwrap_err().to_string();
    assert!(error.contains("(`db`, `web`)") && error.contains("--force"), "{error}");
    fixture.guests.check_unused(&[]).unwrap();
}

#[test]
fn what_is_written_is_kept_and_the_image_stays_as_it_was() {
    let fixture = fixture();
    fixture.guests.create("web", &fixture.image).unwrap();
    let guest = fixture.guests.find("web").unwrap().unwrap();
    let options = posada_storage::Options::default();
    let disk = posada_storage::open(guest.disk(), &options).unwrap();
    disk.write(4096, b"kept").unwrap();
    disk.flush().unwrap();
    drop(disk);
    let mut found = [0; 4];
    posada_storage::open(guest.disk(), &options).unwrap().read(4096, &mut found).unwrap();
    assert_eq!(&found, b"kept");
    fixture.image.verify().unwrap();
}

#[test]
fn a_name_belongs_to_one_image() {
    let fixture = fixture();
    fixture.guests.create("web", &fixture.image).unwrap();
    let images = Images::at(fixture.folder.path());
    let error = fixture.guests.open_or_create("web", "debian:trixie", &images, &mut Silent).unwrap_err();
    assert!(matches!(error, Error::OtherImage { .. }), "{error}");
    let name = fixture.image.name();
    assert_eq!(fixture.guests.open_or_create("web", name, &images, &mut Silent).unwrap().name(), "web");
}

#[test]
fn a_removed_guest_is_gone_and_its_name_is_free() {
    let fixture = fixture();
    fixture.guests.create("web", &fixture.image).unwrap();
    fixture.guests.remove("web").unwrap();
    assert!(fixture.guests.find("web").unwrap().is_none());
    assert!(matches!(fixture.guests.remove("web"), Err(Error::NoGuest { .. })));
    assert!(matches!(fixture.guests.remove("../cache"), Err(Error::GuestName { .. })));
    fixture.guests.create("web", &fixture.image).unwrap();
}

#[test]
fn a_guest_whose_image_is_gone_or_whose_record_is_damaged_is_told_so() {
    let fixture = fixture();
    fixture.guests.create("web", &fixture.image).unwrap();
    let guest = fixture.guests.find("web").unwrap().unwrap();
    fs::remove_dir_all(&guest.record.base).unwrap();
    assert!(guest.image().unwrap_err().to_string().contains("stands on the image in"));
    for text in ["", "{}", "[1]", "\0", r#"{"format":99,"image":"x","base":"/","created":0}"#] {
        fs::write(guest.folder.join(RECORD), text).unwrap();
        assert!(matches!(fixture.guests.find("web"), Err(Error::GuestRecord { .. })), "{text}");
        assert!(fixture.guests.list().unwrap().is_empty());
    }
}
