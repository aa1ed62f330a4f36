//! Makes the `debian` image for real: through this machine's apt-get and the network.
//!
//! Ignored by a plain `cargo test`; `cargo xtask test` runs it.

use std::fs;
use std::time::Instant;

use posada_image::session::Session;
use posada_image::{Images, Progress};

/// Collects the names of the stages, and whether each came to its end.
#[derive(Default)]
struct Stages(Vec<(String, Option<u64>, u64)>);

impl Progress for Stages {
    fn stage(&mut self, what: &str, total: Option<u64>) {
        self.0.push((what.to_owned(), total, 0));
    }

    fn advance(&mut self, amount: u64) {
        self.0.last_mut().expect("a stage comes first").2 += amount;
    }

    fn done(&mut self) {}
}

#[test]
#[ignore = "fetches 40 MB through apt-get"]
fn debian_is_fetched_once_and_used_without_network_from_then_on() {
    let folder = tempfile::tempdir().unwrap();
    // A folder that a careless command line would break on.
    let images = Images::at(folder.path().join("a cache"));
    let mut stages = Stages::default();
    let image = images.get("debian", &mut stages).unwrap();
    assert!(image.version().ends_with("-cloud-amd64"), "{}", image.version());
    let fetched = stages.0.iter().find(|(what, ..)| what.starts_with("Fetching linux-image")).unwrap();
    assert_eq!(fetched.1, Some(fetched.2), "the bar reaches its end");
    assert!(image.packages().iter().any(|package| package.name == "busybox-static"));
    image.verify().unwrap();

    // All that is needed again, and nothing else: no lists, packages or half entries.
    let entries: Vec<_> =
        fs::read_dir(images.root().join("images")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(entries.len(), 2, "{entries:?}");

    let mut stages = Stages::default();
    let start = Instant::now();
    assert_eq!(images.get("debian", &mut stages).unwrap(), image);
    assert!(stages.0.is_empty(), "nothing is to be done any more: {:?}", stages.0);
    println!("found in {:?}", start.elapsed());

    let initrd = image.initrd(&Session::shell()).unwrap();
    println!("kernel {} bytes, initrd {} bytes", fs::metadata(image.kernel()).unwrap().len(), initrd.len());
    if let Some(to) = std::env::var_os("POSADA_KEEP_INITRD") {
        fs::write(to, initrd).unwrap();
    }
}
