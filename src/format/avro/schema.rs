//! An Avro schema, parsed from its JSON: nodes that refer to each other by number, since a schema may contain itself.
//!
//! apache-avro's parser was not taken for it: it refuses schemas that Java registers, and says nothing of defaults that
//! are wrong only for some readers. The oracle of the tests is apache-avro all the same.
//!
//! Names are full (`namespace.name`), as references between schemas need them. A logical type that is not known, or not
//! right for its type, is passed over, as the specification wants. Whether defaults fit is seen where one is needed.
//!
//! Failure: every error says what is wrong with the schema, in words; nothing panics, and depth and size are bounded.
//!
//! Source: Avro specification 1.12.0, "Schema Declaration", "Names", "Logical Types".

use std::collections::HashMap;

use serde_json::{Map, Value};

/// Levels of nested JSON.
const DEPTH_MAX: usize = 64;

/// Types in one schema, those of its references included.
const NODES_MAX: usize = 10_000;

/// Of a `fixed`, as a whole: more than any record can have.
const FIXED_MAX: u64 = 1 << 30;

/// The number of a node.
pub type NodeId = usize;

/// A parsed schema; `root` is the type of a record's value.
#[derive(Debug, Clone)]
pub struct Schema {
    nodes: Vec<Node>,
    /// By node; see [`Schema::least_bytes`].
    least: Vec<usize>,
    root: NodeId,
}

#[derive(Debug, Clone)]
pub struct Node {
    pub kind: Kind,
    pub logical: Option<Logical>,
}

#[derive(Debug, Clone)]
pub enum Kind {
    Null,
    Boolean,
    Int,
    Long,
    Float,
    Double,
    Bytes,
    String,
    Array(NodeId),
    Map(NodeId),
    Union(Vec<NodeId>),
    Record { name: Name, fields: Vec<Field> },
    Enum { name: Name, symbols: Vec<String>, default: Option<String> },
    Fixed { name: Name, size: usize },
}

/// What a value of a type means. Times of day, durations and big decimals are read as the type below them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Logical {
    Date,
    /// With or without zone: units in a second.
    Timestamp(i64),
    Decimal {
        precision: u32,
        scale: u32,
    },
    Uuid,
}

/// Full name and full aliases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    pub full: String,
    pub aliases: Vec<String>,
}

impl Name {
    /// Without its namespace.
    pub fn plain(&self) -> &str {
        plain(&self.full)
    }
}

pub fn plain(full: &str) -> &str {
    full.rsplit('.').next().unwrap_or(full)
}

#[derive(Debug, Clone)]
pub struct Field {
    pub name: String,
    pub aliases: Vec<String>,
    pub node: NodeId,
    pub default: Option<Value>,
}

impl Schema {
    /// `references`: the schemas whose names it uses, those that others use first.
    ///
    /// # Errors
    /// In words: it is no JSON, or no Avro schema.
    pub fn parse(text: &str, references: &[String]) -> Result<Self, String> {
        let mut parser = Parser { nodes: vec![], names: HashMap::new() };
        for reference in references {
            parser.text(reference).map_err(|error| format!("a schema that it refers to: {error}"))?;
        }
        let root = parser.text(text)?;
        let mut least = vec![None; parser.nodes.len()];
        for id in 0..parser.nodes.len() {
            measure(&parser.nodes, id, &mut least);
        }
        let least = least.into_iter().map(|bytes| bytes.unwrap_or(0)).collect();
        Ok(Self { nodes: parser.nodes, least, root })
    }

    pub fn root(&self) -> NodeId {
        self.root
    }

    /// Numbers come from this schema only: a foreign one reads as `null`.
    pub fn node(&self, id: NodeId) -> &Node {
        const NULL: &Node = &Node { kind: Kind::Null, logical: None };
        self.nodes.get(id).unwrap_or(NULL)
    }

    /// Bytes that every value of this type takes at least: how many items can be left.
    pub fn least_bytes(&self, id: NodeId) -> usize {
        self.least.get(id).copied().unwrap_or(0)
    }

