//! What was really put back, counted, and how it is told.

/// What became of kept rows.
#[derive(Debug, Default)]
pub(in crate::driver::postgres) struct Returned {
    /// Schema and origin, when it was not this rollback's own.
    pub from: Option<String>,
    pub parts: Vec<ReturnedPart>,
    /// Older schemas with the same tables and columns, which stay.
    pub others: Vec<String>,
    /// Schemas that would have been put back, and why they could not.
    pub unfit: Vec<(String, String)>,
}

#[derive(Debug)]
pub(in crate::driver::postgres) struct ReturnedPart {
    pub name: String,
    pub put: u64,
    pub kept: u64,
    pub left_out: u64,
    /// Why rows that still have a place were not put there.
    pub why: &'static str,
}

impl Returned {
    /// Adds what a later part of the same leg put back.
    fn add(&mut self, later: Self) {
        self.from = later.from.or(self.from.take());
        self.parts.extend(later.parts);
        self.others.extend(later.others);
        self.unfit.extend(later.unfit);
    }

    /// Adds what one part put back to what the parts before it did.
    pub fn gather(all: &mut Option<Self>, more: Option<Self>) {
        match (all.as_mut(), more) {
            (Some(all), Some(more)) => all.add(more),
            (None, more) => *all = more,
            (Some(_), None) => {}
        }
    }

    /// For a summary; empty when nothing was kept at all.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        if !self.parts.is_empty() {
            text.push_str("; put back");
            if let Some(from) = &self.from {
                text.push_str(&format!(" from {from}"));
            }
            text.push_str(&format!(": {}", describe(&self.parts)));
        }
        if !self.others.is_empty() {
            let others = self.others.join(", ");
            text.push_str(&format!("; older kept rows stay where they are: {others}"));
        }
        for (schema, why) in &self.unfit {
            text.push_str(&format!("; warning: kept rows in {schema} were not put back: {why}"));
        }
        text
    }
}

pub(super) fn describe(parts: &[ReturnedPart]) -> String {
    let one = |part: &ReturnedPart| {
        let mut text = format!("{} {}", part.name, part.put);
        if part.put < part.kept {
            text.push_str(&format!(" of {}", part.kept));
        }
        text.push_str(if part.kept == 1 { " row" } else { " rows" });
        let gone = part.kept.saturating_sub(part.put + part.left_out);
        let mut why = Vec::new();
        if gone > 0 {
            why.push(format!("{gone} deleted since"));
        }
        if part.left_out > 0 {
            why.push(format!("{} {}, still kept", part.left_out, part.why));
        }
        if !why.is_empty() {
            text.push_str(&format!(" ({})", why.join(", ")));
        }
        text
    };
    parts.iter().map(one).collect::<Vec<_>>().join(", ")
}
