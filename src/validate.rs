//! `plimsoll validate`: manifests checked as an API server and the plan would, with neither at hand.
//!
//! Files, directories and standard input go in; findings by file, line and field come out, for people or
//! as JSON. What is an error refuses the manifest in a cluster too; what only other objects can show is a
//! warning, because they may be elsewhere.

use crate::source::lines::Lines;
use crate::source::manifest::{Custom, Document, Entry, Reading, Wrong, documents};
use crate::source::{Fault, files_below};
use plimsoll_api::{ModelRoute, Object, ObjectId, Problem};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_plan::{Planner, Settings, World};
use serde::Serialize;
use std::cell::OnceCell;
use std::collections::{BTreeSet, HashMap};
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// What a pipeline reads.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Verdict {
    /// Objects without an error.
    pub good: usize,
    /// Objects, documents and files with one.
    pub bad: usize,
    /// Objects of other groups, which are not looked at.
    pub skipped: usize,
    /// Everything to say, in the order of the files.
    pub findings: Vec<Finding>,
}

/// One thing to say.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    /// Whether the manifest is refused because of it.
    pub severity: Severity,
    /// The file as it was given, or `stdin`.
    pub file: String,
    /// From 1; absent where it is the whole file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// `AIBudget finance/all`, as far as it can be told.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub object: Option<String>,
    /// `spec.limits[0].amount`; empty where it is the whole object.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub field: String,
    /// What is wrong, and what to do.
    pub message: String,
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Severity {
    /// The manifest is refused.
    Error,
    /// Other objects may show that it is right.
    Warning,
}

impl Verdict {
    /// Whether something was read and nothing is wrong with it. That nothing was read is most likely a
    /// pipeline that broke before us.
    #[must_use]
    pub fn is_good(&self) -> bool {
        self.bad == 0 && self.good + self.skipped > 0
    }

    /// A line a finding, and one that sums up.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        for Finding { severity, file, line, object, field: _, message } in &self.findings {
            let place = line.map_or_else(|| file.clone(), |line| format!("{file}:{line}"));
            let message = match severity {
                Severity::Error => message.clone(),
                Severity::Warning => format!("warning: {message}"),
            };
            text += &format!("{}\n", Fault { place, object: object.clone(), message });
        }
        let warnings = self.findings.iter().filter(|finding| finding.severity == Severity::Warning).count();
        let Self { good, bad, skipped, .. } = self;
        let mut parts = vec![format!("{good} good"), format!("{bad} bad")];
        parts.extend(
            (warnings > 0).then(|| format!("{warnings} warning{}", if warnings == 1 { "" } else { "s" })),
        );
        parts.extend((*skipped > 0).then(|| format!("{skipped} skipped (other kinds)")));
        if good + bad + skipped == 0 {
            parts = vec![
                "nothing to check was found; give files, directories or - for standard input".to_owned(),
            ];
        }
        text + &parts.join(", ") + "\n"
    }
}

/// Checks everything at `paths`: files, directories, `-` for standard input. Objects that name no namespace
/// get `namespace`.
#[must_use]
pub fn validate(paths: &[PathBuf], namespace: Option<&str>, settings: &Settings) -> Verdict {
    let inputs: Vec<Input> = paths.iter().flat_map(|path| inputs(path)).collect();
    let mut check = Check::new(settings);
    for Input { shown, text, found } in &inputs {
        match text {
            Ok(text) => {
                let custom = Custom { namespace, strays: *found };
                for document in documents(text.strip_prefix('\u{feff}').unwrap_or(text)) {
                    check.document(shown, document, custom);
                }
            }
            Err((line, message)) => {
                let (severity, file, message) = (Severity::Error, shown.clone(), message.clone());
                let finding =
                    Finding { severity, file, line: *line, object: None, field: String::new(), message };
                check.verdict.findings.push(finding);
                check.verdict.bad += 1;
            }
        }
    }
    // Of a wrong backend routes would say that it does not exist.
    if check.verdict.bad == 0 {
        check.routes();
    }
    check.verdict
}

/// A text and how it is to be taken.
struct Input {
    shown: String,
    text: Result<String, (Option<usize>, String)>,
    /// Found in a directory, where other files lie too.
    found: bool,
}

/// Where an object stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a str,
    document: Document<'a>,
    line: usize,
    item: Option<usize>,
}

impl Place<'_> {
    fn finding(&self, severity: Severity, object: Option<String>, wrong: Wrong) -> Finding {
        let Wrong { line, field, message } = wrong;
        Finding { severity, file: self.file.to_owned(), line: Some(line), object, field, message }
    }
}

/// What was read so far.
struct Check<'a> {
    settings: &'a Settings,
    verdict: Verdict,
    places: HashMap<ObjectId, Place<'a>>,
    routes: Vec<(Box<ModelRoute>, Place<'a>)>,
    /// Has the routes and backends.
    planner: Planner,
}

impl<'a> Check<'a> {
    fn new(settings: &'a Settings) -> Self {
        Self {
            settings,
            verdict: Verdict::default(),
            places: HashMap::new(),
            routes: Vec::new(),
            planner: Planner::new(World::new(settings.clone())),
        }
    }

