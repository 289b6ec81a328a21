//! Object storage whose `put` is on disk when it returns.
//!
//! object_store's `LocalFileSystem` never calls fsync: after a power cut a file it acknowledged may be empty or gone.
//! [`Durable`] wraps it and writes by itself:
//!
//! ```text
//! create name#123 beside the target ─▶ write ─▶ fsync ─▶ link (Create) or rename (Overwrite) ─▶ fsync the folder
//! ```
//!
//! Meanwhile the folder is [`held`], so that it is not exchanged for another.
//! Folders that had to be made are fsynced into their parents first. A reader sees the whole object or none, and
//! `Create` succeeds for one writer only (the kernel's `link` decides). Deleting and reading whole files are
//! `LocalFileSystem`'s own. Listings hide names that end in `#` and digits, so a file left by a kill is invisible.
//! [`Durable::sweep`] removes such leftovers.
//!
//! Files are 0600 and folders 0750: a checkpoint holds rows and SQL.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use bytes::Bytes;
use datafusion::execution::object_store::ObjectStoreUrl;
use futures::stream::BoxStream;
use futures::{StreamExt, TryFutureExt};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode,
    PutMultipartOptions, PutOptions, PutPayload, PutResult, RenameOptions, Result as StoreResult, UploadPart,
};
use uuid::Uuid;
use walkdir::WalkDir;

use super::{held, s3};
use crate::connector::{TableDefinition, redact};
use crate::point::point;
use crate::{Error, Part, Result};

const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o750;

/// A leftover younger than this may be a write in progress.
const LEFTOVER_AGE: Duration = Duration::from_secs(3600);

/// Of one folder in a row.
const LISTINGS_MAX: usize = 20;

/// An address, resolved: which store, and where in it.
#[derive(Debug, Clone)]
pub struct Location {
    pub store: Arc<dyn ObjectStore>,
    pub path: Path,
    /// The folder or file on this machine, where it is one. It need not exist.
    pub local: Option<PathBuf>,
    /// How DataFusion names the store.
    pub url: ObjectStoreUrl,
    /// What an address of the store begins with, for messages.
    shown: String,
}

impl Location {
    /// A path or `file://` URL is durable local storage, `s3://BUCKET/PATH` is S3, as the environment says how to reach it
    /// ([`s3`]); `memory://NAME` is one store per NAME in this process (tests).
    ///
    /// # Errors
    /// Another scheme, a path that cannot be one of an object, settings of S3 that cannot work. Nothing is created or asked.
    pub fn parse(address: &str) -> Result<Self> {
        Self::with_options(address, &BTreeMap::new())
    }

    /// LOCATION of a table, whose options may say how to reach it ([`s3::OPTIONS`]).
    ///
    /// # Errors
    /// As [`Location::parse`].
    pub fn of_table(table: &TableDefinition) -> Result<Self> {
        let located = Self::with_options(&table.location, &table.options);
        located.map_err(|error| error.at(table.place.clone()).about(Part::Location))
    }

    fn with_options(address: &str, options: &BTreeMap<String, String>) -> Result<Self> {
        let invalid =
            |e: &dyn fmt::Display| Error::user(format!("{:?} is not a usable path", redact(address))).cause(e);
        match address.split_once("://") {
            None | Some(("file", _)) => {
                let path = match address.strip_prefix("file://") {
                    None => PathBuf::from(address),
                    Some(rest) if rest.starts_with('/') => {
                        let decoded = Path::from_url_path(rest).map_err(|e| invalid(&e))?;
                        FilePath::new("/").join(decoded.as_ref())
                    }
                    Some(_) => return Err(invalid(&"a file URL begins with three slashes, as file:///data")),
                };
                let local = resolve(&path).map_err(|e| invalid(&e))?;
                let path = Path::from_absolute_path(&local).map_err(|e| invalid(&e))?;
                // Not the scheme "file": that is DataFusion's own store, which COPY … TO writes with.
                let url = ObjectStoreUrl::parse("poundlock://local").map_err(|e| invalid(&e))?;
                Ok(Self { store: Arc::new(Durable::new()), path, local: Some(local), url, shown: "/".into() })
            }
            Some(("memory", rest)) => {
                let (name, path) = rest.split_once('/').unwrap_or((rest, ""));
                let path = Path::parse(path.trim_matches('/')).map_err(|e| invalid(&e))?;
                let url = ObjectStoreUrl::parse(format!("memory://{name}")).map_err(|e| invalid(&e))?;
                Ok(Self { store: memory(name), path, local: None, shown: url.as_str().to_string(), url })
            }
            Some(("s3" | "s3a", rest)) => {
                let (bucket, path) = rest.split_once('/').unwrap_or((rest, ""));
                if bucket.is_empty() || bucket.contains(['@', ':', '?', '#']) {
                    let hint = "write s3://BUCKET/PATH; keys and endpoint are not in it but in AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL";
                    return Err(invalid(&"it has no name of a bucket").hint(hint));
                }
                let path = Path::parse(path.trim_matches('/')).map_err(|e| invalid(&e))?;
                let url = format!("s3{}://{bucket}", s3::distinction(options));
                let url = ObjectStoreUrl::parse(url).map_err(|e| invalid(&e))?;
                let store = s3::Bucket::open(bucket, options)?;
                Ok(Self { store, path, local: None, url, shown: format!("s3://{bucket}/") })
            }
            Some((scheme @ ("gs" | "az" | "abfs" | "abfss" | "http" | "https"), _)) => {
                Err(Error::user(format!("{}: {scheme} is not a kind of storage yet", redact(address)))
                    .hint("use s3://BUCKET/PATH, a local path or a file:/// URL"))
            }
            Some((scheme, _)) => Err(Error::user(format!("{}: {scheme} is not a kind of storage", redact(address)))
                .hint("use s3://BUCKET/PATH, a local path or a file:/// URL")),
        }
    }

