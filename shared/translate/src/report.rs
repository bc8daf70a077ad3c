//! What became of a module. Input: the outcome of each statement. Output: a report that people and programs read.

use serde::Serialize;

use crate::python::{Item, Kind};

pub use schemas::http::{TranslationItem as ItemReport, TranslationStatus as Status, TranslationSummary as Summary};

/// The whole module.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Every function was translated, and verified if that was wanted; there is nothing else but imports.
    pub complete: bool,
    /// Whether verification was wanted.
    pub verified: bool,
    /// Functions by status.
    pub summary: Summary,
    /// Why rustc does not take all functions together, although it takes each.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file_problem: Option<String>,
    /// Every statement, in source order.
    pub items: Vec<ItemReport>,
}

/// The report of a statement of which nothing is known yet.
pub(crate) fn blank(item: &Item, status: Status) -> ItemReport {
    ItemReport {
        kind: item.kind,
        name: item.name.clone(),
        line: item.line as u64,
        status,
        reason: None,
        attempts: 0,
        cached: false,
        compiles: None,
        behaves: None,
        rust: None,
    }
}

impl Report {
    /// Sums up.
    #[must_use]
    pub fn new(items: Vec<ItemReport>, verified: bool, file_problem: Option<String>) -> Self {
        let mut summary = Summary::default();
        for item in items.iter().filter(|item| item.kind == Kind::Function) {
            summary.functions += 1;
            *match item.status {
                Status::Translated => &mut summary.translated,
                Status::Repaired => &mut summary.repaired,
                Status::Unverified => &mut summary.unverified,
                Status::Failed => &mut summary.failed,
                Status::Unsupported => &mut summary.unsupported,
            } += 1;
        }
        let lost = |item: &ItemReport| matches!(item.kind, Kind::Class | Kind::Statement);
        let lost = items.iter().any(lost);
        let mut report = Self {
            complete: false,
            verified,
            summary,
            file_problem,
            items,
        };
        report.complete = report.good() == summary.functions && !lost && report.file_problem.is_none();
        report
    }

    /// How many functions are as good as was wanted.
    #[must_use]
    pub fn good(&self) -> u64 {
        let unverified = if self.verified { 0 } else { self.summary.unverified };
        self.summary.translated + self.summary.repaired + unverified
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn item(kind: Kind, status: Status) -> ItemReport {
        ItemReport {
            kind,
            name: None,
            line: 1,
            status,
            reason: None,
            attempts: 1,
            cached: false,
            compiles: None,
            behaves: None,
            rust: None,
        }
    }

    #[test]
    fn complete_means_every_function_as_far_as_was_wanted() {
        let function = |status| item(Kind::Function, status);
        let import = item(Kind::Import, Status::Unsupported);
        let report = |items: Vec<ItemReport>, verified| Report::new(items, verified, None);
        let good = vec![import, function(Status::Translated), function(Status::Repaired)];
        assert!(report(good.clone(), true).complete && report(Vec::new(), true).complete);
        assert!(!Report::new(good.clone(), true, Some("twice".to_owned())).complete);
        let with = |more: ItemReport| good.iter().cloned().chain([more]).collect::<Vec<_>>();
        assert!(report(with(function(Status::Unverified)), false).complete);
        assert!(!report(with(function(Status::Unverified)), true).complete);
        for more in [
            function(Status::Failed),
            function(Status::Unsupported),
            item(Kind::Class, Status::Unsupported),
            item(Kind::Statement, Status::Unsupported),
        ] {
            assert!(!report(with(more), false).complete);
        }
        let summary = report(with(function(Status::Failed)), true).summary;
        assert_eq!(
            (summary.functions, summary.translated, summary.repaired, summary.failed),
            (3, 1, 1, 1)
        );
    }
}