    fn document(&mut self, file: &'a str, document: Document<'a>, custom: Custom<'_>) {
        let Reading { entries, others } = document.read_as(custom);
        self.verdict.skipped += others;
        let lines = OnceCell::new();
        for Entry { line, item, id, content: _, object } in entries {
            let place = Place { file, document, line, item };
            let wrongs = object.map_or_else(
                |wrongs| wrongs,
                |object| {
                    let wrong = |Problem { field, message, .. }| {
                        let line = lines.get_or_init(|| Lines::of(&document)).find(item, &field);
                        Wrong { line, field, message }
                    };
                    let problems = plimsoll_plan::check(&object, self.settings).into_iter().map(wrong);
                    problems.chain(self.take(object, place)).collect()
                },
            );
            match wrongs.is_empty() {
                true => self.verdict.good += 1,
                false => self.verdict.bad += 1,
            }
            let name = id.as_ref().map(ObjectId::to_string);
            let findings =
                wrongs.into_iter().map(|wrong| place.finding(Severity::Error, name.clone(), wrong));
            self.verdict.findings.extend(findings);
        }
    }

    /// Remembers `object`. Twice in one file it is a mistake, in several files it may be meant: a file for
    /// each cluster.
    fn take(&mut self, object: Object, place: Place<'a>) -> Option<Wrong> {
        let id = object.id();
        let again = |message| Wrong { line: place.line, field: String::new(), message };
        let wrong = match self.places.get(&id) {
            None => None,
            Some(first) if first.file == place.file => {
                Some(again(format!("stands in line {} too; remove one of them", first.line)))
            }
            Some(Place { file, line, .. }) => {
                let message =
                    format!("stands in {file}:{line} too; in one cluster the last one applied counts");
                let finding = place.finding(Severity::Warning, Some(id.to_string()), again(message));
                self.verdict.findings.push(finding);
                None
            }
        };
        self.places.entry(id).or_insert(place);
        if let Object::Route(route) = &object {
            self.routes.push((route.clone(), place));
        }
        if matches!(object, Object::Route(_) | Object::Backend(_)) {
            self.planner.put(object);
        }
        wrong
    }

    /// What routes say of backends that stand here too, and of each other.
    fn routes(&mut self) {
        self.planner.replan(UnixMs(0));
        let plan = self.planner.plan();
        // A team's repository rarely has the platform's backends.
        let given: BTreeSet<&str> = plan.backends.keys().map(|name| &*name.namespace).collect();
        for (route, place) in &self.routes {
            let id = Object::Route(route.clone()).id();
            let Some(planned) = plan.routes.get(&ObjectName::new(&*id.namespace, &*id.name)) else {
                continue;
            };
            for plimsoll_plan::Problem { reason, field, message } in
                planned.problems.iter().chain(&planned.unresolved)
            {
                let told = match *reason {
                    "BackendNotFound" => given.contains(referenced(route, field).unwrap_or(&*id.namespace)),
                    "ModelNotFound" | "Conflicted" => true,
                    // Needs the labels of namespaces, which may be elsewhere.
                    _ => false,
                };
                if told {
                    let line = Lines::of(&place.document).find(place.item, field);
                    let wrong = Wrong { line, field: field.clone(), message: message.clone() };
                    let finding = place.finding(Severity::Warning, Some(id.to_string()), wrong);
                    self.verdict.findings.push(finding);
                }
            }
        }
    }
}

/// The namespace that the reference at `field` names.
fn referenced<'a>(route: &'a ModelRoute, field: &str) -> Option<&'a str> {
    let backends = route.spec.tiers.first()?.backends.iter().enumerate();
    let mut at = backends.filter(|(index, _)| field == format!("spec.tiers[0].backends[{index}].backendRef"));
    at.next()?.1.backend_ref.namespace.as_deref()
}

fn inputs(path: &Path) -> Vec<Input> {
    if path == Path::new("-") {
        let mut bytes = Vec::new();
        let read = io::stdin().lock().read_to_end(&mut bytes).map(|_| bytes);
        return vec![Input { shown: "stdin".to_owned(), text: text(read), found: false }];
    }
    let one = |path: &Path, found| Input {
        shown: path.display().to_string(),
        text: text(std::fs::read(path)),
        found,
    };
    if !path.is_dir() {
        return vec![one(path, false)];
    }
    match files_below(path) {
        Ok(files) => files.iter().map(|file| one(file, true)).collect(),
        Err(error) => vec![Input { shown: path.display().to_string(), text: text(Err(error)), found: false }],
    }
}

/// The text, or on which line it is none, and why.
fn text(bytes: io::Result<Vec<u8>>) -> Result<String, (Option<usize>, String)> {
    let bytes = bytes.map_err(|error| (None, format!("can't be read: {error}")))?;
    String::from_utf8(bytes).map_err(|error| {
        let (good, bad) = error.as_bytes().split_at(error.utf8_error().valid_up_to());
        let line = good.iter().filter(|byte| **byte == b'\n').count() + 1;
        let byte = bad.first().copied().unwrap_or_default();
        (Some(line), format!("byte 0x{byte:02x} is not UTF-8 text; save the file as UTF-8"))
    })
}
