//! `COPY … TO` a file or folder of this machine: all of it, or nothing.
//!
//! ```text
//! COPY ─▶ DataFusion's writer ─▶ hidden files beside the target ─▶ renamed when the statement has succeeded
//!                                                                └▶ removed when it failed or was cancelled
//! ```
//!
//! DataFusion's own store for files renames what a failed query left as if it were whole, tries without end where no file
//! can be made (`/proc`), and loses why a disk took no more; and what a cancelled query was at work on stays. So a COPY is
//! pointed at a store of its own. Only SIGKILL leaves the hidden files, `.poundlock-…`.
//!
//! The folder of a Parquet or Delta table that the pipeline writes is refused: what is in it is counted by commits, or by its log.

use std::fmt;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::{Path as FilePath, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use datafusion::common::tree_node::{Transformed, TreeNode, TreeNodeRecursion};
use datafusion::datasource::listing::ListingTableUrl;
use datafusion::execution::object_store::ObjectStoreUrl;
use datafusion::logical_expr::LogicalPlan;
use datafusion::logical_expr::dml::CopyTo;
use datafusion::prelude::SessionContext;
use futures::StreamExt;
use futures::stream::BoxStream;
use object_store::path::Path;
use object_store::{
    CopyOptions, GetOptions, GetResult, ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMultipartOptions,
    PutOptions, PutPayload, PutResult, UploadPart,
};
use tempfile::{Builder, NamedTempFile, TempPath};

use super::catalog::written_lake;
use crate::checkpoint::Location;
use crate::connector::redact;
use crate::{Error, Result};

type StoreResult<T> = object_store::Result<T>;

/// How DataFusion names the store.
const STORE: &str = "poundlock://copy";

/// Of the COPY in a plan that is going to be run.
///
/// # Errors
/// DataFusion's.
pub fn target(plan: &LogicalPlan) -> Result<Option<String>> {
    let mut target = None;
    if !matches!(plan, LogicalPlan::Explain(_)) {
        plan.apply(|node| {
            if let LogicalPlan::Copy(copy) = node {
                target = Some(copy.output_url.clone());
                return Ok(TreeNodeRecursion::Stop);
            }
            Ok(TreeNodeRecursion::Continue)
        })?;
    }
    Ok(target)
}

/// The plan with its COPY pointed aside.
///
/// # Errors
/// Nothing can be written there, or nothing must be.
pub async fn begin(plan: LogicalPlan, target: &str, context: &SessionContext) -> Result<(LogicalPlan, Copy)> {
    let url = local(target)?;
    let path = Location::parse(target)?.local.unwrap_or_default();
    if let Some((table, lake)) = written_lake(context, &path).await {
        let message = format!("COPY … TO '{target}' would write into the folder of table {table}, {}", lake.display());
        let hint = "the pipeline writes that table, by an INSERT of the files; COPY … TO another folder";
        return Err(Error::user(message).hint(hint));
    }
    probe(&path).map_err(|cause| cannot_write(target, cause))?;
    let aside = Aside::default();
    let store = ObjectStoreUrl::parse(STORE)?;
    context.register_object_store(store.as_ref(), Arc::new(aside.clone()));
    let pointed = plan.transform_down(|node| match node {
        LogicalPlan::Copy(copy) => Ok(Transformed::yes(LogicalPlan::Copy(CopyTo { output_url: url.clone(), ..copy }))),
        other => Ok(Transformed::no(other)),
    })?;
    Ok((pointed.data, Copy { target: target.to_string(), aside }))
}

/// What a COPY writes, until it is whole. Dropped before, nothing of it stays.
#[derive(Debug)]
pub struct Copy {
    /// As the user wrote it.
    target: String,
    aside: Aside,
}

impl Copy {
    /// All is written: puts it in its place.
    ///
    /// # Errors
    /// A file cannot be put there; those before it are.
    pub fn finish(self) -> Result<()> {
        let files = std::mem::take(&mut self.aside.state().files);
        for (aside, place) in files {
            let synced = File::open(&aside).and_then(|file| file.sync_all());
            synced.map_err(|cause| cannot_write(&self.target, cause))?;
            aside.persist(&place).map_err(|refused| cannot_write(&self.target, refused.error))?;
        }
        Ok(())
    }

    /// Why nothing could be written, if that is why the query failed.
    pub fn failure(&self) -> Option<Error> {
        self.aside.state().failure.take().map(|cause| cannot_write(&self.target, cause))
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        let mut state = self.aside.state();
        state.is_over = true;
        state.files.clear();
    }
}

fn cannot_write(target: &str, cause: io::Error) -> Error {
    let hint = match cause.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            "make room there, or COPY … TO another disk; nothing of this one was kept"
        }
        ErrorKind::PermissionDenied | ErrorKind::ReadOnlyFilesystem => "COPY … TO a folder that you may write to",
        _ => "COPY … TO a folder where files can be made",
    };
    Error::external(format!("could not write '{target}'")).cause(cause).hint(hint)
}

/// The target as an address of our store. That it is a folder stays known.
fn local(target: &str) -> Result<String> {
    let url = ListingTableUrl::parse(target)?;
    if url.get_glob().is_some() {
        let error = Error::user(format!("COPY … TO '{target}': a file that is written has no *, ? or [ in its name"));
        return Err(error);
    }
    let path = url.as_str().strip_prefix("file://").ok_or_else(|| {
        Error::user(format!("COPY … TO writes files of this machine only, not '{}'", redact(target)))
            .hint("COPY … TO a path, and take the file from there")
    })?;
    Ok(format!("{STORE}{path}"))
}

