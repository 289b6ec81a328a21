//! A writer's schema resolved into the columns of a table: once a schema, so that a record costs no look at either.
//!
//! ```text
//! writer's schema ┐
//! reader's schema ┼─▶ [resolve] ─▶ Plan: what to read into which column, what to pass over, what to fill in
//! columns         ┘
//! ```
//!
//! Without a reader's schema (option 'avro.schema') the columns are the reader: each of them may be NULL, and is where the
//! writer has no such field. With one, its fields say more: aliases, defaults, symbols, logical types.
//!
//! What does not resolve is a reason in words: of the whole schema, so that each of its records is refused with it; or of
//! one branch of a union, so that only records with that branch are.
//!
//! Invariant: a plan's `Read` fits the cells of the column it was made for.
//!
//! Source: Avro specification 1.12.0, "Schema Resolution". Where a column is wider than the rules (BIGINT takes an `int`
//! as they say; VARCHAR also an `enum`, BYTEA also a `fixed`, DECIMAL also one of a smaller scale), nothing is lost.

use std::collections::HashMap;

use arrow::datatypes::{DataType, FieldRef, TimeUnit};

use super::defaults::encode_default;
use super::schema::{Field, Kind, Logical, Name, NodeId, Schema, plain};
use crate::sql::insert::sql_name;

/// How the records of one writer's schema become rows.
#[derive(Debug)]
pub struct Plan {
    /// By branch if the schema is a union, else one: why it does not resolve.
    pub roots: Vec<Result<Record, String>>,
    pub is_union: bool,
    /// Name of the record, and of its fields; of a union those of all of them.
    pub name: String,
    pub fields: Vec<String>,
    /// Named types that are passed over, by number: they may contain themselves.
    pub skips: Vec<Skip>,
}

/// A record, field by field as they are written.
#[derive(Debug, Default)]
pub struct Record {
    pub steps: Vec<Step>,
    /// Columns that are NULL: the writer has no such field.
    pub absent: Vec<usize>,
    /// Columns that have the reader's default, for the writer has no such field.
    pub defaults: Vec<Fill>,
}

#[derive(Debug)]
pub enum Step {
    Column { column: usize, read: Read },
    Skip(Skip),
}

/// The reader's default, as Avro in the reader's own type.
#[derive(Debug)]
pub struct Fill {
    pub column: usize,
    pub bytes: Vec<u8>,
    pub read: Read,
    /// What [`Skip::Named`] in `read` refers to.
    pub skips: Vec<Skip>,
}

/// How a value is read into the cells of a column; the comment is what the cells are.
#[derive(Debug)]
pub enum Read {
    /// Any: nothing is written.
    Null,
    /// Boolean.
    Boolean,
    /// Integer; int and long are written alike. An int must have 32 bits.
    Int,
    Long,
    /// Float.
    IntAsFloat,
    LongAsFloat,
    Float,
    Double,
    /// Text: bytes that must be UTF-8.
    Text,
    /// Text: the symbol of a number, `None` where the reader does not have it.
    Symbol(Vec<Option<Box<str>>>),
    /// Text: 16 bytes.
    Uuid,
    /// Binary: a length and bytes.
    Binary,
    /// Binary: so many bytes.
    Fixed(usize),
    /// Decimal: big-endian, of a fixed size or with a length in front; times `factor`.
    Decimal {
        size: Option<usize>,
        factor: i128,
    },
    /// Timestamp: times `factor`, or divided by `divisor` and rounded down.
    Timestamp {
        factor: i64,
        divisor: i64,
    },
    /// Date.
    Date,
    /// Struct.
    Record(Record),
    /// List; items take at least `least` bytes each.
    List {
        item: Box<Read>,
        least: usize,
    },
    /// Map.
    Map {
        value: Box<Read>,
    },
    /// Any.
    Union(Vec<Read>),
    /// Any: a branch that does not resolve, and why.
    Refuse(String),
}

/// How a value is passed over.
#[derive(Debug, Clone)]
pub enum Skip {
    Bytes(usize),
    Varint,
    /// A length and so many bytes.
    Sized,
    Array {
        item: Box<Skip>,
        least: usize,
    },
    /// Keys are texts.
    Map(Box<Skip>),
    Union(Vec<Skip>),
    /// In turn.
    All(Vec<Skip>),
    /// By number in [`Plan::skips`].
    Named(usize),
}

