use super::*;

fn opened(path: &std::path::Path) -> File {
    std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap()
}

#[test]
fn readers_share_and_a_writer_is_alone() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (first, second) = (opened(file.path()), opened(file.path()));
    assert!(acquire(&first, false).unwrap());
    assert!(acquire(&second, false).unwrap());
    assert!(!acquire(&opened(file.path()), true).unwrap());
    drop((first, second));
    let writer = opened(file.path());
    assert!(acquire(&writer, true).unwrap());
    assert!(!acquire(&opened(file.path()), false).unwrap());
    assert!(!acquire(&opened(file.path()), true).unwrap());
    drop(writer);
    assert!(acquire(&opened(file.path()), true).unwrap());
}
