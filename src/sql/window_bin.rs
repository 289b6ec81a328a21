//! `window_bin(time, slide, shift)`: where the pane that holds `time` begins, moved by `shift`; both in µs.
//!
//! `date_bin` would do for ordinary times. But it gives NULL for years that do not fit into nanoseconds (before 1677,
//! after 2262), and adding an interval far out fails the query; an event dated 9999 is to be seen as ahead, and must
//! fail nobody's batch. This one has an answer for every time: at the very ends it saturates.

use std::sync::LazyLock;

use arrow::array::{Array, ArrayRef, AsArray, Int64Array};
use arrow::compute::{binary, cast};
use arrow::datatypes::{DataType, Int64Type, TimeUnit};
use datafusion::common::utils::take_function_args;
use datafusion::common::{Result, ScalarValue, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Expr, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl, Signature, Volatility, lit,
};

/// The expression; `shift` may be a column.
pub fn window_bin(time: Expr, slide: i64, shift: Expr) -> Expr {
    static FUNCTION: LazyLock<ScalarUDF> =
        LazyLock::new(|| ScalarUDF::new_from_impl(WindowBin { signature: Signature::any(3, Volatility::Immutable) }));
    FUNCTION.call(vec![time, lit(slide), shift])
}

/// µs as a number of units; `None` if it is no whole number of them.
pub fn in_units(micros: i64, unit: TimeUnit) -> Option<i64> {
    let units = |per_unit: i64| (micros % per_unit == 0).then_some(micros / per_unit);
    match unit {
        TimeUnit::Second => units(1_000_000),
        TimeUnit::Millisecond => units(1_000),
        TimeUnit::Microsecond => Some(micros),
        TimeUnit::Nanosecond => micros.checked_mul(1_000),
    }
}

#[derive(Debug, PartialEq, Eq, Hash)]
struct WindowBin {
    signature: Signature,
}

impl ScalarUDFImpl for WindowBin {
    fn name(&self) -> &str {
        "window_bin"
    }

    fn signature(&self) -> &Signature {
        &self.signature
    }

    fn return_type(&self, arg_types: &[DataType]) -> Result<DataType> {
        Ok(arg_types[0].clone())
    }

    fn invoke_with_args(&self, args: ScalarFunctionArgs) -> Result<ColumnarValue> {
        let rows = args.number_rows;
        let [time, slide, shift] = take_function_args(self.name(), args.args)?;
        let time = time.into_array(rows)?;
        let DataType::Timestamp(unit, _) = *time.data_type() else { return exec_err!("window_bin takes a TIMESTAMP") };
        let ColumnarValue::Scalar(ScalarValue::Int64(Some(slide))) = slide else {
            return exec_err!("window_bin takes a number for the slide");
        };
        let units = |micros| in_units(micros, unit).unwrap_or(0);
        let slide = units(slide).max(1);
        let bin = |time: i64, shift: i64| time.div_euclid(slide).saturating_mul(slide).saturating_add(shift);
        let times = cast(&time, &DataType::Int64)?; // the same numbers, not copied
        let times = times.as_primitive::<Int64Type>();
        let bins: Int64Array = match shift {
            ColumnarValue::Scalar(ScalarValue::Int64(Some(shift))) => {
                let shift = units(shift);
                times.unary(|time| bin(time, shift))
            }
            shifts => {
                let shifts = shifts.into_array(rows)?;
                binary(times, shifts.as_primitive::<Int64Type>(), |time, shift| bin(time, units(shift)))?
            }
        };
        let bins: ArrayRef = std::sync::Arc::new(bins);
        Ok(ColumnarValue::Array(cast(&bins, time.data_type())?))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use arrow::array::{TimestampMicrosecondArray, TimestampNanosecondArray};
    use arrow::datatypes::Field;
    use datafusion::common::config::ConfigOptions;

    use super::*;

    fn bins(time: ArrayRef, slide: i64, shift: ColumnarValue) -> ArrayRef {
        let Expr::ScalarFunction(function) = window_bin(lit(0), 1, lit(0)) else { panic!() };
        let field = Arc::new(Field::new("t", time.data_type().clone(), true));
        let number_rows = time.len();
        let slide = ColumnarValue::Scalar(ScalarValue::Int64(Some(slide)));
        let args = ScalarFunctionArgs {
            args: vec![ColumnarValue::Array(time), slide, shift],
            arg_fields: vec![],
            number_rows,
            return_field: field,
            config_options: Arc::new(ConfigOptions::new()),
        };
        function.func.invoke_with_args(args).unwrap().into_array(number_rows).unwrap()
    }

    #[test]
    fn every_time_has_a_bin() {
        let shift = |micros| ColumnarValue::Scalar(ScalarValue::Int64(Some(micros)));
        let times =
            TimestampMicrosecondArray::from(vec![Some(-1), Some(0), Some(12), None, Some(i64::MIN), Some(i64::MAX)]);
        let found = bins(Arc::new(times.clone()), 5, shift(0));
        let end = i64::MAX - i64::MAX % 5;
        let expected = vec![Some(-5), Some(0), Some(10), None, Some(i64::MIN), Some(end)];
        assert_eq!(found.as_ref(), &TimestampMicrosecondArray::from(expected) as &dyn Array);
        let found = bins(Arc::new(times), 5, shift(60));
        assert_eq!(found.as_primitive::<arrow::datatypes::TimestampMicrosecondType>().value(5), i64::MAX);
    }

    #[test]
    fn other_units_and_shifts_by_row() {
        let times = TimestampNanosecondArray::from(vec![12_345, 12_345]).with_timezone("UTC");
        let shifts = ColumnarValue::Array(Arc::new(Int64Array::from(vec![0, -5])));
        let found = bins(Arc::new(times), 5, shifts);
        let expected = TimestampNanosecondArray::from(vec![10_000, 5_000]).with_timezone("UTC");
        assert_eq!(found.as_ref(), &expected as &dyn Array);
    }
}
