use super::*;
use crate::progress::Silent;

/// An apt whose `apt-get` and `apt-cache` are shell scripts, with the arguments after our options in `$command` and
/// `$names`.
struct Fake {
    folder: tempfile::TempDir,
    apt: Apt,
}

fn fake(script: &str) -> Fake {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("script");
    // Skip our options: -c FILE, -o OPTION …, -q.
    let prologue =
        "while :; do case $1 in -c|-o) shift 2;; -q) shift;; *) break;; esac; done; command=$1; shift\n";
    fs::write(&path, format!("{prologue}{script}")).unwrap();
    // A script that is passed to a shell is never opened as a program, which must not be open for writing anywhere.
    let program: Vec<OsString> = vec!["/bin/sh".into(), path.into()];
    let state = folder.path().join("state");
    fs::create_dir(&state).unwrap();
    let apt = Apt::with([program.clone(), program.clone(), program], &state).unwrap();
    Fake { folder, apt }
}

fn message<T: std::fmt::Debug>(result: Result<T>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_record_is_its_first_paragraph_with_continued_lines() {
    let text =
        "\nPackage: a\nVersion: 1:2-3\nDepends: b (= 1), c | d\nDescription: x\n more\n\nPackage: other\n";
    let record = parse_record(text);
    assert_eq!(record["Version"], "1:2-3");
    assert_eq!(record["Description"], "x\nmore");
    assert_eq!(record["Package"], "a");
    assert!(parse_record("").is_empty());
    assert!(!parse_record(" continued from nowhere\n:\n").contains_key("Version"));
}

#[test]
fn dependencies_are_names_without_versions_and_architectures() {
    let names =
        dependencies("kmod, linux-base (>= 4.3~), initramfs-tools (>= 0.120) | dracut:any,\n x[amd64]");
    assert_eq!(names, ["kmod", "linux-base", "initramfs-tools", "dracut", "x"]);
    assert!(dependencies("").is_empty());
}

#[test]
fn uris_tell_file_size_and_digest() {
    let text =
        "'http://x/pool/a_1%3a2_amd64.deb' a_1%3a2_amd64.deb 42 SHA256:00FF\nnoise\n'file:/b.deb' b.deb 7\n";
    let expected = [
        Download { file: "a_1%3a2_amd64.deb".into(), size: 42, sha256: Some("00ff".into()) },
        Download { file: "b.deb".into(), size: 7, sha256: None },
    ];
    assert_eq!(parse_uris(text), expected);
}

#[test]
fn file_names_that_leave_the_folder_are_not_believed() {
    assert!(
        parse_uris("'http://x' ../../etc/passwd 1\n'http://x' .profile 1\n'http://x' a 1e9\n'http")
            .is_empty()
    );
}

#[test]
fn progress_is_a_percentage_between_0_and_100() {
    assert_eq!(progress("dlstatus:1:12.5:Retrieving file 1 of 2"), Some(12.5));
    for line in ["Get:1 x", "dlstatus:", "dlstatus:1:NaN:x", "dlstatus:1:-1:x", "dlstatus:1:1e9:x"] {
        assert_eq!(progress(line), None, "{line}");
    }
}

#[test]
fn an_answer_of_any_bytes_and_any_length_is_read_to_its_end() {
    let mut output = vec![0xff; 3 << 20];
    output.extend(b"\ndlstatus:1:50:x\nlast\n");
    let mut seen = Vec::new();
    let (text, _) = read_answer(&output[..], &mut |percent| seen.push(percent));
    assert_eq!(seen, [50.0]);
    assert!(text.len() < 8 << 20);
}

#[test]
fn every_command_gets_state_of_our_own_and_nothing_of_the_systems() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script");
    fs::write(&script, "printf 'Version: 1\\nArguments: %s\\n' \"$*\"").unwrap();
    let program: Vec<OsString> = vec!["/bin/sh".into(), script.into()];
    let apt = Apt::with([program.clone(), program.clone(), program], folder.path()).unwrap();
    let arguments = &apt.record("x").unwrap()["Arguments"];
    for part in
        ["Dir::State", "Dir::State::Lists", "Dir::State::status", "Dir::Cache", "Dir::Cache::Archives"]
    {
        let ours = format!("{part}={}", folder.path().display());
        assert!(arguments.contains(&ours), "{part} is the system's: {arguments}");
    }
    assert!(arguments.contains(" -- x"), "a name is never an option: {arguments}");
}

