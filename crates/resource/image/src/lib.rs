//! What `posada run NAME` names: recipes, fetching, unpacking, the cache; and the guest's end of a session.
//!
//! An image is a kernel and an initramfs, made on the user's machine from a distribution's own packages. The `debian`
//! image takes the newest cloud kernel and busybox through the host's `apt-get`, with apt's state in a folder of ours:
//! no root, nothing installed, the host's own sources and keys. It is fetched once and cached; later runs need neither
//! apt nor the network. The `debian:SUITE` images have a disk with a whole system beside them, which is built in a guest:
//! whoever opens the [`Images`] brings a [`Machine`] for that. Named [`Guests`] keep what they change of it.
//!
//! | module        | what it does                                                                       |
//! |---------------|------------------------------------------------------------------------------------|
//! | [`session`]   | one command in a guest: its description, the protocol to its agent, the relay        |
//! | `images`      | [`Images`] and [`Image`]: by name, from the cache or made                            |
//! | `recipe`, `debian` | what there is, and how Debian's is made                                         |
//! | `disk`, `suites`   | disks with a whole system: their packages, the guest that builds them; suites of sources |
//! | `machine`     | [`Machine`], which runs that guest                                                   |
//! | `guests`      | [`Guests`] that have a name and keep their disk                                      |
//! | `cache`       | entries that are complete or not there; one maker at a time                          |
//! | `apt`, `deb`  | Debian packages: fetching (apt-get(8), apt.conf(5)), reading (deb(5))                |
//! | `packages`    | files of packages, for those who run programs of them elsewhere                      |
//! | `modules`     | kernel modules and what modprobe needs to know of them                               |
//! | `initramfs`   | newc archives (Linux's `driver-api/early-userspace/buffer-format.rst`)               |
//! | `guest`       | the first process, the agent and the configuration that every guest gets             |
//!
//! A boot of the image, up to the board:
//!
//! ```no_run
//! use posada_image::session::Session;
//! use posada_image::{Images, Silent};
//!
//! let image = Images::open()?.get("debian", &mut Silent)?;
//! let session = Session::command(["uname", "-r"]);
//! let kernel = image.kernel(); // load this
//! let initrd = image.initrd(&session)?; // and this, with
//! let append = image.append(&session); // this command line
//! # Ok::<(), posada_image::Error>(())
//! ```
//!
//! Looking into a cache needs no network and creates nothing:
//!
//! ```
//! # let folder = tempfile::tempdir().unwrap();
//! # let folder = folder.path();
//! use posada_image::{Error, Images, Silent};
//!
//! let images = Images::at(folder);
//! assert!(images.list()?.is_empty());
//! assert!(matches!(images.get("plan9", &mut Silent), Err(Error::UnknownImage { .. })));
//! # Ok::<(), Error>(())
//! ```

#![forbid(unsafe_code)]

mod apt;
mod cache;
mod deb;
mod debian;
mod disk;
mod error;
mod guest;
mod guests;
mod images;
mod initramfs;
mod machine;
mod modules;
mod packages;
mod progress;
mod recipe;
pub mod session;
mod suites;

pub use cache::{Entry, Package};
pub use error::{Error, Result};
pub use guests::{Guest, Guests, check_name};
pub use images::{Image, Images};
pub use initramfs::Initramfs;
pub use machine::{Machine, Task};
pub use packages::{PackageFile, PackageFiles};
pub use progress::{Progress, Silent};