impl Plan {
    /// `columns`: those of the decoder, by name. `reader`: the schema of option 'avro.schema'.
    pub fn new(writer: &Schema, reader: Option<&Schema>, columns: &[FieldRef]) -> Self {
        let mut resolver = Resolver::new(writer, reader);
        let mut root = |id: NodeId| match &writer.node(id).kind {
            Kind::Record { .. } => resolver.record(id, reader.map(Schema::root), columns),
            _ => Err(format!("its records are {}, not a record with fields", writer.describe(id))),
        };
        let (ids, is_union) = match &writer.node(writer.root()).kind {
            Kind::Union(branches) => (branches.clone(), true),
            _ => (vec![writer.root()], false),
        };
        let roots = ids.iter().map(|id| root(*id)).collect();
        let (mut names, mut fields) = (vec![], vec![]);
        for id in ids {
            if let Kind::Record { name, fields: own } = &writer.node(id).kind {
                names.push(name.full.as_str());
                fields.extend(own.iter().map(|field| field.name.clone()));
            }
        }
        Self { roots, is_union, name: names.join(", "), fields, skips: resolver.skips() }
    }

    /// Whether a field of the writer goes into a column, of any of its records.
    pub fn fills_a_column(&self) -> bool {
        let fills = |record: &Record| record.steps.iter().any(|step| matches!(step, Step::Column { .. }));
        self.roots.iter().flatten().any(fills)
    }

    /// Whether a table can be read by this reader's schema at all: each column has its field, of a type that fits.
    ///
    /// # Errors
    /// In words.
    pub fn check_reader(reader: &Schema, columns: &[FieldRef]) -> Result<(), String> {
        let Kind::Record { fields, .. } = &reader.node(reader.root()).kind else {
            return Err(format!("it is {}, not a record", reader.describe(reader.root())));
        };
        if let Some(column) = columns.iter().find(|column| fields.iter().all(|field| field.name != *column.name())) {
            return Err(format!("it has no field {:?}", column.name()));
        }
        match Self::new(reader, None, columns).roots.pop() {
            Some(Ok(record)) => record.refusal().map_or(Ok(()), Err),
            Some(Err(reason)) => Err(reason),
            None => Ok(()),
        }
    }
}

impl Record {
    /// The first branch anywhere that does not resolve.
    fn refusal(&self) -> Option<String> {
        fn of(read: &Read) -> Option<String> {
            match read {
                Read::Refuse(reason) => Some(reason.clone()),
                Read::Record(record) => record.refusal(),
                Read::List { item: inner, .. } | Read::Map { value: inner } => of(inner),
                Read::Union(branches) => branches.iter().find_map(of),
                _ => None,
            }
        }
        self.steps.iter().find_map(|step| match step {
            Step::Column { read, .. } => of(read),
            Step::Skip(_) => None,
        })
    }
}

struct Resolver<'s> {
    writer: &'s Schema,
    reader: Option<&'s Schema>,
    /// Named types that are passed over, in the order in which they were met.
    passed: Vec<NodeId>,
    named: HashMap<NodeId, usize>,
}

impl<'s> Resolver<'s> {
    fn new(writer: &'s Schema, reader: Option<&'s Schema>) -> Self {
        Self { writer, reader, passed: vec![], named: HashMap::new() }
    }

    /// How each named type is passed over that was met. One after the other, not one within the other: a chain of them, each the type of a
    /// field of the next, may be as long as a schema has types, and a stack is not.
    fn skips(mut self) -> Vec<Skip> {
        let (writer, mut skips) = (self.writer, vec![]);
        while let Some(id) = self.passed.get(skips.len()).copied() {
            skips.push(match &writer.node(id).kind {
                Kind::Record { fields, .. } => Skip::All(fields.iter().map(|field| self.skip(field.node)).collect()),
                _ => self.skip(id),
            });
        }
        skips
    }

