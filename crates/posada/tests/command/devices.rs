//! Disks, networks, folders and sockets, as Debian's own drivers use them.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use posada_boot::{Kernel, Source};
use posada_image::session::Session;
use posada_image::{Images, Silent};
use posada_pc::{Engine, Outcome, PcBuilder, Port};
use posada_virtio::console::Console as VirtioConsole;

use crate::support::{Console, cache, run, script, told};

#[test]
fn what_a_guest_writes_to_a_disk_is_in_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    fs::write(&disk, vec![0; 4 << 20]).unwrap();
    let disk_words = disk.to_str().unwrap();
    let write = "printf 'from the guest' | dd of=/dev/vda bs=512 seek=100 conv=fsync 2>/dev/null
        cat /sys/block/vda/size /sys/block/vda/serial; ls /sys/block/vda/mq | wc -l";
    for engine in ["translate", "interpret"] {
        let told = script(&["--disk", disk_words, "--cpus", "2", "--engine", engine], write);
        assert_eq!(told, "8192\nposada-02\n", "{engine}");
        let mut bytes = fs::read(&disk).unwrap();
        assert_eq!(&bytes[51200..51214], b"from the guest", "{engine}");
        bytes.fill(0);
        fs::write(&disk, bytes).unwrap();
    }
    let read_only = format!("{disk_words},ro");
    let told = script(
        &["--disk", &read_only],
        "cat /sys/block/vda/ro; dd if=/dev/zero of=/dev/vda 2>/dev/null || echo refused",
    );
    assert_eq!(told, "1\nrefused\n");
    let snapshot = format!("{disk_words},snapshot");
    let told = script(
        &["--disk", &snapshot],
        "printf gone | dd of=/dev/vda conv=fsync 2>/dev/null; blockdev --flushbufs /dev/vda; head -c 4 /dev/vda",
    );
    assert_eq!(told, "gone");
    assert!(fs::read(&disk).unwrap().iter().all(|byte| *byte == 0));
}

#[test]
fn a_file_system_on_a_disk_survives_from_run_to_run() {
    let folder = tempfile::tempdir().unwrap();
    let disk = folder.path().join("disk.img");
    fs::File::create(&disk).unwrap().set_len(64 << 20).unwrap();
    let disk = disk.to_str().unwrap();
    script(
        &["--disk", disk],
        "mke2fs -q /dev/vda 2>/dev/null >&2; mount -t ext4 /dev/vda /mnt
        dd if=/dev/urandom of=/mnt/a bs=1M count=20 2>/dev/null; cd /mnt; sha256sum a > sum; cd /; umount /mnt",
    );
    let told = script(
        &["--disk", disk],
        "mount -t ext4 /dev/vda /mnt; cd /mnt; sha256sum -c sum; fstrim -v /mnt >&2 || true",
    );
    assert_eq!(told, "a: OK\n");
}

#[test]
fn the_guest_reaches_the_host_and_the_host_a_published_port() {
    // The guest asks the host for as much as takes several buffers.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut bytes = Vec::new();
        stream.read_to_end(&mut bytes).unwrap();
        stream.write_all(&bytes).unwrap();
    });
    let told = script(
        &["--cpus", "2"],
        &format!(
            "dd if=/dev/urandom of=/tmp/a bs=1M count=3 2>/dev/null
            nc 10.0.2.2 {port} < /tmp/a > /tmp/b; cmp /tmp/a /tmp/b; cat /sys/class/net/eth0/mtu"
        ),
    );
    assert_eq!(told, "1500\n");
    server.join().unwrap();

    let free = || TcpListener::bind("[::]:0").unwrap().local_addr().unwrap().port();
    let (port, port6) = (free(), free());
    let (publish, publish6) = (format!("{port}:80"), format!("[::1]:{port6}:81/tcp6"));
    let mut console = Console::open(&["run", "debian", "--publish", &publish, "--publish", &publish6]);
    console.expect("# ");
    // The guest takes some seconds until it has an address of IPv6.
    for (host, port, guest_port) in [("127.0.0.1", port, 80), ("::1", port, 80), ("::1", port6, 81)] {
        console.send(&format!("echo 'from the guest' | nc -l -p {guest_port}; echo do''ne\n"));
        let began = Instant::now();
        loop {
            let mut text = String::new();
            if let Ok(mut stream) = TcpStream::connect((host, port)) {
                let _ = stream.read_to_string(&mut text);
            }
            if text == "from the guest\n" {
                break;
            }
            assert!(began.elapsed() < Duration::from_mins(2), "{host} {port}: {text:?}");
            std::thread::sleep(Duration::from_millis(100));
        }
        console.expect("done");
    }
}

