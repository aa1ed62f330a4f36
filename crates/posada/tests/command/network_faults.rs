//! Networks and folders with peers that are slow, dead, hostile or many.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::support::{Console, posada, run, told};

/// A guest on a switch, with this address, at a shell.
fn on_switch(folder: &Path, name: &str, address: &str) -> Console {
    let mut command = posada();
    command
        .env("XDG_RUNTIME_DIR", folder)
        .args(["run", "debian", "--net", &format!("switch:{name}"), "--", "sh", "-c"])
        .arg(format!("ip address add {address}/24 dev eth0; ip link set eth0 up; echo up; sh"));
    let mut console = Console::start(command);
    console.expect("up\n");
    console
}

fn reaches(console: &mut Console, address: &str) {
    console.send(&format!("ping -c 3 -A -w 20 {address}\n"));
    console.expect(" 0% packet loss");
}

#[test]
fn guests_on_one_switch_reach_each_other_and_nobody_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut one = on_switch(folder.path(), "lab", "192.168.7.1");
    let mut two = on_switch(folder.path(), "lab", "192.168.7.2");
    reaches(&mut one, "192.168.7.2");
    // A megabyte from one to the other.
    one.send("nc -l -p 9000 > /tmp/a; echo sum $(md5sum < /tmp/a)\n");
    two.send(
        "dd if=/dev/urandom of=/tmp/a bs=64k count=16 2>/dev/null
        until nc 192.168.7.1 9000 < /tmp/a; do sleep 0.1; done; echo sum $(md5sum < /tmp/a)\n",
    );
    assert_eq!(one.expect_line("sum "), two.expect_line("sum "));
    // The switch survives a member's death, and takes another in its place.
    two.kill();
    let mut other = on_switch(folder.path(), "other", "192.168.7.3");
    other.send("ping -c 2 -w 3 192.168.7.1\n");
    other.expect(" 100% packet loss");
    let mut three = on_switch(folder.path(), "lab", "192.168.7.2");
    reaches(&mut three, "192.168.7.1");
    reaches(&mut one, "192.168.7.2");
}

/// What a web server in the guest says to a whole request, or nothing if it cannot be reached.
fn fetch(port: u16) -> Option<String> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_mins(2))).ok()?;
    stream.write_all(b"GET /page HTTP/1.0\r\n\r\n").ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split_once("\r\n\r\n").map(|(_, page)| page.to_owned())
}

#[test]
fn a_published_port_outlives_slow_dead_and_many_peers() {
    let free = || TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (web, nobody) = (free(), free());
    let publish = [web, nobody].map(|port| format!("127.0.0.1:{port}:{}", if port == web { 80 } else { 81 }));
    let mut guest = Console::open(&[
        "run",
        "debian",
        "--publish",
        &publish[0],
        "--publish",
        &publish[1],
        "--",
        "sh",
        "-c",
        "echo from the guest > /tmp/page; httpd -h /tmp; echo up; sleep 1000",
    ]);
    guest.expect("up\n");
    let began = Instant::now();
    while fetch(web).is_none_or(|page| page != "from the guest\n") {
        assert!(began.elapsed() < Duration::from_mins(1));
        std::thread::sleep(Duration::from_millis(50));
    }
    // A port is for one.
    let output = run(["run", "debian", "--publish", &publish[0], "--", "true"], b"");
    assert_eq!(output.status.code(), Some(125), "{}", told(&output));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(message.contains(&web.to_string()) && message.contains("another"), "{message}");
    // Half a request, and then silence.
    let slow: Vec<_> = (0..20)
        .map(|_| {
            let mut stream = TcpStream::connect(("127.0.0.1", web)).unwrap();
            stream.write_all(b"GET /pa").unwrap();
            stream
        })
        .collect();
    // Peers that are gone at once, some to where nobody listens.
    for round in 0..2000 {
        let port = if round % 20 == 0 { web } else { nobody };
        drop(TcpStream::connect(("127.0.0.1", port)));
    }
    // Many at the same time.
    let many: Vec<_> = (0..500).filter_map(|_| TcpStream::connect(("127.0.0.1", nobody)).ok()).collect();
    assert_eq!(fetch(web).as_deref(), Some("from the guest\n"));
    drop((slow, many));
    assert_eq!(fetch(web).as_deref(), Some("from the guest\n"));
    guest.signal("TERM");
    assert_eq!(guest.end(), Some(128 + 15));
}