/// Whether a file can be made there, without making it.
fn probe(target: &FilePath) -> io::Result<()> {
    is_replaceable(target)?;
    let there = target.ancestors().find(|path| path.is_dir()).unwrap_or(FilePath::new("/"));
    make(there).map(drop)
}

/// A pipe or a device is no file that another one can take the place of.
fn is_replaceable(target: &FilePath) -> io::Result<()> {
    match target.metadata() {
        Ok(found) if !found.is_file() && !found.is_dir() => Err(io::Error::other("there is something that is no file")),
        _ => Ok(()),
    }
}

/// Removed when it is dropped; with the permissions that a new file has.
fn make(folder: &FilePath) -> io::Result<NamedTempFile> {
    let permissions = std::fs::Permissions::from_mode(0o666);
    Builder::new().prefix(".poundlock-").permissions(permissions).tempfile_in(folder)
}

/// A store that only takes files, and keeps them beside their places.
#[derive(Debug, Clone, Default)]
struct Aside {
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Each with its place.
    files: Vec<(TempPath, PathBuf)>,
    /// The first one.
    failure: Option<io::Error>,
    /// The statement has ended: what still runs of it makes no more files.
    is_over: bool,
}

impl Aside {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn create(&self, location: &Path) -> StoreResult<Upload> {
        let place = FilePath::new("/").join(location.as_ref());
        let mut state = self.state();
        let made = match state.is_over {
            true => Err(io::Error::other("the statement has ended")),
            false => created(&place),
        };
        match made {
            Ok((file, aside, place)) => {
                state.files.push((aside, place));
                Ok(Upload { aside: self.clone(), file: Arc::new(file), offset: 0 })
            }
            Err(cause) => Err(noted(&mut state, cause)),
        }
    }

    fn unused<T>(&self, operation: &str) -> StoreResult<T> {
        Err(object_store::Error::NotImplemented { operation: operation.into(), implementer: self.to_string() })
    }
}

fn noted(state: &mut State, cause: io::Error) -> object_store::Error {
    let source = cause.to_string().into();
    state.failure.get_or_insert(cause);
    object_store::Error::Generic { store: "copy", source }
}

/// The file, where it is for now, and its place with links resolved: a link stays one.
fn created(place: &FilePath) -> io::Result<(File, TempPath, PathBuf)> {
    is_replaceable(place)?;
    let place = if place.exists() { place.canonicalize()? } else { place.to_path_buf() };
    let folder = place.parent().unwrap_or(FilePath::new("/"));
    std::fs::create_dir_all(folder)?;
    let (file, aside) = make(folder)?.into_parts();
    Ok((file, aside, place))
}

impl fmt::Display for Aside {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("files of a COPY")
    }
}

#[derive(Debug)]
struct Upload {
    aside: Aside,
    file: Arc<File>,
    offset: u64,
}

impl Upload {
    /// At the end of what was handed over before.
    fn write(&mut self, payload: PutPayload) -> UploadPart {
        let (aside, file, mut at) = (self.aside.clone(), Arc::clone(&self.file), self.offset);
        self.offset += payload.content_length() as u64;
        Box::pin(async move {
            let write = move || -> io::Result<()> {
                for bytes in &payload {
                    file.write_all_at(bytes, at)?;
                    at += bytes.len() as u64;
                }
                Ok(())
            };
            let written = tokio::task::spawn_blocking(write).await.unwrap_or_else(|e| Err(io::Error::other(e)));
            written.map_err(|cause| noted(&mut aside.state(), cause))
        })
    }
}

const PUT: PutResult = PutResult { e_tag: None, version: None };

#[async_trait]
impl MultipartUpload for Upload {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.write(data)
    }

    async fn complete(&mut self) -> StoreResult<PutResult> {
        Ok(PUT)
    }

    async fn abort(&mut self) -> StoreResult<()> {
        Ok(())
    }
}

#[async_trait]
impl ObjectStore for Aside {
    async fn put_opts(&self, location: &Path, payload: PutPayload, _: PutOptions) -> StoreResult<PutResult> {
        self.create(location)?.write(payload).await?;
        Ok(PUT)
    }

    async fn put_multipart_opts(
        &self,
        location: &Path,
        _: PutMultipartOptions,
    ) -> StoreResult<Box<dyn MultipartUpload>> {
        Ok(Box::new(self.create(location)?))
    }

    async fn get_opts(&self, _: &Path, _: GetOptions) -> StoreResult<GetResult> {
        self.unused("get")
    }

    fn delete_stream(&self, _: BoxStream<'static, StoreResult<Path>>) -> BoxStream<'static, StoreResult<Path>> {
        futures::stream::iter([self.unused("delete")]).boxed()
    }

    fn list(&self, _: Option<&Path>) -> BoxStream<'static, StoreResult<ObjectMeta>> {
        futures::stream::iter([self.unused("list")]).boxed()
    }

    async fn list_with_delimiter(&self, _: Option<&Path>) -> StoreResult<ListResult> {
        self.unused("list")
    }

    async fn copy_opts(&self, _: &Path, _: &Path, _: CopyOptions) -> StoreResult<()> {
        self.unused("copy")
    }
}

#[cfg(test)]
mod tests;
