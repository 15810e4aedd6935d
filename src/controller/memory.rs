//! What budgets were in force, kept over restarts: a file of lines beside the ledger's.
//!
//! A budget that turned bad keeps the version before it, and one whose manifest can't be read stays as it
//! is; an operator that starts anew would know neither without this. A line is written before gateways
//! hear of it. It is not synced: a process that dies loses nothing, and a machine that dies costs at most
//! the memory of its last changes, which counts only where such a budget's manifest is bad as well.

use anyhow::Context;
use plimsoll_core::ids::ObjectName;
use plimsoll_core::policy::{Budget, PolicyKey, PolicyObject};
use plimsoll_core::window::WindowSpec;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

/// Lines beyond twice the budgets that there are, before the file is written anew.
const SLACK: usize = 1_000;

/// The memory, open for writing.
#[derive(Debug)]
pub struct Memory {
    path: PathBuf,
    /// Absent after a failure: then it is written anew.
    file: Option<File>,
    lines: usize,
}

/// `body` absent: it is gone.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    budget: ObjectName,
    #[serde(default)]
    body: Option<Budget>,
}

/// A [`Line`], written.
#[derive(Serialize)]
struct Written<'a> {
    budget: &'a ObjectName,
    #[serde(skip_serializing_if = "Option::is_none")]
    body: Option<&'a RawValue>,
}

impl Memory {
    /// The memory beside the ledger in `ledger`, and what stands in it.
    ///
    /// # Errors
    /// It is there and can't be read: to go on without it could lift a budget.
    pub fn open(ledger: &Path) -> anyhow::Result<(Self, BTreeMap<ObjectName, Budget>)> {
        let mut path = ledger.as_os_str().to_owned();
        path.push("-budgets");
        let path = PathBuf::from(path);
        let shown = path.display();
        let bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "{shown}, where the budgets in force are remembered, can't be read; mend it, or remove \
                         it when every manifest is good"
                    )
                });
            }
        };
        let mut budgets = BTreeMap::new();
        for (index, line) in bytes.split_inclusive(|byte| *byte == b'\n').enumerate() {
            let number = index + 1;
            match read(line) {
                Some(Line { budget, body: Some(body) }) => drop(budgets.insert(budget, body)),
                Some(Line { budget, body: None }) => drop(budgets.remove(&budget)),
                // Only the last one has no end: it was cut by the end of a machine.
                None if !line.ends_with(b"\n") => {
                    tracing::warn!("{shown}:{number}: this line was cut short and is left out");
                }
                // Left out, it would be gone for good with the next change of any budget.
                None => anyhow::bail!(
                    "{shown}:{number}: this line, of a budget in force, is not understood; mend it, or remove the \
                     file when every manifest is good"
                ),
            }
        }
        Ok((Self { path, file: None, lines: 0 }, budgets))
    }

    /// Where it stands.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Remembers what `changed`; `all` is the policy after it.
    ///
    /// # Errors
    /// It can't be written; the next call writes all of it.
    pub fn note(
        &mut self,
        changed: &BTreeMap<PolicyKey, Option<PolicyObject>>,
        all: &BTreeMap<PolicyKey, PolicyObject>,
    ) -> io::Result<()> {
        let mut changed =
            changed.iter().filter_map(|(key, object)| Some((name(key)?, object.as_ref()))).peekable();
        if changed.peek().is_none() && self.file.is_some() {
            return Ok(());
        }
        let budgets = || all.iter().filter_map(|(key, object)| Some((name(key)?, Some(object))));
        // `take`: what fails here is no file to go on with.
        let written = match self.file.take() {
            Some(file) if self.lines < 2 * budgets().count() + SLACK => {
                write(&file, changed).map(|lines| (file, self.lines + lines))
            }
            Some(_) | None => self.renew(budgets()),
        };
        let (file, lines) = written?;
        (self.file, self.lines) = (Some(file), lines);
        Ok(())
    }

    /// Writes all of it, in place of what there is.
    fn renew<'a>(
        &self,
        budgets: impl Iterator<Item = (&'a ObjectName, Option<&'a PolicyObject>)>,
    ) -> io::Result<(File, usize)> {
        let mut fresh = self.path.clone().into_os_string();
        fresh.push(".new");
        let file = File::create(&fresh)?;
        let lines = write(&file, budgets)?;
        file.sync_all()?;
        std::fs::rename(&fresh, &self.path)?;
        Ok((file, lines))
    }
}

fn write<'a>(
    file: &File,
    budgets: impl Iterator<Item = (&'a ObjectName, Option<&'a PolicyObject>)>,
) -> io::Result<usize> {
    let mut out = BufWriter::new(file);
    let mut lines = 0;
    for (name, object) in budgets {
        let body = object.map(|object| serde_json::from_str(&object.body)).transpose()?;
        serde_json::to_writer(&mut out, &Written { budget: name, body })?;
        out.write_all(b"\n")?;
        lines += 1;
    }
    out.flush()?;
    Ok(lines)
}

fn name(key: &PolicyKey) -> Option<&ObjectName> {
    match key {
        PolicyKey::Budget(name) => Some(name),
        PolicyKey::Installation | PolicyKey::Window(_) | PolicyKey::Backend(_) | PolicyKey::Route(_) => None,
    }
}

