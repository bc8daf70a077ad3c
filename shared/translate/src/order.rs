//! Which function when. Input: a module and what is decided so far. Output: the functions that can be asked for now, and
//! those for which it is too late. Pure.

use std::collections::{BTreeMap, BTreeSet};

use crate::python::{Kind, Module};
use crate::report::{ItemReport, Status, blank};

/// Undecided functions whose callees are all decided: alone, or with others that call each other in a circle. Places in the
/// module; no function stands in two groups.
pub(crate) fn next_wave(module: &Module, outcomes: &[Option<ItemReport>]) -> Vec<Vec<usize>> {
    let open: BTreeMap<&str, usize> = (0..outcomes.len())
        .filter(|place| outcomes[*place].is_none())
        .filter_map(|place| Some((module.items[place].name.as_deref()?, place)))
        .collect();
    let calls = |place: usize| {
        let calls = module.items[place].calls.iter();
        calls.filter_map(|name| open.get(name.as_str()).copied())
    };
    let free: Vec<Vec<usize>> = open
        .values()
        .filter(|place| calls(**place).next().is_none())
        .map(|place| vec![*place])
        .collect();
    if !free.is_empty() || open.is_empty() {
        return free;
    }
    // Everybody calls somebody undecided, so there is a circle; those from which nobody outside it can be reached go now.
    let reached: BTreeMap<usize, BTreeSet<usize>> = open
        .values()
        .map(|place| {
            let (mut found, mut next) = (BTreeSet::new(), vec![*place]);
            while let Some(place) = next.pop() {
                next.extend(calls(place).filter(|called| found.insert(*called)));
            }
            (*place, found)
        })
        .collect();
    let closed = reached
        .iter()
        .filter(|(place, found)| found.iter().all(|other| reached[other].contains(place)));
    let groups: BTreeSet<&BTreeSet<usize>> = closed.map(|(_, found)| found).collect();
    groups
        .into_iter()
        .map(|group| group.iter().copied().collect())
        .collect()
}

/// Undecided functions that use one that was not translated, and those that use them.
pub(crate) fn hopeless(module: &Module, outcomes: &[Option<ItemReport>]) -> Vec<(usize, ItemReport)> {
    // An earlier definition of the same name does not count.
    let functions = || {
        let items = module.items.iter().enumerate();
        items.filter(|(_, item)| item.kind == Kind::Function && !item.replaced)
    };
    let failed = |place: usize| outcomes[place].as_ref().is_some_and(|outcome| !outcome.is_written());
    let mut lost: BTreeSet<&str> = functions()
        .filter(|(place, _)| failed(*place))
        .filter_map(|(_, item)| item.name.as_deref())
        .collect();
    let mut found = BTreeMap::new();
    loop {
        let before = found.len();
        for (place, item) in functions() {
            if outcomes[place].is_some() || found.contains_key(&place) {
                continue;
            }
            if let Some(name) = item.calls.iter().find(|name| lost.contains(name.as_str())) {
                let reason = format!("it calls `{name}`, which is not translated");
                let report = ItemReport {
                    reason: Some(reason),
                    ..blank(item, Status::Failed)
                };
                found.insert(place, report);
                lost.extend(item.name.as_deref());
            }
        }
        if found.len() == before {
            return found.into_iter().collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(calls: &[(&str, &[&str])]) -> Module {
        let functions = calls.iter().map(|(name, calls)| {
            let calls: Vec<String> = calls.iter().map(|called| format!("{called}()")).collect();
            format!(
                "def {name}() -> int:\n    return 1 + {}\n",
                [&calls[..], &["0".to_owned()]].concat().join(" + ")
            )
        });
        Module::parse(&functions.collect::<String>()).unwrap()
    }

    fn decided(module: &Module, statuses: &[Option<Status>]) -> Vec<Option<ItemReport>> {
        let pairs = module.items.iter().zip(statuses);
        pairs
            .map(|(item, status)| status.map(|status| blank(item, status)))
            .collect()
    }

    #[test]
    fn callees_come_first_and_circles_together() {
        let module = module(&[
            ("top", &["even"]),
            ("even", &["odd", "leaf"]),
            ("odd", &["even"]),
            ("leaf", &["leaf"]),
            ("a", &["b"]),
            ("b", &["a"]),
        ]);
        let mut statuses = vec![None; 6];
        let wave = |statuses: &[Option<Status>]| next_wave(&module, &decided(&module, statuses));
        assert_eq!(wave(&statuses), [vec![3]]);
        statuses[3] = Some(Status::Translated);
        assert_eq!(wave(&statuses), [vec![1, 2], vec![4, 5]]);
        for place in [1, 2, 4, 5] {
            statuses[place] = Some(Status::Translated);
        }
        assert_eq!(wave(&statuses), [vec![0]]);
        statuses[0] = Some(Status::Translated);
        assert!(wave(&statuses).is_empty());
    }

    #[test]
    fn who_needs_what_is_lost_is_lost() {
        let module = module(&[("a", &["b"]), ("b", &["c"]), ("c", &[]), ("d", &[])]);
        let outcomes = decided(&module, &[None, None, Some(Status::Failed), None]);
        let lost: Vec<usize> = hopeless(&module, &outcomes)
            .into_iter()
            .map(|(place, _)| place)
            .collect();
        assert_eq!(lost, [0, 1]);
    }
}