    /// `reads`: the reader's record.
    fn record(&mut self, id: NodeId, reads: Option<NodeId>, columns: &[FieldRef]) -> Result<Record, String> {
        let (writer, reader) = (self.writer, self.reader);
        let Kind::Record { name, fields } = &writer.node(id).kind else { return Err("it is no record".into()) };
        let known: Option<&[Field]> = match reads.zip(reader) {
            Some((reads, reader)) => match &reader.node(reads).kind {
                Kind::Record { name: own, fields } => {
                    same_name(name, own).then_some(()).ok_or_else(|| differs("record", name, own))?;
                    Some(fields)
                }
                _ => return Err(format!("record {} is not {}", name.plain(), reader.describe(reads))),
            },
            None => None,
        };
        let mut record = Record::default();
        // Which column a field of the writer fills.
        let mut targets: Vec<Option<usize>> = vec![None; fields.len()];
        let mut sources: Vec<Option<&Field>> = Vec::with_capacity(columns.len());
        for (at, column) in columns.iter().enumerate() {
            let own = known.and_then(|known| known.iter().find(|field| field.name == *column.name()));
            sources.push(own);
            let by = |name: &str| fields.iter().position(|field| field.name == name);
            let aliases = own.into_iter().flat_map(|own| &own.aliases);
            let found = by(column.name()).or_else(|| aliases.filter_map(|alias| by(alias)).next());
            if let Some(target) = found.and_then(|found| targets.get_mut(found)).filter(|target| target.is_none()) {
                *target = Some(at);
                continue;
            }
            match own {
                None => record.absent.push(at),
                Some(own) => record.defaults.push(self.default(at, own, column)?),
            }
        }
        for (field, target) in fields.iter().zip(targets) {
            let step = match target.and_then(|at| Some((at, columns.get(at)?))) {
                None => Step::Skip(self.skip(field.node)),
                Some((at, column)) => {
                    let own = sources.get(at).copied().flatten().map(|own| own.node);
                    let read = self.value(field.node, own, column.data_type());
                    let read = read.map_err(|reason| format!("{}: {reason}", column.name()))?;
                    Step::Column { column: at, read }
                }
            };
            record.steps.push(step);
        }
        Ok(record)
    }

    fn default(&self, column: usize, own: &Field, target: &FieldRef) -> Result<Fill, String> {
        let Some((reader, default)) = self.reader.zip(own.default.as_ref()) else {
            return Err(format!("{}: the record has no such field, and avro.schema no default for it", own.name));
        };
        let mut bytes = vec![];
        encode_default(reader, own.node, default, &mut bytes)
            .map_err(|reason| format!("{}: its default in avro.schema {reason}", own.name))?;
        let mut own_resolver = Resolver::new(reader, None);
        let read = own_resolver.value(own.node, None, target.data_type());
        let read = read.map_err(|reason| format!("{}: {reason}", own.name))?;
        Ok(Fill { column, bytes, read, skips: own_resolver.skips() })
    }

    /// A value of the writer's type, as the reader has it, into a column.
    fn value(&mut self, id: NodeId, reads: Option<NodeId>, target: &DataType) -> Result<Read, String> {
        let writer = self.writer;
        if let Kind::Union(branches) = &writer.node(id).kind {
            let read = |branch: &NodeId| self.value(*branch, reads, target).unwrap_or_else(Read::Refuse);
            return Ok(Read::Union(branches.iter().map(read).collect()));
        }
        let Some((reads, reader)) = reads.zip(self.reader) else { return self.fit(id, None, target) };
        let Kind::Union(branches) = &reader.node(reads).kind else {
            self.matches(id, reads)?;
            return self.fit(id, Some(reads), target);
        };
        // The first branch that the writer's type resolves to.
        let mut reason = format!("{} is in no branch of avro.schema", self.writer.describe(id));
        for branch in branches {
            if self.matches(id, *branch).is_ok() {
                match self.fit(id, Some(*branch), target) {
                    Ok(read) => return Ok(read),
                    Err(why) => reason = why,
                }
            }
        }
        Err(reason)
    }