/// Looks for ways out of a shared folder, and says which there are.
const ESCAPES: &str = r#"
mount -t virtiofs work /mnt; cd /mnt
for way in absolute relative folder/secret ../secret folder/../../secret loop deep/../../secret; do
    cat "$way" >/tmp/out 2>/dev/null && grep -q secret /tmp/out && echo "out by $way"
    echo changed 2>/dev/null > "$way"
done
ln -s /etc/hostname made; ln -s .. up; ln absolute hard 2>/dev/null; cat hard up/secret 2>/dev/null
readlink made
exec 3< doomed; read first <&3; echo $first; read line; read second <&3; echo "$second."
cat doomed 2>/dev/null || echo gone
echo new > doomed; cat doomed
read line; cat inside/secret inside/own 2>/dev/null || echo nothing
exec 3<&-; cd /; umount /mnt; echo unmounted
"#;

#[test]
fn there_is_no_way_out_of_a_shared_folder_and_the_host_may_change_it() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(folder.path().join("secret"), "secret").unwrap();
    symlink(folder.path().join("secret"), shared.join("absolute")).unwrap();
    symlink("../secret", shared.join("relative")).unwrap();
    symlink("..", shared.join("folder")).unwrap();
    symlink("loop", shared.join("loop")).unwrap();
    fs::create_dir(shared.join("deep")).unwrap();
    fs::create_dir(shared.join("inside")).unwrap();
    fs::write(shared.join("inside/own"), "own").unwrap();
    fs::write(shared.join("doomed"), "first\nsecond\n").unwrap();
    let share = format!("{}:work", shared.display());
    let mut guest = Console::open(&["run", "debian", "--share", &share, "--", "sh", "-c", ESCAPES]);
    guest.expect("first\n");
    fs::remove_file(shared.join("doomed")).unwrap();
    guest.send("go on\n");
    guest.expect("second.\n");
    guest.expect("new\n");
    // A folder that the guest knows becomes a link to outside.
    fs::rename(shared.join("inside"), folder.path().join("moved")).unwrap();
    symlink(folder.path(), shared.join("inside")).unwrap();
    guest.send("go on\n");
    guest.expect("unmounted\n");
    assert!(!guest.seen.contains("secret") && !guest.seen.contains("out by"), "{}", guest.seen);
    assert_eq!(guest.end(), Some(0));
    assert_eq!(fs::read(folder.path().join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_link(shared.join("made")).unwrap(), Path::new("/etc/hostname"));
}

#[test]
fn a_folder_shared_read_only_stays_as_it_is() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a"), "a").unwrap();
    fs::create_dir(folder.path().join("d")).unwrap();
    let share = format!("{}:work,ro", folder.path().display());
    let changes = "mount -t virtiofs work /mnt; cd /mnt
        for try in 'touch b' 'mkdir b' 'rm a' 'rmdir d' 'mv a b' 'chmod 777 a' 'chown 1 a' 'ln -s a b' 'ln a b' \
            'mknod b p' 'truncate -s 0 a' 'sh -c \"echo >> a\"' 'touch a'; do
            eval $try 2>/dev/null && echo $try
        done; cat a";
    let output = run(["run", "debian", "--share", &share, "--", "sh", "-c", changes], b"");
    assert_eq!(output.stdout, b"a", "{}", told(&output));
    assert_eq!(fs::read(folder.path().join("a")).unwrap(), b"a");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
}
