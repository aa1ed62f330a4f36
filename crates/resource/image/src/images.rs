//! Images by name: found in the cache, or made.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::cache::{Cache, Entry, Manifest, Package};
use crate::disk::files::Boot;
use crate::error::{Error, Result};
use crate::guest;
use crate::machine::Machine;
use crate::progress::Progress;
use crate::recipe::{DISK, INITRD, KERNEL, NAMES, Recipe, recipe};
use crate::session::{CONSOLE, Session};

/// The images of one user.
#[derive(Debug, Clone)]
pub struct Images {
    root: PathBuf,
    cache: Cache,
    machine: Option<Arc<dyn Machine>>,
}

impl Images {
    /// Those in the user's cache folder: `$XDG_CACHE_HOME/posada`, or `~/.cache/posada` (XDG Base Directory
    /// Specification). Nothing is created before an image is.
    ///
    /// # Errors
    /// [`Error::NoCacheFolder`] if there is no home either.
    pub fn open() -> Result<Self> {
        // The specification: a relative path is invalid and to be ignored.
        let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
        let home = || std::env::home_dir().filter(|home| home.is_absolute()).map(|home| home.join(".cache"));
        cache.or_else(home).map(|folder| Self::at(folder.join("posada"))).ok_or(Error::NoCacheFolder)
    }

    /// Those in another folder.
    pub fn at(root: impl Into<PathBuf>) -> Self {
        let root = root.into();
        Self { cache: Cache::new(&root), root, machine: None }
    }

    /// Brings a machine, in which disks are built. Without one, images that have a disk can be used only if they are
    /// cached.
    #[must_use]
    pub fn with_machine(mut self, machine: Arc<dyn Machine>) -> Self {
        self.machine = Some(machine);
        self
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The names that can be asked for; `SUITE` in one stands for a suite of Debian's, such as `bookworm`.
    pub fn names() -> Vec<&'static str> {
        NAMES.to_vec()
    }

    /// The image of this name: from the cache, or made and put there. Only the latter needs the network.
    ///
    /// # Errors
    /// [`Error`], each of which says what to do. A failure leaves the cache as it was.
    pub fn get(&self, name: &str, progress: &mut dyn Progress) -> Result<Image> {
        self.get_from(&*recipe(name)?, progress)
    }

    fn get_from(&self, recipe: &dyn Recipe, progress: &mut dyn Progress) -> Result<Image> {
        if let Some((folder, manifest)) = self.cache.find(recipe.name())? {
            return Ok(Image { folder, manifest });
        }
        let lock = self.cache.lock(progress)?;
        // Another process may have made it while this one waited for the lock.
        if let Some((folder, manifest)) = self.cache.find(recipe.name())? {
            progress.done();
            return Ok(Image { folder, manifest });
        }
        self.make(recipe, &lock, &[], progress)
    }

    /// Makes the newest version of the image of this name, unless that is the one that is cached. An older one stays,
    /// until it is [removed](Self::remove); [`get`](Self::get) returns the newer.
    ///
    /// # Errors
    /// As [`get`](Self::get).
    pub fn update(&self, name: &str, progress: &mut dyn Progress) -> Result<Image> {
        self.update_from(&*recipe(name)?, progress)
    }

    fn update_from(&self, recipe: &dyn Recipe, progress: &mut dyn Progress) -> Result<Image> {
        let lock = self.cache.lock(progress)?;
        let cached = self.cache.find(recipe.name())?;
        let have = cached.map(|(_, manifest)| manifest.packages).unwrap_or_default();
        self.make(recipe, &lock, &have, progress)
    }

    fn make(
        &self,
        recipe: &dyn Recipe,
        lock: &crate::cache::Lock,
        have: &[Package],
        progress: &mut dyn Progress,
    ) -> Result<Image> {
        let mut staging = self.cache.stage(lock)?;
        if let Some(made) = recipe.make(have, self.machine.as_deref(), &mut staging, progress)? {
            self.cache.commit(staging, made)?;
        }
        let found = self.cache.find(recipe.name())?;
        progress.done();
        found.map(|(folder, manifest)| Image { folder, manifest }).ok_or_else(|| Error::Damaged {
            name: recipe.name().to_owned(),
            path: self.root.clone(),
            problem: "what was just made cannot be read back".to_owned(),
        })
    }

    /// Every cached image, damaged ones included.
    ///
    /// # Errors
    /// [`Error::Io`] if the cache cannot be listed.
    pub fn list(&self) -> Result<Vec<Entry>> {
        self.cache.list()
    }

    /// The cached images of a name (`debian`), or the one version or folder named.
    ///
    /// # Errors
    /// [`Error::NotCached`] if there is none; [`Error::Io`] if the cache cannot be listed.
    pub fn matching(&self, name: &str) -> Result<Vec<Entry>> {
        let matches = |entry: &Entry| {
            let folder = entry.path.file_name().unwrap_or_default();
            entry.name == name || entry.version == name || folder == name
        };
        let entries: Vec<Entry> = self.list()?.into_iter().filter(matches).collect();
        if entries.is_empty() {
            return Err(Error::NotCached { name: name.to_owned() });
        }
        Ok(entries)
    }