    /// For messages.
    pub fn describe(&self, path: &Path) -> String {
        format!("{}{path}", self.shown)
    }
}

/// Stores of `memory://NAME`: two openings of one name see the same objects.
fn memory(name: &str) -> Arc<dyn ObjectStore> {
    static STORES: LazyLock<Mutex<BTreeMap<String, Arc<InMemory>>>> = LazyLock::new(Mutex::default);
    let mut stores = STORES.lock().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(stores.entry(name.to_string()).or_default()) as Arc<dyn ObjectStore>
}

/// Absolute, without `..` and links, as far as it exists.
fn resolve(path: &FilePath) -> io::Result<PathBuf> {
    let absolute = std::path::absolute(path)?;
    let mut existing = absolute.as_path();
    let mut rest = vec![];
    loop {
        match existing.canonicalize() {
            Ok(base) => return Ok(rest.iter().rev().fold(base, |path, name| path.join(name))),
            Err(e) if e.kind() == ErrorKind::NotFound => {
                let name =
                    existing.file_name().ok_or_else(|| io::Error::other("'..' leads through a missing folder"))?;
                rest.push(name.to_owned());
                existing = existing.parent().ok_or(e)?;
            }
            Err(e) => return Err(e),
        }
    }
}

/// See the module's documentation. Paths are absolute: the root of the store is the root of the file system.
#[derive(Debug, Clone)]
pub struct Durable {
    inner: Arc<LocalFileSystem>,
}

impl Durable {
    pub fn new() -> Self {
        Self { inner: Arc::new(LocalFileSystem::new()) }
    }

    /// Removes, in this folder and `depth` levels below it, what writers left that were killed more than an hour ago.
    ///
    /// # Errors
    /// A folder cannot be read; a missing one is none.
    pub fn sweep(folder: &FilePath, depth: usize) -> io::Result<usize> {
        let entries = match std::fs::read_dir(folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(0),
            entries => entries?,
        };
        let mut removed = 0;
        for entry in entries {
            let entry = entry?;
            if depth > 0 && entry.file_type()?.is_dir() {
                removed += Self::sweep(&entry.path(), depth - 1)?;
                continue;
            }
            // Of files that count only the name is looked at: there may be very many.
            if !entry.file_name().to_str().is_some_and(is_aside) {
                continue;
            }
            let age = entry.metadata().and_then(|m| m.modified()).map(|at| SystemTime::now().duration_since(at));
            // Whoever finished or removed it in between has done the work.
            if matches!(age, Ok(Ok(age)) if age > LEFTOVER_AGE) && std::fs::remove_file(entry.path()).is_ok() {
                removed += 1;
            }
        }
        Ok(removed)
    }
}

impl Default for Durable {
    fn default() -> Self {
        Self::new()
    }
}

impl fmt::Display for Durable {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "Durable({})", self.inner)
    }
}

#[async_trait]
impl ObjectStore for Durable {
    async fn put_opts(&self, location: &Path, payload: PutPayload, options: PutOptions) -> StoreResult<PutResult> {
        let create = match options.mode {
            PutMode::Create => true,
            PutMode::Overwrite => false,
            PutMode::Update(_) => {
                return Err(object_store::Error::NotImplemented {
                    operation: "put of a given version".into(),
                    implementer: self.to_string(),
                });
            }
        };
        let path = self.inner.path_to_filesystem(location)?;
        blocking(move || put(&path, &payload, create)).await
    }

