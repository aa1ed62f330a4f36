use super::*;

fn running() -> (tempfile::TempDir, Running) {
    let folder = tempfile::tempdir().unwrap();
    let running = Running::at(folder.path().join("running"));
    (folder, running)
}

fn start(running: &Running, name: &str, detached: bool) -> Entry {
    let mut entry = running.take(name).unwrap();
    let vsock = entry.vsock();
    entry.start("debian".into(), serde_json::json!({"memory": "1G"}), detached, vsock).unwrap();
    entry
}

/// What kill -9 does: the lock goes, everything else stays.
fn kill(entry: Entry) {
    let Entry { _lock: lock, .. } = &*std::mem::ManuallyDrop::new(entry);
    lock.unlock().unwrap();
}

#[test]
fn a_name_is_one_guests_at_a_time() {
    let (_folder, running) = running();
    let web = start(&running, "web", false);
    let refused = running.take("web").unwrap_err();
    let us = std::process::id();
    assert_eq!(refused.to_string(), format!("the guest `web` runs already (process {us})"));
    let _other = start(&running, "other", false);
    drop(web);
    start(&running, "web", false);
}

#[test]
fn what_runs_is_found_and_what_ended_leaves_its_log_if_nobody_saw_it() {
    let (_folder, running) = running();
    assert_eq!(running.list().unwrap(), []);
    let seen = start(&running, "seen", false);
    let unseen = start(&running, "unseen", true);
    fs::write(unseen.log(), "log").unwrap();
    let names: Vec<_> = running.list().unwrap().iter().map(|f| (f.name().to_owned(), f.runs())).collect();
    assert_eq!(names, [("seen".to_owned(), true), ("unseen".to_owned(), true)]);
    assert_eq!(running.running("seen").unwrap().started().unwrap().settings["memory"], "1G");
    seen.end(0).unwrap();
    unseen.end(3).unwrap();
    let [found] = &running.list().unwrap()[..] else { panic!() };
    assert!(found.name() == "unseen" && !found.runs() && !found.still_runs());
    assert_eq!(found.ended().unwrap().status, 3);
    assert_eq!(fs::read(&found.logs()[1]).unwrap(), b"log");
    assert!(running.running("unseen").is_err());
    assert!(running.remove("unseen").unwrap());
    assert!(!running.remove("unseen").unwrap());
    assert_eq!(running.list().unwrap(), []);
}

#[test]
fn what_a_killed_supervisor_leaves_is_cleared_away() {
    let (_folder, running) = running();
    for detached in [false, true] {
        let entry = start(&running, "web", detached);
        let (folder, sockets) = (entry.folder().to_owned(), [CONTROL, VSOCK]);
        for name in sockets {
            fs::write(folder.join(name), "").unwrap();
        }
        kill(entry);
        let found = running.find("web").unwrap();
        assert!(sockets.iter().all(|name| !folder.join(name).exists()));
        assert_eq!(found.is_some(), detached);
        if let Some(found) = found {
            assert!(!found.runs() && found.ended().is_none());
        }
        drop(running.take("web").unwrap());
    }
}

#[test]
fn a_running_guest_is_not_removed_and_damaged_records_are_none() {
    let (_folder, running) = running();
    let entry = start(&running, "web", true);
    assert!(matches!(running.remove("web"), Err(Error::Runs { .. })));
    fs::write(entry.folder().join(STARTED), "{").unwrap();
    assert_eq!(running.find("web").unwrap().unwrap().started(), None);
    for name in ["", "..", "a/b", "-a"] {
        assert!(matches!(running.take(name), Err(Error::Name(_))), "{name}");
        assert!(matches!(running.find(name), Err(Error::Name(_))), "{name}");
    }
}

#[test]
fn the_folder_is_the_users_alone() {
    let (folder, running) = running();
    let entry = start(&running, "web", false);
    for path in [entry.folder(), &folder.path().join("running")] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o777, 0o700, "{}", path.display());
    }
}
