//! What of a stored table is not as it is declared, and the statement that would make it so.

/// Collected over the columns of one table.
#[derive(Debug, Default)]
pub(super) struct Misfits {
    found: Vec<String>,
    /// Parts of ALTER TABLE, for those that have one.
    changes: Vec<String>,
}

impl Misfits {
    /// `change`: what ALTER TABLE would have to do.
    pub fn add(&mut self, what: String, change: Option<String>) {
        self.found.push(what);
        self.changes.extend(change);
    }

    /// Cause and hint of an error; `None`: the table fits. `otherwise` is what else than the declaration can be changed, `place`
    /// where the statements should go.
    pub fn told(self, table: &str, otherwise: &str, place: &str) -> Option<(String, String)> {
        if self.found.is_empty() {
            return None;
        }
        let statements: Vec<String> = self.changes.iter().map(|c| format!("ALTER TABLE {table} {c};")).collect();
        let hint = match statements.is_empty() {
            true => format!("change the declaration{otherwise}"),
            false => format!("change the declaration{otherwise}; or put into {place}: {}", statements.join(" ")),
        };
        Some((self.found.join("; "), hint))
    }
}