    /// For reasons: `long`, `timestamp in long`, `enum Action`, `null or string`.
    pub fn describe(&self, id: NodeId) -> String {
        let node = self.node(id);
        let base = match &node.kind {
            Kind::Null => "null".into(),
            Kind::Boolean => "boolean".into(),
            Kind::Int => "int".into(),
            Kind::Long => "long".into(),
            Kind::Float => "float".into(),
            Kind::Double => "double".into(),
            Kind::Bytes => "bytes".into(),
            Kind::String => "string".into(),
            Kind::Array(_) => "array".into(),
            Kind::Map(_) => "map".into(),
            Kind::Union(_) => "union".into(),
            Kind::Record { name, .. } => format!("record {}", name.plain()),
            Kind::Enum { name, .. } => format!("enum {}", name.plain()),
            Kind::Fixed { name, size } => format!("fixed {} of {size} bytes", name.plain()),
        };
        match node.logical {
            None => base,
            Some(Logical::Date) => "date".into(),
            Some(Logical::Timestamp(_)) => "timestamp".into(),
            Some(Logical::Decimal { precision, scale }) => format!("decimal({precision}, {scale})"),
            Some(Logical::Uuid) => "uuid".into(),
        }
    }
}

/// The least bytes of a node, each node once: as deep as types are nested. A record directly within itself has no end, so
/// its size does not matter.
fn measure(nodes: &[Node], id: NodeId, least: &mut [Option<usize>]) -> usize {
    if let Some(known) = least[id] {
        return known;
    }
    least[id] = Some(0);
    let bytes = match &nodes[id].kind {
        Kind::Null => 0,
        Kind::Float => 4,
        Kind::Double => 8,
        Kind::Fixed { size, .. } => *size,
        Kind::Record { fields, .. } => {
            fields.iter().map(|field| measure(nodes, field.node, least)).fold(0_usize, usize::saturating_add)
        }
        _ => 1,
    };
    least[id] = Some(bytes);
    bytes
}

struct Parser {
    nodes: Vec<Node>,
    names: HashMap<String, NodeId>,
}

impl Parser {
    fn text(&mut self, text: &str) -> Result<NodeId, String> {
        // A lone primitive may be registered without quotes.
        let bare = text.trim();
        if !bare.is_empty() && bare.bytes().all(|b| b.is_ascii_alphanumeric() || b"._".contains(&b)) {
            return self.named(bare, "");
        }
        let json: Value = serde_json::from_str(text).map_err(|error| format!("it is not JSON: {error}"))?;
        self.value(&json, "", DEPTH_MAX)
    }

    fn add(&mut self, kind: Kind, logical: Option<Logical>) -> Result<NodeId, String> {
        if self.nodes.len() >= NODES_MAX {
            return Err(format!("it has more than {NODES_MAX} types"));
        }
        self.nodes.push(Node { kind, logical });
        Ok(self.nodes.len() - 1)
    }

    fn value(&mut self, json: &Value, namespace: &str, depth: usize) -> Result<NodeId, String> {
        let depth = depth.checked_sub(1).ok_or_else(|| format!("it is nested deeper than {DEPTH_MAX}"))?;
        match json {
            Value::String(name) => self.named(name, namespace),
            Value::Array(branches) => {
                let branches = branches.iter().map(|branch| self.value(branch, namespace, depth));
                let branches = branches.collect::<Result<Vec<_>, _>>()?;
                if branches.iter().any(|branch| matches!(self.nodes[*branch].kind, Kind::Union(_))) {
                    return Err("a union is directly within a union".into());
                }
                self.add(Kind::Union(branches), None)
            }
            Value::Object(object) => match object.get("type") {
                Some(Value::String(kind)) => self.object(kind, object, namespace, depth),
                Some(inner) => self.value(inner, namespace, depth),
                None => Err("a type has no \"type\"".into()),
            },
            other => Err(format!("{} is no type", shortened(other))),
        }
    }

    fn named(&mut self, name: &str, namespace: &str) -> Result<NodeId, String> {
        let known = self.names.get(&full(name, namespace)).or_else(|| self.names.get(name));
        if let Some(known) = known {
            return Ok(*known);
        }
        match primitive(name) {
            Some(kind) => self.add(kind, None),
            None => Err(format!("type {name:?} is not defined")),
        }
    }

