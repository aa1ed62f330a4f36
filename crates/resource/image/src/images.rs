//! Images by name: found in the cache, or made.

use std::fs;
use std::path::{Path, PathBuf};

use crate::cache::{Cache, Entry, Manifest, Package};
use crate::error::{Error, Result};
use crate::guest;
use crate::progress::Progress;
use crate::recipe::{INITRD, KERNEL, RECIPES, Recipe};
use crate::session::{CONSOLE, Session};

/// The images of one user.
#[derive(Debug, Clone)]
pub struct Images {
    root: PathBuf,
    cache: Cache,
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
        Self { cache: Cache::new(&root), root }
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The names that can be asked for.
    pub fn names() -> Vec<&'static str> {
        RECIPES.iter().map(|recipe| recipe.name()).collect()
    }

    /// The image of this name: from the cache, or made and put there. Only the latter needs the network.
    ///
    /// # Errors
    /// [`Error`], each of which says what to do. A failure leaves the cache as it was.
    pub fn get(&self, name: &str, progress: &mut dyn Progress) -> Result<Image> {
        self.get_from(recipe(name)?, progress)
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
        self.update_from(recipe(name)?, progress)
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
        if let Some(made) = recipe.make(have, &mut staging, progress)? {
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

    /// Removes the images of a name (`debian`), or the one version or folder named, and returns what was removed.
    ///
    /// # Errors
    /// [`Error::NotCached`] if there is none; [`Error::Io`] if one cannot be removed.
    pub fn remove(&self, name: &str, progress: &mut dyn Progress) -> Result<Vec<Entry>> {
        let matches = |entry: &Entry| {
            let folder = entry.path.file_name().unwrap_or_default();
            entry.name == name || entry.version == name || folder == name
        };
        let entries: Vec<Entry> = self.list()?.into_iter().filter(matches).collect();
        if entries.is_empty() {
            return Err(Error::NotCached { name: name.to_owned() });
        }
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

fn recipe(name: &str) -> Result<&'static dyn Recipe> {
    let found = RECIPES.into_iter().find(|recipe| recipe.name() == name);
    found.ok_or_else(|| Error::UnknownImage { name: name.to_owned(), known: Images::names().join(", ") })
}

/// A complete image: what a board needs to boot it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    folder: PathBuf,
    manifest: Manifest,
}

impl Image {
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

    /// The initramfs for one session: the image's own archive, followed by one with the first process, the agent and
    /// the session.
    ///
    /// # Errors
    /// [`Error::Session`] if the session's command cannot be passed on, [`Error::Io`] if the cache cannot be read.
    pub fn initrd(&self, session: &Session) -> Result<Vec<u8>> {
        let ours = guest::archive(self.name(), session)?;
        let path = self.folder.join(INITRD);
        let mut initrd = fs::read(&path).map_err(Error::io("read", &path))?;
        // Between archives Linux skips zero bytes; each begins at a multiple of four.
        initrd.resize(initrd.len().next_multiple_of(4), 0);
        initrd.extend_from_slice(&ours);
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
        format!("console={console} panic=-1 cryptomgr.notests{quiet}")
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
mod tests;
