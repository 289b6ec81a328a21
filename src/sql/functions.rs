//! Functions whose value belongs to the batch: `current_watermark()`, `now()` and its kin.
//!
//! Each simplifies to a typed placeholder. So the plan can be optimized once and kept, the placeholder is pushed down
//! like a literal, and every batch binds its own values: no shared state, and a replay binds what was planned then.
//! They are `Volatile` only so that the optimizer does not fold them before they are simplified.

use std::sync::Arc;

use arrow::datatypes::{DataType, Field, TimeUnit};
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::expr::Placeholder;
use datafusion::logical_expr::simplify::{ExprSimplifyResult, SimplifyContext};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, cast, lit,
};

/// Minimum over the sources in scope of the watermark after the batch; TIMESTAMP, NULL before the first.
pub const CURRENT_WATERMARK: &str = "$current_watermark";
/// When the batch was planned; TIMESTAMPTZ.
pub const PLANNED_AT: &str = "$planned_at";
/// The watermark before the batch; in plans of `LATE(view)`.
pub const WATERMARK_BEFORE: &str = "$watermark_before";
/// planned_at + `watermark.max_ahead`; in plans of `LATE(view)`.
pub const AHEAD_LIMIT: &str = "$ahead_limit";

pub fn timestamp_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, None)
}

pub fn timestamptz_type() -> DataType {
    DataType::Timestamp(TimeUnit::Microsecond, Some("UTC".into()))
}

pub fn placeholder(id: &str, data_type: DataType) -> Expr {
    let field = Arc::new(Field::new(id.trim_start_matches('$'), data_type, true));
    Expr::Placeholder(Placeholder::new_with_field(id.to_string(), Some(field)))
}

/// Whether a function of this name gets its value from the batch.
pub fn is_of_batch(name: &str) -> bool {
    ["current_watermark", "now", "current_date", "current_time"].contains(&name)
}

/// Where the values come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum BatchValues {
    /// Bound batch by batch.
    Placeholders,
    /// An ad-hoc query: the watermark last committed (µs), and DataFusion's own `now()`.
    Fixed { watermark: Option<i64> },
}

/// The functions to register in a session.
pub fn batch_functions(values: BatchValues) -> Vec<ScalarUDF> {
    let function = |name: &'static str, aliases: &[&str], data_type: DataType| {
        let aliases = aliases.iter().map(|a| (*a).to_string()).collect();
        let signature = Signature::nullary(Volatility::Volatile);
        ScalarUDF::new_from_impl(BatchFunction { name, aliases, data_type, signature, values })
    };
    let mut functions = vec![function("current_watermark", &[], timestamp_type())];
    if values == BatchValues::Placeholders {
        functions.push(function("now", &["current_timestamp"], timestamptz_type()));
        functions.push(function("current_date", &["today"], DataType::Date32));
        functions.push(function("current_time", &[], DataType::Time64(TimeUnit::Nanosecond)));
    }
    functions
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct BatchFunction {
    name: &'static str,
    aliases: Vec<String>,
    data_type: DataType,
    signature: Signature,
    values: BatchValues,
}

impl ScalarUDFImpl for BatchFunction {
    fn name(&self) -> &str {
        self.name
    }

    fn aliases(&self) -> &[String] {
        &self.aliases
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, _: &[DataType]) -> Result<DataType> {
        Ok(self.data_type.clone())
    }

    fn simplify(&self, _: Vec<Expr>, _: &SimplifyContext) -> Result<ExprSimplifyResult> {
        Ok(ExprSimplifyResult::Simplified(match self.values {
            BatchValues::Fixed { watermark } => lit(ScalarValue::TimestampMicrosecond(watermark, None)),
            BatchValues::Placeholders if self.name == "current_watermark" => {
                placeholder(CURRENT_WATERMARK, timestamp_type())
            }
            BatchValues::Placeholders => match placeholder(PLANNED_AT, timestamptz_type()) {
                now if self.name == "now" => now,
                now => cast(now, self.data_type.clone()),
            },
        }))
    }

    fn invoke_with_args(&self, _: ScalarFunctionArgs) -> Result<ColumnarValue> {
        exec_err!("{}() was not bound to a batch", self.name)
    }
}