    fn object(
        &mut self,
        kind: &str,
        object: &Map<String, Value>,
        namespace: &str,
        depth: usize,
    ) -> Result<NodeId, String> {
        let inner = |key: &str| object.get(key).ok_or_else(|| format!("{kind} has no {key:?}"));
        match kind {
            "array" => {
                let items = self.value(inner("items")?, namespace, depth)?;
                self.add(Kind::Array(items), None)
            }
            "map" => {
                let values = self.value(inner("values")?, namespace, depth)?;
                self.add(Kind::Map(values), None)
            }
            "record" | "error" => self.record(object, namespace, depth),
            "enum" => {
                let name = name_of(object, namespace)?;
                let symbols = texts(inner("symbols")?).ok_or("symbols of an enum are not a list of strings")?;
                let default = object.get("default").and_then(Value::as_str).map(str::to_string);
                self.define(name, |name| Kind::Enum { name, symbols, default }, None)
            }
            "fixed" => {
                let name = name_of(object, namespace)?;
                let size =
                    inner("size")?.as_u64().filter(|size| *size <= FIXED_MAX).ok_or("fixed has no usable size")?;
                let size = size as usize;
                let logical = logical(object, &Kind::Fixed { name: name.clone(), size });
                self.define(name, |name| Kind::Fixed { name, size }, logical)
            }
            other => match primitive(other) {
                Some(kind) => {
                    let logical = logical(object, &kind);
                    self.add(kind, logical)
                }
                None => self.named(other, namespace),
            },
        }
    }

    fn define(
        &mut self,
        name: Name,
        kind: impl FnOnce(Name) -> Kind,
        logical: Option<Logical>,
    ) -> Result<NodeId, String> {
        let full = name.full.clone();
        let id = self.add(kind(name), logical)?;
        match self.names.insert(full.clone(), id) {
            None => Ok(id),
            Some(_) => Err(format!("type {full:?} is defined twice")),
        }
    }

    fn record(&mut self, object: &Map<String, Value>, namespace: &str, depth: usize) -> Result<NodeId, String> {
        let name = name_of(object, namespace)?;
        let within = name.full.rsplit_once('.').map_or("", |(namespace, _)| namespace).to_string();
        // Before its fields: they may be of this very type.
        let id = self.define(name.clone(), |name| Kind::Record { name, fields: vec![] }, None)?;
        let list = object.get("fields").and_then(Value::as_array);
        let list = list.ok_or_else(|| format!("record {:?} has no list \"fields\"", name.full))?;
        let mut fields: Vec<Field> = Vec::with_capacity(list.len());
        for field in list {
            let own = field.get("name").and_then(Value::as_str);
            let own = own.ok_or_else(|| format!("a field of record {:?} has no name", name.full))?;
            if fields.iter().any(|other| other.name == own) {
                return Err(format!("record {:?} has field {own:?} twice", name.full));
            }
            let declared = field.get("type").ok_or_else(|| format!("field {own:?} has no type"))?;
            // A logical type beside "type", not within it, is a frequent mistake: Java passes over it, and so do we.
            let node = self.value(declared, &within, depth).map_err(|error| format!("field {own:?}: {error}"))?;
            let aliases = field.get("aliases").and_then(texts).unwrap_or_default();
            let default = field.get("default").cloned();
            fields.push(Field { name: own.to_string(), aliases, node, default });
        }
        self.nodes[id].kind = Kind::Record { name, fields };
        Ok(id)
    }
}

fn primitive(name: &str) -> Option<Kind> {
    Some(match name {
        "null" => Kind::Null,
        "boolean" => Kind::Boolean,
        "int" => Kind::Int,
        "long" => Kind::Long,
        "float" => Kind::Float,
        "double" => Kind::Double,
        "bytes" => Kind::Bytes,
        "string" => Kind::String,
        _ => return None,
    })
}

fn full(name: &str, namespace: &str) -> String {
    if name.contains('.') || namespace.is_empty() { name.to_string() } else { format!("{namespace}.{name}") }
}

fn name_of(object: &Map<String, Value>, within: &str) -> Result<Name, String> {
    let name = object.get("name").and_then(Value::as_str).filter(|name| !name.is_empty());
    let name = name.ok_or("a record, enum or fixed has no name")?;
    let namespace = object.get("namespace").and_then(Value::as_str).unwrap_or(within);
    let full_name = full(name, namespace);
    let own = full_name.rsplit_once('.').map_or("", |(namespace, _)| namespace);
    let aliases = object.get("aliases").and_then(texts).unwrap_or_default();
    let aliases = aliases.iter().map(|alias| full(alias, own)).collect();
    Ok(Name { full: full_name, aliases })
}

fn texts(list: &Value) -> Option<Vec<String>> {
    list.as_array()?.iter().map(|text| text.as_str().map(str::to_string)).collect()
}