fn read(line: &[u8]) -> Option<Line> {
    let line: Line = serde_json::from_slice(line).ok()?;
    let limits = line.body.iter().flat_map(|body| &body.limits);
    let known = limits.map(|limit| limit.window.parse::<WindowSpec>()).all(|window| window.is_ok());
    known.then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;
    use plimsoll_core::account::{Amount, Unit};
    use plimsoll_core::policy::{Enforcement, Limit, Namespaces, Verdict};

    type Policy = BTreeMap<PolicyKey, PolicyObject>;

    fn body(amount: i64) -> Budget {
        Budget {
            namespaces: Namespaces::All,
            features: None,
            users: None,
            routes: None,
            models: None,
            limits: vec![Limit {
                name: "month".to_owned(),
                unit: Unit::Usd,
                window: "Month@Europe/Berlin".to_owned(),
                amount: Amount(amount),
                block_at: Amount(amount),
            }],
            enforcement: Enforcement::Enforce,
            unpriced: Verdict::Deny,
            contact: None,
        }
    }

    fn key(name: &str) -> PolicyKey {
        PolicyKey::Budget(ObjectName::new("finance", name))
    }

    /// `policy` with `name` changed to `amount`, and just that change.
    fn change(
        policy: &mut Policy,
        name: &str,
        amount: Option<i64>,
    ) -> BTreeMap<PolicyKey, Option<PolicyObject>> {
        let object = amount.map(|amount| PolicyObject::encode(key(name), &body(amount)));
        match object.clone() {
            Some(object) => drop(policy.insert(key(name), object)),
            None => drop(policy.remove(&key(name))),
        }
        BTreeMap::from([(key(name), object)])
    }

    fn amounts(ledger: &Path) -> Vec<(String, i64)> {
        let (_, budgets) = Memory::open(ledger).unwrap();
        budgets.into_iter().map(|(name, body)| (name.name, body.limits[0].amount.0)).collect()
    }

    #[test]
    fn what_was_in_force_last_is_read_again_even_after_a_torn_line() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("ledger.db");
        let (mut memory, budgets) = Memory::open(&ledger).unwrap();
        assert!(budgets.is_empty());
        let mut policy = Policy::new();
        for (name, amount) in [("a", Some(1)), ("b", Some(2)), ("a", Some(3)), ("c", Some(4)), ("b", None)] {
            memory.note(&change(&mut policy, name, amount), &policy).unwrap();
        }
        let expected = [("a".to_owned(), 3), ("c".to_owned(), 4)];
        assert_eq!(amounts(&ledger), expected);
        let mut file = File::options().append(true).open(memory.path()).unwrap();
        // Cut within a letter.
        file.write_all(b"{\"budget\":\"finance/a\",\"bo\xc3").unwrap();
        assert_eq!(amounts(&ledger), expected);
    }

    #[test]
    fn a_line_that_is_whole_and_not_understood_is_named_and_not_left_out() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("ledger.db");
        let (mut memory, _) = Memory::open(&ledger).unwrap();
        let mut policy = Policy::new();
        memory.note(&change(&mut policy, "a", Some(1)), &policy).unwrap();
        let good = std::fs::read_to_string(memory.path()).unwrap();
        for bad in ["{\"budget\":\"finance/b\",\"bo\n", "{\"budget\":\"finance/b\",\"of\":\"later\"}\n"] {
            // In the middle, and last.
            for (text, number) in [(format!("{bad}{good}"), 1), (format!("{good}{bad}"), 2)] {
                std::fs::write(memory.path(), &text).unwrap();
                let error = format!("{:#}", Memory::open(&ledger).unwrap_err());
                assert!(error.contains(&format!("ledger.db-budgets:{number}: ")), "{error}");
                assert!(error.contains("mend it, or remove the file"), "{error}");
                assert_eq!(std::fs::read_to_string(memory.path()).unwrap(), text);
            }
        }
    }

    #[test]
    fn a_budget_that_changes_for_ever_does_not_fill_the_disk() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("ledger.db");
        let (mut memory, _) = Memory::open(&ledger).unwrap();
        let mut policy = Policy::new();
        for amount in 0..3_000 {
            memory.note(&change(&mut policy, "a", Some(amount)), &policy).unwrap();
        }
        let lines = std::fs::read_to_string(memory.path()).unwrap().lines().count();
        assert!(lines <= SLACK + 2, "{lines}");
        assert_eq!(amounts(&ledger), [("a".to_owned(), 2_999)]);
    }

    #[test]
    fn what_could_not_be_written_is_written_with_the_next_change() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("not there yet/ledger.db");
        let (mut memory, _) = Memory::open(&ledger).unwrap();
        let mut policy = Policy::new();
        assert!(memory.note(&change(&mut policy, "a", Some(1)), &policy).is_err());
        std::fs::create_dir(ledger.parent().unwrap()).unwrap();
        memory.note(&change(&mut policy, "b", Some(2)), &policy).unwrap();
        assert_eq!(amounts(&ledger), [("a".to_owned(), 1), ("b".to_owned(), 2)]);
    }

    #[test]
    fn a_memory_that_cannot_be_read_is_no_empty_one() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = directory.path().join("ledger.db");
        std::fs::create_dir(directory.path().join("ledger.db-budgets")).unwrap();
        let error = Memory::open(&ledger).unwrap_err();
        assert!(format!("{error:#}").contains("mend it, or remove it when every manifest is good"));
    }
}