#[test]
fn a_package_that_no_source_has_is_told_with_apts_own_words() {
    let fake = fake("echo 'E: No packages found' >&2; exit 100");
    let message = message(fake.apt.record("linux-image-cloud-amd64"));
    assert!(message.contains("package linux-image-cloud-amd64\n  E: No packages found\n"), "{message}");
}

#[test]
fn without_network_the_update_is_what_the_error_tells() {
    let mut fake = fake(
        "case $command in update) echo 'Err:1 http://mirror bookworm InRelease'
         echo 'W: Failed to fetch http://mirror: Could not resolve it' >&2;; *) exit 100;; esac",
    );
    fake.apt.update(&mut Silent).unwrap();
    let message = message(fake.apt.record("busybox-static"));
    assert!(message.contains("Err:1 http://mirror") && message.contains("Could not resolve it"), "{message}");
    assert!(message.contains("network"), "{message}");
}

#[test]
fn a_failing_download_shows_apts_last_lines_only() {
    let script = "i=0; while [ $i -lt 100 ]; do echo \"E: line $i\" >&2; i=$((i+1)); done; exit 100";
    let fake = fake(script);
    let message = message(fake.apt.download("a", &["a".into()], &[], fake.folder.path(), &mut Silent));
    assert!(message.contains("could not fetch a"), "{message}");
    assert!(message.contains("exit status: 100") && message.contains("line 99"), "{message}");
    assert!(!message.contains("line 50"), "{message}");
}

#[test]
fn a_download_advances_to_its_end_and_is_compared_with_the_list() {
    #[derive(Default)]
    struct Sum(u64, Option<u64>);

    impl Progress for Sum {
        fn stage(&mut self, _: &str, total: Option<u64>) {
            self.1 = total;
        }

        fn advance(&mut self, amount: u64) {
            self.0 += amount;
        }

        fn done(&mut self) {}
    }

    let fake = fake("echo dlstatus:1:30:x; echo dlstatus:1:20:x; echo dlstatus:1:60:x; printf abc > a.deb");
    let folder = fake.folder.path();
    let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"; // FIPS 180-2, B.1
    let expected = |size, sha256: &str| Download { file: "a.deb".into(), size, sha256: Some(sha256.into()) };
    let mut sum = Sum::default();
    fake.apt.download("a", &["a".into()], &[expected(3, abc)], folder, &mut sum).unwrap();
    assert_eq!((sum.0, sum.1), (3, Some(3)));

    for wrong in [expected(4, abc), expected(3, &abc.replace('b', "0"))] {
        let message = message(fake.apt.download("a", &["a".into()], &[wrong], folder, &mut Silent));
        assert!(message.contains("Debian's list says"), "{message}");
    }
}

#[test]
fn a_download_that_succeeds_without_a_file_is_an_error() {
    let fake = fake("exit 0");
    let missing = Download { file: "a.deb".into(), size: 1, sha256: None };
    assert!(
        message(fake.apt.download("a", &["a".into()], &[missing], fake.folder.path(), &mut Silent))
            .contains("a.deb")
    );
}

#[test]
fn a_system_without_apt_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let apt = Apt::with(
        ["get", "cache", "config"].map(|name| vec![format!("/nonexistent/apt-{name}").into()]),
        folder.path(),
    );
    assert!(message(apt.unwrap().record("x")).contains("/nonexistent/apt-cache"));
}
