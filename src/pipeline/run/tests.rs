//! The SQL of a pipeline without servers: batches by hand, and one query over all rows as the oracle.

mod harness;

mod check;

mod dimensions;

mod late;

mod oracle;

mod places;

mod property;

mod read_back;

mod refused;

mod shared;

mod shipped;

mod views;