fn logical(object: &Map<String, Value>, kind: &Kind) -> Option<Logical> {
    let name = object.get("logicalType")?.as_str()?;
    let number = |key: &str| object.get(key).and_then(Value::as_u64).and_then(|value| u32::try_from(value).ok());
    match (name, kind) {
        ("date", Kind::Int) => Some(Logical::Date),
        ("timestamp-millis" | "local-timestamp-millis", Kind::Long) => Some(Logical::Timestamp(1_000)),
        ("timestamp-micros" | "local-timestamp-micros", Kind::Long) => Some(Logical::Timestamp(1_000_000)),
        ("timestamp-nanos" | "local-timestamp-nanos", Kind::Long) => Some(Logical::Timestamp(1_000_000_000)),
        ("uuid", Kind::String | Kind::Fixed { size: 16, .. }) => Some(Logical::Uuid),
        ("decimal", Kind::Bytes | Kind::Fixed { .. }) => {
            let precision = number("precision").filter(|precision| *precision > 0)?;
            let scale = if object.contains_key("scale") { number("scale")? } else { 0 };
            (scale <= precision).then_some(Logical::Decimal { precision, scale })
        }
        _ => None,
    }
}

fn shortened(json: &Value) -> String {
    json.to_string().chars().take(60).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        Schema::parse(text, &[]).unwrap_err()
    }

    #[test]
    fn names_namespaces_and_recursion_are_resolved() {
        let text = r#"{"type": "record", "name": "Node", "namespace": "a.b", "aliases": ["Old"], "fields": [
            {"name": "next", "type": ["null", "Node"], "default": null},
            {"name": "kind", "type": {"type": "enum", "name": "Kind", "symbols": ["X"]}},
            {"name": "again", "type": "a.b.Kind"},
            {"name": "price", "type": {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}}]}"#;
        let schema = Schema::parse(text, &[]).unwrap();
        let Kind::Record { name, fields } = &schema.node(schema.root()).kind else { panic!() };
        assert_eq!((name.full.as_str(), name.plain()), ("a.b.Node", "Node"));
        assert_eq!(name.aliases, ["a.b.Old"]);
        let Kind::Union(branches) = &schema.node(fields[0].node).kind else { panic!() };
        assert_eq!(branches[1], schema.root());
        assert_eq!(fields[1].node, fields[2].node);
        assert_eq!(schema.describe(fields[3].node), "decimal(9, 2)");
        assert_eq!(schema.least_bytes(schema.root()), 4);
    }

    #[test]
    fn references_are_parsed_first() {
        let reference = r#"{"type": "enum", "name": "x.Kind", "symbols": ["A"]}"#.to_string();
        let text = r#"{"type": "record", "name": "x.R", "fields": [{"name": "k", "type": "Kind"}]}"#;
        assert!(Schema::parse(text, &[reference]).is_ok());
        assert_eq!(error(text), "field \"k\": type \"Kind\" is not defined");
    }

    #[test]
    fn logical_types_that_do_not_fit_are_passed_over() {
        for text in [
            r#"{"type": "string", "logicalType": "timestamp-millis"}"#,
            r#"{"type": "bytes", "logicalType": "decimal", "precision": 2, "scale": 3}"#,
            r#"{"type": "long", "logicalType": "no-such"}"#,
        ] {
            let schema = Schema::parse(text, &[]).unwrap();
            assert_eq!(schema.node(schema.root()).logical, None, "{text}");
        }
    }

    #[test]
    fn what_is_no_schema_is_told_in_words() {
        assert!(error("{").starts_with("it is not JSON"));
        assert_eq!(error("\"nonsense\""), "type \"nonsense\" is not defined");
        assert_eq!(error("[[\"null\"]]"), "a union is directly within a union");
        assert_eq!(error("7"), "type \"7\" is not defined");
        assert_eq!(error(r#"{"type": "record", "name": "R"}"#), "record \"R\" has no list \"fields\"");
        let twice = r#"{"type": "record", "name": "R", "fields": [{"name": "a", "type": "int"}, {"name": "a", "type": "int"}]}"#;
        assert_eq!(error(twice), "record \"R\" has field \"a\" twice");
        let deep = format!("{}\"int\"{}", r#"{"type":"array","items":"#.repeat(100), "}".repeat(100));
        assert!(error(&deep).contains("nested deeper than 64"));
    }
}