    /// Removes the images that [match](Self::matching), and returns what was removed. Guests that stand on one lose it:
    /// [`Guests::check_unused`](crate::Guests::check_unused) knows of them.
    ///
    /// # Errors
    /// As [`matching`](Self::matching); [`Error::Io`] if one cannot be removed.
    pub fn remove(&self, name: &str, progress: &mut dyn Progress) -> Result<Vec<Entry>> {
        let entries = self.matching(name)?;
        self.cache.remove(&entries, progress)?;
        Ok(entries)
    }

    /// Removes all images, and returns what was removed.
    ///
    /// # Errors
    /// [`Error::Io`] if one cannot be removed.
    pub fn remove_all(&self, progress: &mut dyn Progress) -> Result<Vec<Entry>> {
        let entries = self.list()?;
        if !entries.is_empty() {
            self.cache.remove(&entries, progress)?;
        }
        Ok(entries)
    }
}

/// A complete image: what a board needs to boot it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    folder: PathBuf,
    manifest: Manifest,
}

impl Image {
    /// The image in this folder, which was made earlier and may not be the newest; or what is wrong with it.
    pub(crate) fn at_folder(folder: &Path) -> std::result::Result<Self, String> {
        let manifest = Manifest::read(folder)?;
        Ok(Self { folder: folder.to_owned(), manifest })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.manifest.name
    }

    /// Its version, the kernel's release: what `uname -r` says in the guest.
    pub fn version(&self) -> &str {
        &self.manifest.version
    }

    /// The packages that it was made from.
    pub fn packages(&self) -> &[Package] {
        &self.manifest.packages
    }

    /// The kernel: a bzImage, exactly as its distribution ships it.
    pub fn kernel(&self) -> PathBuf {
        self.folder.join(KERNEL)
    }

    /// The disk that its system is on, if it has one: an image file that must not be written to, but may be the backing
    /// file of one that is. The guest is to have it as its first virtio block device.
    pub fn disk(&self) -> Option<PathBuf> {
        self.manifest.files.iter().any(|file| file.name == DISK).then(|| self.folder.join(DISK))
    }

    /// How much memory a guest of this image should have at least, in bytes.
    pub fn memory(&self) -> u64 {
        if self.disk().is_some() { 1 << 30 } else { 512 << 20 }
    }

    /// The initramfs for one session: the image's own archive, followed by one with the first process, the agent and
    /// the session. The changes to the disk, if the image has one, are lost after the run.
    ///
    /// # Errors
    /// [`Error::Session`] if the session's command cannot be passed on, [`Error::Io`] if the cache cannot be read.
    pub fn initrd(&self, session: &Session) -> Result<Vec<u8>> {
        if self.disk().is_some() {
            return self.initrd_for_disk(Some(session), false);
        }
        self.with_archive(&guest::archive(self.name(), session)?)
    }

    /// The initramfs that starts the system on the disk, for an image that has one. Without a session there is a login
    /// on the console, again and again; with one, the guest powers off when it ends. `keeps_disk` says whether the disk
    /// is kept after the run, and so must be left in good order.
    ///
    /// # Errors
    /// As [`initrd`](Self::initrd).
    pub fn initrd_for_disk(&self, session: Option<&Session>, keeps_disk: bool) -> Result<Vec<u8>> {
        self.with_archive(&Boot { session, keeps_disk }.archive()?)
    }

    fn with_archive(&self, ours: &[u8]) -> Result<Vec<u8>> {
        let path = self.folder.join(INITRD);
        let mut initrd = fs::read(&path).map_err(Error::io("read", &path))?;
        // Between archives Linux skips zero bytes; each begins at a multiple of four.
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        initrd.extend_from_slice(ours);
        Ok(initrd)
    }

    /// The kernel's command line for a session.
    ///
    /// The console is the first serial port; a kernel that panics restarts at once, which ends the run. The kernel's
    /// self-tests of its cryptography are left out: they are more than half of all instructions up to `/init` (0.87 of
    /// 1.6 thousand million with Linux 6.1). A session with a command boots quietly: only errors go to the console, where
    /// they explain why the command never ran.
    pub fn append(&self, session: &Session) -> String {
        let console = CONSOLE.trim_start_matches("/dev/");
        let quiet = if session.is_shell() { "" } else { " quiet" };
        // The kernel tries whether the timer works, and panics where a busy host serves it late. KVM's guests do not try.
        let common = format!("console={console} panic=-1 no_timer_check cryptomgr.notests");
        if self.disk().is_none() {
            return common + quiet;
        }
        // systemd tells its progress, which is more to people than the kernel's is. The first network card is eth0.
        let status = if session.is_shell() { " systemd.show_status=true" } else { "" };
        format!("{common} net.ifnames=0 quiet{status}")
    }

    /// Compares every file with the digest that was taken when it was made. A run compares lengths only.
    ///
    /// # Errors
    /// [`Error::Damaged`] if one differs, [`Error::Io`] if one cannot be read.
    pub fn verify(&self) -> Result<()> {
        for file in &self.manifest.files {
            let path = self.folder.join(&file.name);
            let digest = crate::cache::sha256(&path).map_err(Error::io("read", &path))?;
            if digest != file.sha256 {
                return Err(Error::Damaged {
                    name: self.name().to_owned(),
                    path: self.folder.clone(),
                    problem: format!("{} has the SHA-256 {digest}, not {}", file.name, file.sha256),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "images_test.rs"]
pub(crate) mod tests;
