use super::server::Server;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;

const ENOENT: i32 = 2;
const EROFS: i32 = 30;
const ESTALE: i32 = 116;
const EACCES_LIKE: [i32; 4] = [1, 2, 22, 40];

struct Client {
    folder: tempfile::TempDir,
    server: Server,
}

fn message(opcode: u32, node: u64, body: &[u8]) -> Vec<u8> {
    let len = 40 + body.len() as u32;
    [&len.to_le_bytes()[..], &opcode.to_le_bytes(), &7_u64.to_le_bytes(), &node.to_le_bytes(), &[0; 16], body]
        .concat()
}

fn words(words: &[u64]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn name(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

fn number(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(*bytes[at..].first_chunk().unwrap())
}

impl Client {
    fn new(read_only: bool) -> Self {
        let folder = tempfile::tempdir().unwrap();
        // What must stay out of reach, beside what is shared.
        fs::create_dir(folder.path().join("shared")).unwrap();
        fs::write(folder.path().join("secret"), "secret").unwrap();
        let root = super::tree::open_root(&folder.path().join("shared")).unwrap();
        let mut client = Self { folder, server: Server::new(root, read_only).unwrap() };
        let init = [7_u32, 38, 0, u32::MAX].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        let reply = client.ask(26, 1, &init).unwrap();
        assert_eq!((reply.len(), reply[0], reply[4]), (64, 7, 36));
        client
    }

    fn shared(&self) -> std::path::PathBuf {
        self.folder.path().join("shared")
    }

    /// The body of an answer, or the error number.
    fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        let reply = self.server.answer(&message(opcode, node, body), 1 << 21);
        assert_eq!(u32::from_le_bytes(*reply.first_chunk().unwrap()) as usize, reply.len());
        assert_eq!(number(&reply, 8), 7, "it answers this request");
        match i32::from_le_bytes(*reply[4..].first_chunk().unwrap()) {
            0 => Ok(reply[16..].to_vec()),
            error => Err(-error),
        }
    }

    fn lookup(&mut self, folder: u64, path: &str) -> Result<u64, i32> {
        self.ask(1, folder, &name(path)).map(|entry| number(&entry, 0))
    }

    fn open(&mut self, node: u64, flags: u64) -> Result<u64, i32> {
        self.ask(14, node, &words(&[flags])).map(|open| number(&open, 0))
    }

    fn read(&mut self, node: u64) -> Result<Vec<u8>, i32> {
        let handle = self.open(node, 0)?;
        let bytes = self.ask(15, node, &words(&[handle, 0, 4096, 0, 0]))?;
        self.ask(18, node, &words(&[handle, 0, 0]))?;
        Ok(bytes)
    }
}

#[test]
fn files_are_found_read_and_written() {
    let mut client = Client::new(false);
    fs::create_dir(client.shared().join("sub")).unwrap();
    fs::write(client.shared().join("sub/a"), "hello").unwrap();
    let sub = client.lookup(1, "sub").unwrap();
    let file = client.lookup(sub, "a").unwrap();
    assert_eq!(client.read(file).unwrap(), b"hello");
    let handle = client.open(file, 2).unwrap();
    let written = client.ask(16, file, &[words(&[handle, 5, 6, 0, 0]), b" world".to_vec()].concat()).unwrap();
    assert_eq!(written[0], 6);
    assert_eq!(fs::read(client.shared().join("sub/a")).unwrap(), b"hello world");
    // Create: read and write, permissions, mask.
    let create = [2_u32, 0o6755, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
    client.ask(35, sub, &[create, name("b")].concat()).unwrap();
    let made = fs::metadata(client.shared().join("sub/b")).unwrap();
    assert_eq!(made.permissions().mode() & 0o6000, 0, "no set-user-ID");
    assert_eq!(client.lookup(sub, "c"), Err(ENOENT));
}

#[test]
fn no_name_leads_out_of_the_folder() {
    let mut client = Client::new(false);
    symlink("../secret", client.shared().join("relative")).unwrap();
    symlink(client.folder.path().join("secret"), client.shared().join("absolute")).unwrap();
    symlink("..", client.shared().join("up")).unwrap();
    for path in ["..", ".", "", "../secret", "up/secret", "/etc/passwd", "./secret", "a\0b/..", "//"] {
        assert!(client.lookup(1, path).is_err(), "{path:?}");
    }
    for link in ["relative", "absolute", "up"] {
        // The link itself can be seen, and is for the guest to follow in its own tree.
        let node = client.lookup(1, link).unwrap();
        assert!(client.ask(5, node, &[]).is_ok());
        for flags in [0, 2, 0o1000, 0o200_000, 0o10_000_000] {
            assert!(client.open(node, flags).is_err(), "{link} {flags:o}");
        }
        assert!(client.ask(27, node, &words(&[0])).is_err());
        assert!(client.lookup(node, "secret").is_err(), "{link}");
        let create =
            [0o1102_u32, 0o644, 0, 0].iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<u8>>();
        assert!(client.ask(35, 1, &[create.clone(), name(link)].concat()).is_err());
        assert!(client.ask(35, node, &[create, name("new")].concat()).is_err());
        // Mode, size and times of what it leads to.
        for valid in [1, 8] {
            let mut attributes = words(&[valid, 0, 3]);
            attributes.resize(88, 0);
            let error = client.ask(4, node, &attributes).unwrap_err();
            assert!(EACCES_LIKE.contains(&error) || error == 95, "{link} {valid} {error}");
        }
    }
    for (from, to) in [("../secret", "x"), ("relative", "../x"), ("..", "x")] {
        assert!(client.ask(12, 1, &[words(&[1]), name(from), name(to)].concat()).is_err());
    }
    for opcode in [10, 11] {
        assert!(client.ask(opcode, 1, &name("../secret")).is_err());
        assert!(client.ask(opcode, 1, &name("..")).is_err());
    }
    assert_eq!(fs::read(client.folder.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::metadata(client.folder.path().join("secret")).unwrap().permissions().mode() & 0o7000, 0);
}

#[test]
fn a_folder_that_becomes_a_link_is_not_followed() {
    let mut client = Client::new(false);
    let inner = client.shared().join("inner");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("secret"), "mine").unwrap();
    let node = client.lookup(1, "inner").unwrap();
    fs::rename(&inner, client.shared().join("old")).unwrap();
    symlink("..", &inner).unwrap();
    let file = client.lookup(node, "secret").unwrap();
    assert_eq!(client.read(file).unwrap(), b"mine");
}

#[test]
fn nothing_changes_in_a_folder_that_is_only_read() {
    let mut client = Client::new(true);
    fs::write(client.shared().join("a"), "hello").unwrap();
    let file = client.lookup(1, "a").unwrap();
    assert_eq!(client.read(file).unwrap(), b"hello");
    for flags in [1, 2, 0o1000] {
        assert_eq!(client.open(file, flags), Err(EROFS));
    }
    let handle = client.open(file, 0).unwrap();
    for opcode in [4, 6, 8, 9, 10, 11, 12, 13, 16, 35, 43, 45] {
        let body = [words(&[handle, 0, 1, 0, 0, 0]), name("a"), name("b")].concat();
        assert_eq!(client.ask(opcode, 1, &body), Err(EROFS), "{opcode}");
    }
    assert_eq!(fs::read_dir(client.shared()).unwrap().count(), 1);
}

#[test]
fn devices_are_not_made_and_pipes_not_opened() {
    let mut client = Client::new(false);
    for (kind, possible) in [(0o060_000_u32, false), (0o020_000, false), (0o010_000, true), (0o100_000, true)]
    {
        let body = [(kind | 0o644).to_le_bytes(), [1, 3, 0, 0], [0; 4], [0; 4]].concat();
        let made = client.ask(8, 1, &[body, name(&format!("n{kind:o}"))].concat());
        assert_eq!(made.is_ok(), possible, "{kind:o}");
    }
    let pipe = client.lookup(1, "n10000").unwrap();
    assert!(client.open(pipe, 0).is_err());
}

#[test]
fn a_folder_is_listed_from_any_place_on() {
    let mut client = Client::new(false);
    for n in 0..100 {
        fs::write(client.shared().join(format!("file{n}")), "").unwrap();
    }
    let handle = number(&client.ask(27, 1, &words(&[0])).unwrap(), 0);
    for plus in [false, true] {
        let (mut names, mut offset) = (Vec::new(), 0);
        loop {
            let opcode = if plus { 44 } else { 28 };
            let listed = client.ask(opcode, 1, &words(&[handle, offset, 1000, 0, 0])).unwrap();
            assert!(listed.len() <= 1000);
            let mut entries = &listed[..];
            if entries.is_empty() {
                break;
            }
            while !entries.is_empty() {
                let entry = if plus { &entries[128..] } else { entries };
                offset = number(entry, 8);
                let len = u32::from_le_bytes(*entry[16..].first_chunk().unwrap()) as usize;
                names.push(String::from_utf8(entry[24..][..len].to_vec()).unwrap());
                entries = &entry[(24 + len).next_multiple_of(8)..];
            }
        }
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 102);
    }
}

#[test]
fn one_file_has_one_number_until_it_is_forgotten() {
    let mut client = Client::new(false);
    fs::write(client.shared().join("a"), "x").unwrap();
    let node = client.lookup(1, "a").unwrap();
    client.ask(13, 1, &[words(&[node]), name("b")].concat()).unwrap();
    assert_eq!(client.lookup(1, "b").unwrap(), node);
    assert_eq!(fs::metadata(client.shared().join("a")).unwrap().nlink(), 2);
    // Three lookups: two are forgotten one way, and one the other.
    assert!(client.server.answer(&message(2, node, &words(&[2])), 0).is_empty());
    assert!(client.read(node).is_ok());
    assert!(client.server.answer(&message(42, 0, &words(&[1, node, 1])), 0).is_empty());
    assert_eq!(client.read(node), Err(ESTALE));
    // The root stays.
    client.server.answer(&message(2, 1, &words(&[u64::MAX])), 0);
    assert!(client.lookup(1, "a").is_ok());
}

#[test]
fn nonsense_is_answered_with_errors() {
    let mut client = Client::new(false);
    for opcode in 0..64 {
        for node in [0, 1, 2, u64::MAX] {
            for body in [&[][..], &[0xff; 3], &[0xff; 200], &[0; 200]] {
                client.server.answer(&message(opcode, node, body), 1 << 16);
            }
        }
    }
    assert!(client.server.answer(&[0; 39], 4096).is_empty());
    assert!(client.server.answer(&message(3, 1, &[]), 15).is_empty(), "no room for an error");
    assert_eq!(client.server.answer(&message(3, 1, &[]), 16).len(), 16);
    assert!(Path::new(&client.shared()).exists());
}
