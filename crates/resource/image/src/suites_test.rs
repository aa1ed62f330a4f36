use super::*;

fn target(fields: &[(&str, &str)]) -> Record {
    let plain = [
        ("Created-By", "Packages"),
        ("Architecture", "amd64"),
        ("Origin", "Debian"),
        ("Component", "main"),
        ("Repo-URI", "http://deb.example/debian/"),
    ];
    plain.iter().chain(fields).map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn suite(release: &str) -> Record {
    target(&[("Release", release), ("Codename", release)])
}

#[test]
fn names_of_suites_are_words_that_go_into_paths() {
    for name in ["bookworm", "trixie", "stable", "bookworm-backports", "debian12"] {
        assert!(is_suite(name), "{name}");
    }
    for name in ["", "-o", "../etc", "Bookworm", "a b", "a/b", "a\0", &"a".repeat(41)] {
        assert!(!is_suite(name), "{name}");
    }
}

#[test]
fn a_suite_is_its_own_sources_with_its_fixes_and_nothing_else() {
    let security = target(&[
        ("Release", "bookworm-security"),
        ("Codename", "bookworm-security"),
        ("Repo-URI", "http://deb.example/debian-security/"),
    ]);
    let other_origin = target(&[("Release", "bookworm"), ("Origin", "Somebody")]);
    let index = target(&[("Release", "bookworm"), ("Created-By", "Translations")]);
    let contrib = target(&[("Release", "bookworm"), ("Component", "contrib")]);
    let targets = [
        suite("trixie"),
        suite("bookworm"),
        contrib,
        suite("bookworm-updates"),
        suite("bookworm-backports"),
        security,
        other_origin,
        index,
    ];
    let sources = choose("bookworm", &targets, "").unwrap();
    let names: Vec<&str> = sources.iter().map(|source| source.release.as_str()).collect();
    assert_eq!(names, ["bookworm", "bookworm-updates", "bookworm-security"]);
    let components: Vec<&str> = sources[0].components.iter().map(String::as_str).collect();
    assert_eq!(components, ["contrib", "main"]);
}

#[test]
fn a_source_that_goes_by_another_name_is_found_by_its_codename() {
    let stable = target(&[("Release", "stable"), ("Codename", "trixie"), ("Version", "13.1")]);
    for name in ["trixie", "stable"] {
        let sources = choose(name, std::slice::from_ref(&stable), "").unwrap();
        assert_eq!((sources[0].release.as_str(), sources[0].version.as_deref()), ("stable", Some("13.1")));
    }
}

#[test]
fn a_suite_that_no_source_has_is_told_with_those_that_there_are() {
    let targets = [suite("bookworm"), suite("bookworm-updates"), suite("trixie")];
    let error = choose("sid", &targets, "\n  Err:1 http://deb.example").unwrap_err().to_string();
    assert!(
        error.contains("`sid`") && error.contains("possible are debian:bookworm, debian:trixie\n"),
        "{error}"
    );
    assert!(error.contains("Err:1 http://deb.example"), "{error}");
    let error = choose("sid", &[], "").unwrap_err().to_string();
    assert!(error.contains("no Debian suite at all"), "{error}");
    // Fixes alone are no system.
    assert!(choose("sid", &[suite("sid-updates")], "").is_err());
}

#[test]
fn a_list_names_the_sources_with_their_keys_where_the_reader_has_them() {
    let mut sources = choose("bookworm", &[suite("bookworm"), suite("bookworm-updates")], "").unwrap();
    sources[0].signed_by = Some("/etc/keys/a.gpg,/etc/keys/b.gpg".to_owned());
    sources[1].signed_by = Some("-----BEGIN PGP PUBLIC KEY BLOCK-----\n.\nmQ".to_owned());
    let list = source_list(&sources, |path| path.replace("/etc", "/there"));
    assert_eq!(
        list,
        "Types: deb\nURIs: http://deb.example/debian/\nSuites: bookworm\nComponents: main\n\
         Signed-By: /there/keys/a.gpg /there/keys/b.gpg\n\n\
         Types: deb\nURIs: http://deb.example/debian/\nSuites: bookworm-updates\nComponents: main\n\
         Signed-By: -----BEGIN PGP PUBLIC KEY BLOCK-----\n .\n mQ\n"
    );
    let keys: Vec<_> = keys(&sources).into_iter().collect();
    assert_eq!(keys, [Path::new("/etc/keys/a.gpg"), Path::new("/etc/keys/b.gpg")]);
}

#[test]
fn keys_are_found_in_both_formats_of_source_files() {
    let deb822 = "# a comment\nTypes: deb\nURIs: http://other/\nSuites: bookworm\nSigned-By: /other.gpg\n\n\
                  Types: deb deb-src\nURIs: http://deb.example/debian\n# within\nSuites: bookworm\n bookworm-updates\n\
                  signed-by: /right.gpg\n";
    for release in ["bookworm", "bookworm-updates"] {
        let found = signed_by_deb822(deb822, "http://deb.example/debian/", release);
        assert_eq!(found.as_deref(), Some("/right.gpg"));
    }
    assert_eq!(signed_by_deb822(deb822, "http://deb.example/debian/", "trixie"), None);
    let lines = "deb http://deb.example/debian bookworm main\n\
                 deb-src [signed-by=/src.gpg] http://x bookworm main\n\
                 deb [ arch=amd64 signed-by=/right.gpg ] http://deb.example/debian/ bookworm main # why\n";
    let found = signed_by_line(lines, "http://deb.example/debian/", "bookworm");
    assert_eq!(found.as_deref(), Some("/right.gpg"));
    for text in ["", "deb", "deb [", "deb []", "deb [signed-by=/x]", ":\n:\n", " : \n\n\n"] {
        assert_eq!(signed_by_line(text, "u", "r"), None);
        assert_eq!(signed_by_deb822(text, "u", "r"), None);
    }
}

#[test]
fn the_lists_of_a_source_are_known_by_how_their_names_begin() {
    let file = "/state/lists/deb.example_debian_dists_bookworm_main_binary-amd64_Packages.lz4";
    let target = target(&[("Release", "bookworm"), ("Filename", file)]);
    assert_eq!(lists(&target, "main"), "deb.example_debian_dists_bookworm_");
    assert_eq!(lists(&Record::new(), "main"), "");
}