    /// Whether the types match, or can be promoted, as the specification says; neither is a union.
    fn matches(&self, id: NodeId, reads: NodeId) -> Result<(), String> {
        let Some(reader) = self.reader else { return Ok(()) };
        let fits = match (&self.writer.node(id).kind, &reader.node(reads).kind) {
            (Kind::Null, Kind::Null)
            | (Kind::Boolean, Kind::Boolean)
            | (Kind::Int, Kind::Int | Kind::Long | Kind::Float | Kind::Double)
            | (Kind::Long, Kind::Long | Kind::Float | Kind::Double)
            | (Kind::Float, Kind::Float | Kind::Double)
            | (Kind::Double, Kind::Double)
            | (Kind::String | Kind::Bytes, Kind::String | Kind::Bytes)
            | (Kind::Array(_), Kind::Array(_))
            | (Kind::Map(_), Kind::Map(_)) => true,
            (Kind::Record { name, .. }, Kind::Record { name: own, .. }) => {
                return same_name(name, own).then_some(()).ok_or_else(|| differs("record", name, own));
            }
            (Kind::Enum { name, .. }, Kind::Enum { name: own, .. }) => {
                return same_name(name, own).then_some(()).ok_or_else(|| differs("enum", name, own));
            }
            (Kind::Fixed { name, size }, Kind::Fixed { name: own, size: own_size }) => {
                same_name(name, own).then_some(()).ok_or_else(|| differs("fixed", name, own))?;
                size == own_size
            }
            _ => false,
        };
        let reason = || format!("{} does not become {}", self.writer.describe(id), reader.describe(reads));
        fits.then_some(()).ok_or_else(reason)
    }

    /// The writer's type into the column; it is no union, and the reader's, if there is one, matches.
    fn fit(&mut self, id: NodeId, reads: Option<NodeId>, target: &DataType) -> Result<Read, String> {
        let writer = self.writer;
        let node = writer.node(id);
        let own = reads.zip(self.reader).map(|(reads, reader)| reader.node(reads));
        // A plain long means what the reader says it does.
        let logical = node.logical.or(own.and_then(|own| own.logical));
        let is_text = matches!(target, DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View);
        let is_binary = matches!(target, DataType::Binary | DataType::LargeBinary | DataType::BinaryView);
        let read = match (&node.kind, target) {
            (Kind::Null, _) => Read::Null,
            (Kind::Boolean, DataType::Boolean) => Read::Boolean,
            (Kind::Int, DataType::Date32) if logical == Some(Logical::Date) => Read::Date,
            (Kind::Int, t) if t.is_integer() => Read::Int,
            (Kind::Int, DataType::Float32 | DataType::Float64) => Read::IntAsFloat,
            (Kind::Long, DataType::Int64 | DataType::UInt32 | DataType::UInt64) => Read::Long,
            (Kind::Long, DataType::Float32 | DataType::Float64) => Read::LongAsFloat,
            (Kind::Long, DataType::Timestamp(unit, _)) => match logical {
                Some(Logical::Timestamp(per_second)) => timestamp(per_second, *unit),
                _ => return Err(self.unfit(id, target)),
            },
            (Kind::Float, DataType::Float32 | DataType::Float64) => Read::Float,
            (Kind::Double, DataType::Float64) => Read::Double,
            (Kind::Bytes | Kind::Fixed { .. }, DataType::Decimal128(_, scale)) => {
                let Some(Logical::Decimal { scale: own, .. }) = logical else { return Err(self.unfit(id, target)) };
                let size = if let Kind::Fixed { size, .. } = node.kind { Some(size) } else { None };
                let zeros = i64::from(*scale) - i64::from(own);
                let factor = u32::try_from(zeros).ok().and_then(|zeros| 10_i128.checked_pow(zeros));
                let factor = factor.ok_or_else(|| self.unfit(id, target))?;
                Read::Decimal { size, factor }
            }
            (Kind::Fixed { size: 16, .. }, _) if is_text && logical == Some(Logical::Uuid) => Read::Uuid,
            (Kind::Fixed { size, .. }, _) if is_binary => Read::Fixed(*size),
            (Kind::String | Kind::Bytes, _) if is_text => Read::Text,
            (Kind::String | Kind::Bytes, _) if is_binary => Read::Binary,
            (Kind::Enum { symbols, .. }, _) if is_text => {
                let symbol = |symbol: &String| match own.map(|own| &own.kind) {
                    Some(Kind::Enum { symbols, default, .. }) if !symbols.contains(symbol) => default.clone(),
                    _ => Some(symbol.clone()),
                };
                Read::Symbol(symbols.iter().map(|one| symbol(one).map(Into::into)).collect())
            }
            (Kind::Record { .. }, DataType::Struct(columns)) => Read::Record(self.record(id, reads, columns)?),
            (Kind::Array(item), DataType::List(column)) => {
                let own = own.and_then(|own| if let Kind::Array(item) = own.kind { Some(item) } else { None });
                let (item, least) = (*item, writer.least_bytes(*item));
                let item = self.value(item, own, column.data_type()).map_err(|reason| format!("[]: {reason}"))?;
                Read::List { item: Box::new(item), least }
            }
            (Kind::Map(value), DataType::Map(entry, _)) => {
                let own = own.and_then(|own| if let Kind::Map(value) = own.kind { Some(value) } else { None });
                let DataType::Struct(fields) = entry.data_type() else { return Err(self.unfit(id, target)) };
                let column = fields.get(1).ok_or_else(|| self.unfit(id, target))?;
                let value =
                    self.value(*value, own, column.data_type()).map_err(|reason| format!("[\"\"]: {reason}"))?;
                Read::Map { value: Box::new(value) }
            }
            _ => return Err(self.unfit(id, target)),
        };
        Ok(read)
    }