    async fn put_multipart_opts(&self, to: &Path, _: PutMultipartOptions) -> StoreResult<Box<dyn MultipartUpload>> {
        Ok(Box::new(Upload { store: self.clone(), to: to.clone(), parts: vec![] }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> StoreResult<GetResult> {
        self.inner.get_opts(location, options).await
    }

    /// On this thread: the bytes are mostly in the page cache, and to wake another thread for a read takes longer than the
    /// read.
    async fn get_ranges(&self, location: &Path, ranges: &[Range<u64>]) -> StoreResult<Vec<Bytes>> {
        let path = self.inner.path_to_filesystem(location)?;
        read(&path, ranges).map_err(|e| match e.kind() {
            ErrorKind::NotFound => object_store::Error::NotFound { path: path.display().to_string(), source: e.into() },
            _ => generic(e, &path),
        })
    }

    fn delete_stream(&self, paths: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        self.inner.delete_stream(paths)
    }

    /// `LocalFileSystem` asks for the metadata of each file three times, which is most of what listing a lake takes.
    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        let folder = self.inner.path_to_filesystem(prefix.unwrap_or(&Path::ROOT));
        let found = async move { blocking(move || list(&folder?)).await };
        found.map_ok(|found| futures::stream::iter(found.into_iter().map(Ok))).try_flatten_stream().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        self.inner.list_with_offset(prefix, offset)
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> StoreResult<ListResult> {
        self.inner.list_with_delimiter(prefix).await
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> StoreResult<()> {
        Err(self.unused("copy"))
    }

    async fn rename_opts(&self, _: &Path, _: &Path, _: RenameOptions) -> StoreResult<()> {
        Err(self.unused("rename"))
    }
}

impl Durable {
    /// A file below a folder whose name is as wanted; the first that is met. `None` too where there is no folder. Blocks.
    ///
    /// # Errors
    /// A folder that cannot be read.
    pub fn find(folder: &FilePath, is_wanted: impl Fn(&str) -> bool) -> StoreResult<Option<Path>> {
        for entry in WalkDir::new(folder).min_depth(1).follow_links(true) {
            let entry = match entry {
                Err(e) if e.io_error().is_some_and(|e| e.kind() == ErrorKind::NotFound) => continue,
                entry => entry.map_err(|e| generic(e.into(), folder))?,
            };
            if entry.file_type().is_file() && entry.file_name().to_str().is_some_and(&is_wanted) {
                return Ok(Some(Path::from_absolute_path(entry.path())?));
            }
        }
        Ok(None)
    }

    /// Nothing here copies or renames; a version that is not fsynced must not slip in.
    fn unused(&self, operation: &str) -> object_store::Error {
        object_store::Error::NotImplemented { operation: operation.into(), implementer: self.to_string() }
    }
}

/// Parts are kept in memory until the end: what we write fits there anyway (one batch's rows, encoded).
#[derive(Debug)]
struct Upload {
    store: Durable,
    to: Path,
    parts: Vec<Bytes>,
}

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.extend(data);
        Box::pin(std::future::ready(Ok(())))
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        let payload = std::mem::take(&mut self.parts).into_iter().collect();
        self.store.put_opts(&self.to, payload, PutMode::Overwrite.into()).await
    }

    async fn abort(&mut self) -> StoreResult<()> {
        self.parts.clear();
        Ok(())
    }
}

/// All files below; a missing folder has none. If a file vanishes meanwhile, others may have come in its place: it is listed anew.
fn list(folder: &FilePath) -> StoreResult<Vec<ObjectMeta>> {
    for _ in 0..LISTINGS_MAX {
        if let Some(found) = list_once(folder)? {
            return Ok(found);
        }
    }
    Err(generic(io::Error::other("files vanish whenever it is listed"), folder))
}

/// `None`: a file has vanished meanwhile.
fn list_once(folder: &FilePath) -> StoreResult<Option<Vec<ObjectMeta>>> {
    let mut found = vec![];
    for entry in WalkDir::new(folder).min_depth(1).follow_links(true) {
        let is_gone = |e: &walkdir::Error| e.io_error().is_some_and(|e| e.kind() == ErrorKind::NotFound);
        let failed = |e: walkdir::Error| generic(e.into(), folder);
        let entry = match entry {
            Err(e) if is_gone(&e) => continue,
            entry => entry.map_err(failed)?,
        };
        if !entry.file_type().is_file() || entry.file_name().to_str().is_some_and(is_aside) {
            continue;
        }
        let metadata = match entry.metadata() {
            Err(e) if is_gone(&e) => return Ok(None),
            metadata => metadata.map_err(failed)?,
        };
        let location = Path::from_absolute_path(entry.path())?;
        let last_modified = metadata.modified().map_err(|e| generic(e, entry.path()))?.into();
        found.push(ObjectMeta { location, last_modified, size: metadata.len(), e_tag: None, version: None });
    }
    Ok(Some(found))
}

fn read(path: &FilePath, ranges: &[Range<u64>]) -> io::Result<Vec<Bytes>> {
    let mut file = File::open(path)?;
    let size = file.metadata()?.len();
    let part = |range: &Range<u64>| {
        let length = range.end.saturating_sub(range.start);
        // Of a footer that lies, as little as there is.
        let mut bytes = Vec::with_capacity(usize::try_from(length.min(size)).map_err(io::Error::other)?);
        file.seek(SeekFrom::Start(range.start))?;
        match (&mut file).take(length).read_to_end(&mut bytes)? as u64 == length {
            true => Ok(Bytes::from(bytes)),
            false => Err(io::Error::new(ErrorKind::UnexpectedEof, format!("it ends before byte {}", range.end))),
        }
    };
    ranges.iter().map(part).collect()
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> StoreResult<T> + Send + 'static) -> StoreResult<T> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => runtime.spawn_blocking(work).await?,
        Err(_) => work(),
    }
}

fn put(path: &FilePath, payload: &PutPayload, create: bool) -> StoreResult<PutResult> {
    point!("durable::before_write", |error| generic(io::Error::other(error), path));
    let folder = path.parent().ok_or_else(|| generic(io::Error::other("the root is a folder"), path))?;
    let held = hold(folder).map_err(|e| generic(e, folder))?;
    let (mut file, aside) = open_aside(path, folder).map_err(|e| generic(e, path))?;
    let placed = (|| {
        payload.iter().try_for_each(|chunk| file.write_all(chunk))?;
        file.sync_all()?;
        drop(file);
        point!("durable::before_place", io::Error::other);
        if create { std::fs::hard_link(&aside, path) } else { std::fs::rename(&aside, path) }
    })();
    if create || placed.is_err() {
        // A leftover that cannot be removed is swept later.
        std::fs::remove_file(&aside).ok();
    }
    match placed {
        Ok(()) => {}
        Err(e) if create && e.kind() == ErrorKind::AlreadyExists => {
            // Another writer may be between its link and its fsync: what we report as there must be there for good.
            held.sync_all().map_err(|e| generic(e, folder))?;
            return Err(object_store::Error::AlreadyExists { path: path.display().to_string(), source: e.into() });
        }
        Err(e) => return Err(generic(e, path)),
    }
    point!("durable::after_place", |error| generic(io::Error::other(error), path));
    held.sync_all().map_err(|e| generic(e, folder))?;
    Ok(PutResult { e_tag: None, version: None })
}

/// A new file beside the target, under a name that listings hide.
fn open_aside(path: &FilePath, folder: &FilePath) -> io::Result<(File, PathBuf)> {
    let name = path.file_name().ok_or_else(|| io::Error::other("the path has no name"))?;
    let mut aside = name.to_owned();
    aside.push(format!("#{}", Uuid::new_v4().as_u64_pair().0));
    let aside = folder.join(aside);
    let file = OpenOptions::new().write(true).create_new(true).mode(FILE_MODE).open(&aside)?;
    Ok((file, aside))
}

/// It is made if need be.
fn hold(folder: &FilePath) -> io::Result<File> {
    match held::shared(folder) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            create_folders(folder)?;
            held::shared(folder)
        }
        held => held,
    }
}

