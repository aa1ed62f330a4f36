use super::*;

/// The names and contents of an archive.
fn entries(archive: &[u8]) -> Vec<(String, Vec<u8>)> {
    let mut rest = archive;
    let mut entries = Vec::new();
    loop {
        let mut reader = cpio::NewcReader::new(rest).unwrap();
        if reader.entry().is_trailer() {
            return entries;
        }
        let mut contents = Vec::new();
        io::Read::read_to_end(&mut reader, &mut contents).unwrap();
        entries.push((reader.entry().name().to_owned(), contents));
        rest = reader.finish().unwrap();
    }
}

fn find<'a>(entries: &'a [(String, Vec<u8>)], name: &str) -> Option<&'a str> {
    let found = entries.iter().find(|(other, _)| other == name);
    found.map(|(_, contents)| std::str::from_utf8(contents).unwrap_or("(no text)"))
}

fn source(signed_by: Option<&str>) -> Source {
    Source {
        uri: "http://deb.example/debian/".into(),
        release: "bookworm".into(),
        components: ["main".to_owned()].into(),
        signed_by: signed_by.map(str::to_owned),
        lists: String::new(),
        version: None,
    }
}

#[test]
fn the_building_guest_gets_packages_tools_and_configuration() {
    let folder = tempfile::tempdir().unwrap();
    let paths: Vec<PathBuf> = ["libc6_1%3a2_amd64.deb", "dpkg_1_amd64.deb", "systemd_252_amd64.deb"]
        .iter()
        .map(|name| folder.path().join(name))
        .collect();
    for path in &paths {
        fs::write(path, path.file_name().unwrap().as_encoded_bytes()).unwrap();
    }
    let build = Build {
        first: &paths[..2],
        rest: &paths[2..],
        tools: &[("mke2fs".into(), b"elf".to_vec()), ("mke2fs.conf".into(), b"[defaults]".to_vec())],
        sources: &[source(None)],
        apt: "Acquire::Check-Date \"false\";\n",
        lists: &[],
    };
    let entries = entries(&build.archive().unwrap());
    assert!(find(&entries, "init").unwrap().contains("mke2fs"));
    assert_eq!(find(&entries, "build/first"), Some("libc6_1%3a2_amd64.deb\ndpkg_1_amd64.deb\n"));
    assert_eq!(find(&entries, "build/rest"), Some("systemd_252_amd64.deb\n"));
    assert_eq!(find(&entries, "build/packages/dpkg_1_amd64.deb"), Some("dpkg_1_amd64.deb"));
    assert_eq!(find(&entries, "build/tools/mke2fs"), Some("elf"));
    assert_eq!(find(&entries, "etc/mke2fs.conf"), Some("[defaults]"));
    let list = find(&entries, "build/files/etc/apt/sources.list.d/debian.sources").unwrap();
    assert!(list.contains("Suites: bookworm\n") && !list.contains("Signed-By"), "{list}");
    assert!(find(&entries, "build/files/etc/apt/apt.conf.d/90posada").unwrap().contains("Check-Date"));
    assert!(find(&entries, "build/files/etc/fstab").unwrap().starts_with("/dev/vda"));
}

#[test]
fn a_package_that_has_gone_is_an_error() {
    let paths = [PathBuf::from("/nonexistent/x.deb")];
    let build = Build { first: &paths, rest: &[], tools: &[], sources: &[], apt: "", lists: &[] };
    assert!(build.archive().unwrap_err().to_string().contains("/nonexistent/x.deb"));
}

#[test]
fn debians_keys_stay_where_its_package_has_them_and_others_travel_along() {
    let folder = tempfile::tempdir().unwrap();
    let key = folder.path().join("mirror.gpg");
    fs::write(&key, "key").unwrap();
    let debian = "/usr/share/keyrings/debian-archive-keyring.gpg";
    let files = sources(&[source(Some(debian)), source(Some(key.to_str().unwrap()))], "").unwrap();
    let list = std::str::from_utf8(&files[0].1).unwrap();
    assert!(list.contains(&format!("Signed-By: {debian}\n")), "{list}");
    assert!(list.contains("Signed-By: /etc/apt/keyrings/mirror.gpg\n"), "{list}");
    assert_eq!(files[1..], [("etc/apt/keyrings/mirror.gpg".to_owned(), b"key".to_vec())]);
    assert!(sources(&[source(Some("/nonexistent/key.gpg"))], "").is_err());
}

#[test]
fn a_session_is_a_unit_that_ends_the_machine_and_has_the_console_to_itself() {
    let session = Session::command(["printf", "a b"]);
    let archive = Boot { session: Some(&session), keeps_disk: false }.archive().unwrap();
    let entries = entries(&archive);
    let unit = find(&entries, "posada/run/systemd/system/posada-session.service").unwrap();
    assert!(
        unit.contains("SuccessAction=poweroff-immediate\n")
            && unit.contains("FailureAction=poweroff-immediate\n")
    );
    let wants = "posada/run/systemd/system/multi-user.target.wants/posada-session.service";
    assert_eq!(find(&entries, wants), Some("/run/systemd/system/posada-session.service"));
    assert_eq!(find(&entries, "posada/run/systemd/system/serial-getty@ttyS0.service"), Some("/dev/null"));
    assert!(find(&entries, "posada/run/posada/session").unwrap().contains("arg=printf\0arg=a b\0"));
    assert_eq!(find(&entries, "posada/boot"), Some("options=rw\n"));
    assert!(
        find(&entries, "posada/network/posada-session.service.d/posada.conf")
            .unwrap()
            .contains("After=ifup@eth0.service")
    );
}

#[test]
fn a_disk_that_is_kept_is_checked_first_and_left_in_good_order() {
    let session = Session::shell();
    let archive = Boot { session: Some(&session), keeps_disk: true }.archive().unwrap();
    let entries = entries(&archive);
    assert_eq!(find(&entries, "posada/boot"), Some("options=ro\n"));
    let unit = find(&entries, "posada/run/systemd/system/posada-session.service").unwrap();
    assert!(unit.contains("SuccessAction=poweroff\n"), "{unit}");
    assert_eq!(
        find(&entries, "posada/network/posada-session.service.d/posada.conf"),
        None,
        "a person need not wait for the network"
    );
    assert!(
        find(&entries, "posada/run/posada/session").unwrap().contains("arg=/bin/login\0arg=-f\0arg=root\0")
    );
}

#[test]
fn without_a_session_the_systems_own_login_has_the_console() {
    let entries = entries(&Boot { session: None, keeps_disk: true }.archive().unwrap());
    assert_eq!(find(&entries, "posada/run/posada/session"), None);
    assert!(entries.iter().all(|(name, _)| !name.contains("posada/run/systemd")));
    // Commands from outside need no session.
    assert!(find(&entries, "posada/exec/posada-exec.service").unwrap().contains("agent --serve\n"));
    let autologin = FILES.iter().find(|(path, _)| path.contains("serial-getty")).unwrap().1;
    assert!(autologin.contains("--autologin root"));
}

#[test]
fn a_session_that_cannot_be_passed_on_is_refused() {
    let session = Session::command([""; 0]);
    assert!(Boot { session: Some(&session), keeps_disk: false }.archive().is_err());
}
