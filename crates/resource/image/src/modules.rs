//! Linux kernel modules: what a `.ko` file says of itself, and the index files that modprobe reads.
//!
//! Distributions run depmod when a kernel package is installed, so the package itself has no `modules.dep`. All that
//! is needed for it is in each module's `.modinfo` section: zero-terminated `key=value` strings (`include/linux/
//! moduleinfo.h` and modpost), of which `depends`, `alias` and `softdep` matter here.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::io::{self, Read, Write as _};

use object::{Object, ObjectSection};

/// The most that a decompressed module may take; the largest of Debian's are 5 MB.
const MAX_MODULE: u64 = 64 << 20;

/// One module.
pub(crate) struct Module {
    /// Its path in the kernel's module folder, without a compression's suffix: `kernel/net/9p/9p.ko`.
    pub(crate) path: String,
    /// Names of the modules that must be there first.
    depends: Vec<String>,
    /// Names or aliases of modules that should be there first, if they exist.
    wants: Vec<String>,
    /// Patterns that it answers to: `virtio:d00000001v*`.
    aliases: Vec<String>,
    /// The ELF file, uncompressed: decompressing would otherwise be the guest's work.
    pub(crate) contents: Vec<u8>,
}

impl Module {
    /// Reads a module from the file `path`, relative to the kernel's module folder.
    ///
    /// # Errors
    /// What is wrong with the file.
    pub(crate) fn read(path: &str, contents: Vec<u8>) -> Result<Self, String> {
        let (path, contents) = decompress(path, contents).map_err(|error| format!("{path}: {error}"))?;
        let info = modinfo(&contents).map_err(|error| format!("{path} is no kernel module ({error})"))?;
        let mut module =
            Self { path, depends: Vec::new(), wants: Vec::new(), aliases: Vec::new(), contents: Vec::new() };
        for entry in info.split(|&byte| byte == 0) {
            let Some((key, value)) = std::str::from_utf8(entry).ok().and_then(|entry| entry.split_once('='))
            else {
                continue;
            };
            match key {
                "depends" => {
                    module.depends.extend(value.split(',').filter(|name| !name.is_empty()).map(canonical));
                }
                "softdep" => module.wants.extend(wanted_before(value)),
                "alias" => module.aliases.push(value.to_owned()),
                _ => {}
            }
        }
        module.contents = contents;
        Ok(module)
    }

    /// The name that the kernel knows it by: the file's, with `_` for `-`.
    pub(crate) fn name(&self) -> String {
        let file = self.path.rsplit('/').next().unwrap_or(&self.path);
        canonical(file.split(".ko").next().unwrap_or(file))
    }
}

fn canonical(name: &str) -> String {
    name.replace('-', "_")
}

/// The `pre:` part of `softdep=pre: a b post: c`.
fn wanted_before(softdep: &str) -> Vec<String> {
    let mut before = false;
    let mut wanted = Vec::new();
    for word in softdep.split_whitespace() {
        match word {
            "pre:" => before = true,
            "post:" => before = false,
            name if before => wanted.push(canonical(name)),
            _ => {}
        }
    }
    wanted
}

fn decompress(path: &str, contents: Vec<u8>) -> io::Result<(String, Vec<u8>)> {
    let reader: (&str, Box<dyn Read + '_>) = if let Some(path) = path.strip_suffix(".xz") {
        (path, Box::new(liblzma::read::XzDecoder::new(&contents[..])))
    } else if let Some(path) = path.strip_suffix(".gz") {
        (path, Box::new(flate2::read::GzDecoder::new(&contents[..])))
    } else if let Some(path) = path.strip_suffix(".zst") {
        let decoder = ruzstd::decoding::StreamingDecoder::new(&contents[..]).map_err(io::Error::other)?;
        (path, Box::new(decoder))
    } else {
        return Ok((path.to_owned(), contents));
    };
    let mut plain = Vec::new();
    reader.1.take(MAX_MODULE).read_to_end(&mut plain)?;
    Ok((reader.0.to_owned(), plain))
}

