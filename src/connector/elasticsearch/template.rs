//! Index templates, with their mappings, from `migrations/elasticsearch/*.json`: applied before the first document makes an
//! index.
//!
//! ```text
//! name.json with "index_patterns"      PUT _index_template/name, and its mapping to the indices that are there
//! name.json with "template" alone      PUT _component_template/name, before all index templates
//! ```
//!
//! The file is the body of the request as Elasticsearch's documentation has it. Its hash is noted in the template's `_meta`, so
//! a file is applied when it is new or has changed, and a start with nothing new changes nothing.

use std::path::{Path, PathBuf};

use elasticsearch::http::Method;
use serde_json::{Value, json};

use super::client::{Body, Client};
use super::options::Connection;
use crate::connector::background::blocking;
use crate::connector::http::segment;
use crate::{Error, Result};

/// Of one folder, and of one file; a template is written by hand.
const FILES_MAX: usize = 1_000;
const FILE_BYTES_MAX: u64 = 1 << 20;

/// In `_meta`.
const HASH: &str = "poundlock";

struct Template {
    name: String,
    body: Value,
}

impl Template {
    /// A component is a part of index templates.
    fn is_component(&self) -> bool {
        self.body.get("index_patterns").is_none()
    }

    fn path(&self) -> String {
        let kind = if self.is_component() { "_component_template" } else { "_index_template" };
        format!("/{kind}/{}", segment(&self.name))
    }

    fn hash(&self) -> &Value {
        &self.body["_meta"][HASH]
    }
}

/// Applies what is new in `dir` and returns its names; nothing where there is no such folder.
///
/// # Errors
/// A file that cannot be read, or that Elasticsearch does not take (user); the client's.
pub async fn apply(connection: &Connection, dir: &Path) -> Result<Vec<String>> {
    let folder = dir.to_path_buf();
    let templates = blocking(move || load(&folder)).await?;
    if templates.is_empty() {
        return Ok(vec![]);
    }
    let client = Client::new(connection)?;
    let mut applied = vec![];
    for template in templates {
        if !is_there(&client, &template).await? {
            put(&client, &template, dir).await?;
            applied.push(template.name);
        }
    }
    Ok(applied)
}

/// Component templates first, each kind by name.
fn load(dir: &Path) -> Result<Vec<Template>> {
    let failed = |path: &Path, cause: String| {
        Error::user(format!("could not read the template {}", path.display())).cause(cause)
    };
    if !dir.is_dir() {
        return Ok(vec![]);
    }
    let mut paths: Vec<PathBuf> = vec![];
    for entry in std::fs::read_dir(dir).map_err(|error| failed(dir, error.to_string()))? {
        let path = entry.map_err(|error| failed(dir, error.to_string()))?.path();
        if path.extension().is_some_and(|extension| extension == "json") {
            paths.push(path);
        }
    }
    if paths.len() > FILES_MAX {
        return Err(Error::user(format!("{} has {} files, more than {FILES_MAX}", dir.display(), paths.len())));
    }
    paths.sort();
    let mut templates = vec![];
    for path in paths {
        let size = std::fs::metadata(&path).map_err(|error| failed(&path, error.to_string()))?.len();
        if size > FILE_BYTES_MAX {
            return Err(failed(&path, format!("it has {size} bytes, more than {FILE_BYTES_MAX}")));
        }
        let text = std::fs::read_to_string(&path).map_err(|error| failed(&path, error.to_string()))?;
        let name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
        templates.push(parse(name, &text).map_err(|why| failed(&path, why))?);
    }
    templates.sort_by_key(|template| !template.is_component());
    Ok(templates)
}

fn parse(name: String, text: &str) -> Result<Template, String> {
    let mut body: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
    let Some(object) = body.as_object_mut() else { return Err("it is not an object".into()) };
    if !object.contains_key("index_patterns") && !object.contains_key("template") {
        return Err("it has neither \"index_patterns\" nor \"template\"".into());
    }
    let meta = object.entry("_meta").or_insert_with(|| json!({}));
    let Some(meta) = meta.as_object_mut() else { return Err("its \"_meta\" is not an object".into()) };
    meta.insert(HASH.into(), blake3::hash(text.as_bytes()).to_string().into());
    Ok(Template { name, body })
}

async fn is_there(client: &Client, template: &Template) -> Result<bool> {
    let what = format!("look for template {}", template.name);
    let answer = client.send(Method::Get, &template.path(), &[], None, &what).await?;
    if answer.status == 404 {
        return Ok(false);
    }
    if !answer.is_success() {
        return Err(client.refused(&answer, &what));
    }
    let found: Value = answer.json().unwrap_or_default();
    let (list, kind) = match template.is_component() {
        true => ("component_templates", "component_template"),
        false => ("index_templates", "index_template"),
    };
    Ok(found[list][0][kind]["_meta"][HASH] == *template.hash())
}

/// The template last: it has the hash by which it counts as applied.
async fn put(client: &Client, template: &Template, dir: &Path) -> Result<()> {
    let what = format!("apply template {}", template.name);
    let mappings = &template.body["template"]["mappings"];
    if !template.is_component() && !mappings.is_null() {
        put_mappings(client, template, mappings, &what).await?;
    }
    let answer = client.send(Method::Put, &template.path(), &[], Some(Body::json(&template.body)), &what).await?;
    if !answer.is_success() {
        let file = dir.join(&template.name).with_extension("json");
        return Err(Error::user(client.refused(&answer, &what).line()).at(file.display().to_string()));
    }
    Ok(())
}

/// A template is for indices to come. Those that are there take what is new in the mapping; a type is never changed.
async fn put_mappings(client: &Client, template: &Template, mappings: &Value, what: &str) -> Result<()> {
    let patterns = match &template.body["index_patterns"] {
        Value::Array(patterns) => patterns.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        pattern => pattern.as_str().unwrap_or_default().to_string(),
    };
    let path = format!("/{}/_mapping", path_of_patterns(&patterns));
    let query = [("allow_no_indices", "true"), ("ignore_unavailable", "true"), ("expand_wildcards", "open")];
    let answer = client.send(Method::Put, &path, &query, Some(Body::json(mappings)), what).await?;
    if !answer.is_success() && answer.status != 404 {
        tracing::warn!(
            template = template.name,
            "indices that are there keep their mapping, for the new one does not fit: {}",
            answer.reason()
        );
    }
    Ok(())
}

/// Commas and stars keep their meaning.
fn path_of_patterns(patterns: &str) -> String {
    let part = |part: &str| part.split('*').map(segment).collect::<Vec<_>>().join("*");
    patterns.split(',').map(part).collect::<Vec<_>>().join(",")
}