/// Whether it is the name of a file that is being written, or was when its writer was killed.
pub fn is_aside(name: &str) -> bool {
    name.rsplit_once('#').is_some_and(|(_, end)| !end.is_empty() && end.bytes().all(|b| b.is_ascii_digit()))
}

/// Makes the folder and what is missing above it, each fsynced into its parent.
///
/// # Errors
/// No permission, a file in the way, disk trouble.
pub fn create_folders(folder: &FilePath) -> io::Result<()> {
    let create = || match DirBuilder::new().mode(FOLDER_MODE).create(folder) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists && folder.is_dir() => Ok(()),
        created => created,
    };
    match create() {
        // Some file systems say so of a folder whose parent is there: it is tried once more, not for ever.
        Err(e) if e.kind() == ErrorKind::NotFound => {
            create_folders(folder.parent().filter(|parent| *parent != FilePath::new("")).ok_or(e)?)?;
            create()?;
        }
        created => created?,
    }
    folder.parent().map_or(Ok(()), sync_folder)
}

/// What was put into it, renamed or removed is so for good.
///
/// # Errors
/// There is no such folder; disk trouble.
pub fn sync_folder(folder: &FilePath) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn generic(e: io::Error, path: &FilePath) -> object_store::Error {
    let source = io::Error::new(e.kind(), format!("{}: {e}", path.display()));
    object_store::Error::Generic { store: "Durable", source: Box::new(source) }
}

#[cfg(test)]
#[path = "durable/tests.rs"]
mod tests;