fn modinfo(elf: &[u8]) -> Result<&[u8], String> {
    let file = object::File::parse(elf).map_err(|error| error.to_string())?;
    let section = file.section_by_name(".modinfo").ok_or("it has no .modinfo section")?;
    section.data().map_err(|error| error.to_string())
}

/// The modules of a kernel, by name.
#[derive(Default)]
pub(crate) struct Modules(BTreeMap<String, Module>);

impl Modules {
    /// Adds a module.
    pub(crate) fn insert(&mut self, module: Module) {
        self.0.insert(module.name(), module);
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// All modules in the order of their names.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Module> {
        self.0.values()
    }

    /// Keeps those named in `wanted` and everything that they depend on.
    ///
    /// A name that is no module is left out (a kernel may have it built in, or not at all); so is a module with a
    /// dependency that is missing, for it could not be loaded.
    pub(crate) fn select(mut self, wanted: &[&str]) -> Self {
        let by_alias: BTreeMap<String, String> = self
            .0
            .iter()
            .flat_map(|(name, module)| module.aliases.iter().map(|alias| (canonical(alias), name.clone())))
            .collect();
        let mut chosen = BTreeSet::new();
        for name in wanted {
            let mut waiting = vec![canonical(name)];
            while let Some(name) = waiting.pop() {
                let order = match self.load_order(&name) {
                    Ok(order) => order,
                    Err(missing) => {
                        tracing::debug!(module = name, missing, "left out of the initramfs");
                        continue;
                    }
                };
                for name in order {
                    if !chosen.insert(name.clone()) {
                        continue;
                    }
                    let wants = self.0[&name].wants.iter();
                    waiting.extend(wants.map(|want| by_alias.get(want).unwrap_or(want).clone()));
                }
            }
        }
        self.0.retain(|name, _| chosen.contains(name));
        self
    }

    /// Compresses the modules above `limit` bytes, which most guests never load, so that a small guest has its memory
    /// to itself. Small ones, such as virtio's, stay ready to use.
    pub(crate) fn compress(&mut self, limit: usize) -> io::Result<()> {
        for module in self.0.values_mut().filter(|module| module.contents.len() > limit) {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
            gzip.write_all(&module.contents)?;
            module.contents = gzip.finish()?;
            module.path.push_str(".gz");
        }
        Ok(())
    }

    /// Everything that has to be loaded for `name`, dependencies first, itself last; or what is missing.
    fn load_order(&self, name: &str) -> Result<Vec<String>, String> {
        fn visit(
            modules: &Modules,
            name: &str,
            order: &mut Vec<String>,
            path: &mut Vec<String>,
        ) -> Result<(), String> {
            // A circle cannot be loaded, but must not hang us either.
            if order.iter().any(|other| other == name) || path.iter().any(|other| other == name) {
                return Ok(());
            }
            let module = modules.0.get(name).ok_or_else(|| name.to_owned())?;
            path.push(name.to_owned());
            for depends in &module.depends {
                visit(modules, depends, order, path)?;
            }
            path.pop();
            order.push(name.to_owned());
            Ok(())
        }
        let mut order = Vec::new();
        visit(self, name, &mut order, &mut Vec::new())?;
        Ok(order)
    }

    /// `modules.dep`: for each module its path and those of everything it needs, the first to be loaded last.
    pub(crate) fn dep(&self) -> String {
        let mut text = String::new();
        for (name, module) in &self.0 {
            let mut order = self.load_order(name).unwrap_or_default();
            order.pop();
            let _ = write!(text, "{}:", module.path);
            for name in order.iter().rev() {
                let _ = write!(text, " {}", self.0[name].path);
            }
            text.push('\n');
        }
        text
    }

    /// `modules.alias`: which module drives what device, by pattern.
    pub(crate) fn alias(&self) -> String {
        let mut text = String::new();
        for (name, module) in &self.0 {
            for alias in &module.aliases {
                let _ = writeln!(text, "alias {alias} {name}");
            }
        }
        text
    }
}

#[cfg(test)]
#[path = "modules_test.rs"]
pub(crate) mod tests;