#[test]
fn a_folder_is_shared_and_nothing_beside_it() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(folder.path().join("secret"), "secret").unwrap();
    std::os::unix::fs::symlink("../secret", shared.join("link")).unwrap();
    fs::write(shared.join("a"), "from the host").unwrap();
    let share = format!("{}:work", shared.display());
    let told = script(
        &["--share", &share],
        "mount -t virtiofs work /mnt; cat /mnt/a; cat /mnt/link /mnt/../secret 2>/dev/null || echo ' no more'
        mkdir /mnt/d; seq 100000 > /mnt/d/n; mv /mnt/d/n /mnt/n; rmdir /mnt/d; chmod 600 /mnt/n; ls /mnt; umount /mnt",
    );
    assert_eq!(told, "from the host no more\na\nlink\nn\n");
    assert_eq!(fs::read_to_string(shared.join("n")).unwrap().lines().count(), 100_000);
    let told = script(
        &["--share", &format!("{share},ro")],
        "mount -t virtiofs work /mnt; cat /mnt/a; touch /mnt/b 2>/dev/null || echo ' refused'",
    );
    assert_eq!(told, "from the host refused\n");
}

/// Reaches the host at port 77 of context 2, passes on what it reads there, then serves port 1000.
const SOCKETS: &str = r#"
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>
int main(void) {
    char text[100] = {0};
    struct sockaddr_vm host = {.svm_family = AF_VSOCK, .svm_cid = 2, .svm_port = 77};
    struct sockaddr_vm any = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = 1000};
    int s = socket(AF_VSOCK, SOCK_STREAM, 0), l = socket(AF_VSOCK, SOCK_STREAM, 0);
    if (bind(l, (void *)&any, sizeof any) || listen(l, 1)) return 1;
    if (connect(s, (void *)&host, sizeof host)) return 2;
    write(s, "hello\n", 6);
    int n = read(s, text, 99);
    printf("%.*s", n, text);
    int c = accept(l, 0, 0);
    n = read(c, text, 99);
    for (int i = 0; i < n; i++) text[i] ^= 0x20;
    write(c, text, n);
    return 0;
}
"#;

#[test]
fn sockets_reach_from_guest_to_host_and_back() {
    let folder = tempfile::tempdir().unwrap();
    let (source, program) = (folder.path().join("a.c"), folder.path().join("a"));
    fs::write(&source, SOCKETS).unwrap();
    let compiled = Command::new("cc").arg("-static").arg("-o").arg(&program).arg(&source).status().unwrap();
    assert!(compiled.success());
    let path = folder.path().join("sock");
    let listener = UnixListener::bind(folder.path().join("sock_77")).unwrap();
    let host = {
        let path = path.clone();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(b"from the host\n").unwrap();
            let mut back = UnixStream::connect(path).unwrap();
            back.write_all(b"CONNECT 1000\nabc").unwrap();
            let mut answer = String::new();
            back.read_to_string(&mut answer).unwrap();
            (line, answer)
        })
    };
    let arguments = [
        "run",
        "debian",
        "--vsock",
        path.to_str().unwrap(),
        "--",
        "sh",
        "-c",
        "cat > /tmp/a; chmod +x /tmp/a; /tmp/a",
    ];
    let output = run(arguments, &fs::read(program).unwrap());
    assert_eq!(
        (output.status.code(), &output.stdout[..]),
        (Some(0), &b"from the host\n"[..]),
        "{}",
        told(&output)
    );
    let (line, answer) = host.join().unwrap();
    assert_eq!(line, "hello\n");
    assert!(answer.starts_with("OK ") && answer.ends_with("\nABC"), "{answer:?}");
}

#[test]
fn the_host_gives_random_bytes_and_gets_memory_back() {
    let told = script(
        &[],
        "cat /sys/class/misc/hw_random/rng_current; head -c 100000 /dev/hwrng | wc -c
        ls /sys/bus/virtio/drivers/virtio_balloon | grep -c ^virtio",
    );
    assert_eq!(told, "virtio_rng.0\n100000\n1\n");
}

/// Where a console's output goes.
#[derive(Clone, Default)]
struct Sink(Arc<Mutex<Vec<u8>>>);

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Sink {
    fn wait_for(&self, text: &str) {
        let began = Instant::now();
        while !String::from_utf8_lossy(&self.0.lock().unwrap()).contains(text) {
            assert!(began.elapsed() < Duration::from_mins(5), "no {text:?}");
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

#[test]
fn the_virtio_console_is_a_terminal_of_the_guest() {
    let image = Images::at(cache().join("posada")).get("debian", &mut Silent).unwrap();
    let session = Session::shell();
    let kernel = Kernel::new(Source::file(fs::File::open(image.kernel()).unwrap()).unwrap())
        .initrd(Source::bytes(image.initrd(&session).unwrap()))
        .append(image.append(&session));
    let (serial, output) = (Sink::default(), Sink::default());
    let console = VirtioConsole::new(output.clone());
    let input = console.input();
    let mut pc = PcBuilder::new(kernel)
        .engine("translate".parse::<Engine>().unwrap())
        .serial(Port::Com1, serial.clone())
        .device(console)
        .build()
        .unwrap();
    let handle = pc.handle();
    let user = std::thread::spawn(move || {
        serial.wait_for("# ");
        handle.send_serial(Port::Com1, b"sh < /dev/hvc0 > /dev/hvc0 2>&1; poweroff -f\n").unwrap();
        assert!(input.send(b"echo $((6 * 7)) here\n"));
        output.wait_for("42 here");
        assert!(input.send(b"exit\n"));
    });
    assert_eq!(pc.run().unwrap(), Outcome::PoweredOff);
    user.join().unwrap();
}