    fn unfit(&self, id: NodeId, target: &DataType) -> String {
        let (what, column) = (self.writer.describe(id), sql_name(target));
        let better = match (&self.writer.node(id).kind, self.writer.node(id).logical) {
            (Kind::Long, None) if matches!(target, DataType::Timestamp(..)) => {
                "declare it BIGINT, or give its unit in avro.schema"
            }
            (Kind::Int, _) => "declare it INT",
            (Kind::Long, Some(_)) => "declare it TIMESTAMP",
            (Kind::Long, _) => "declare it BIGINT",
            (Kind::Float, _) => "declare it REAL",
            (Kind::Double, _) => "declare it DOUBLE",
            (Kind::Boolean, _) => "declare it BOOLEAN",
            (Kind::String | Kind::Enum { .. }, _) => "declare it VARCHAR",
            (Kind::Bytes | Kind::Fixed { .. }, Some(Logical::Decimal { .. })) => "declare it DECIMAL with that scale",
            (Kind::Bytes | Kind::Fixed { .. }, _) => "declare it BYTEA",
            (Kind::Record { .. }, _) => "declare it STRUCT<…>",
            (Kind::Array(_), _) => "declare it as a list, BIGINT[]",
            _ => return format!("{what} does not fit {column}"),
        };
        format!("{what} does not fit {column}: {better}")
    }

    fn skip(&mut self, id: NodeId) -> Skip {
        let writer = self.writer;
        match &writer.node(id).kind {
            Kind::Null => Skip::Bytes(0),
            Kind::Boolean => Skip::Bytes(1),
            Kind::Float => Skip::Bytes(4),
            Kind::Double => Skip::Bytes(8),
            Kind::Fixed { size, .. } => Skip::Bytes(*size),
            Kind::Int | Kind::Long | Kind::Enum { .. } => Skip::Varint,
            Kind::Bytes | Kind::String => Skip::Sized,
            Kind::Array(item) => Skip::Array { item: Box::new(self.skip(*item)), least: writer.least_bytes(*item) },
            Kind::Map(value) => Skip::Map(Box::new(self.skip(*value))),
            Kind::Union(branches) => Skip::Union(branches.iter().map(|branch| self.skip(*branch)).collect()),
            Kind::Record { .. } => {
                let passed = &mut self.passed;
                Skip::Named(*self.named.entry(id).or_insert_with(|| {
                    passed.push(id);
                    passed.len() - 1
                }))
            }
        }
    }
}

/// Unqualified names count, and the reader's aliases.
fn same_name(writer: &Name, reader: &Name) -> bool {
    writer.plain() == reader.plain()
        || reader.aliases.iter().any(|alias| *alias == writer.full || plain(alias) == writer.plain())
}

fn differs(kind: &str, writer: &Name, reader: &Name) -> String {
    format!("{kind} {} is not {} nor one of its aliases in avro.schema", writer.plain(), reader.plain())
}

fn timestamp(per_second: i64, unit: TimeUnit) -> Read {
    let wanted = match unit {
        TimeUnit::Second => 1,
        TimeUnit::Millisecond => 1_000,
        TimeUnit::Microsecond => 1_000_000,
        TimeUnit::Nanosecond => 1_000_000_000,
    };
    Read::Timestamp { factor: (wanted / per_second).max(1), divisor: (per_second / wanted).max(1) }
}
