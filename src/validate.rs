//! `plimsoll validate`: manifests checked as an API server and the plan would, with neither at hand.
//!
//! Files, directories and standard input go in; findings by file, line and field come out, for people or
//! as JSON. What is an error refuses the manifest in a cluster too; what only other objects can show is a
//! warning, because they may be elsewhere.

use crate::source::manifest::{Custom, Document, documents};
use crate::source::{Fault, files_below};
use plimsoll_api::{ModelRoute, Object, ObjectId};
use plimsoll_core::ids::{ObjectName, UnixMs};
use plimsoll_plan::{Planner, Problem, Settings, World};
use serde::Serialize;
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

/// Where an object stands.
#[derive(Clone, Copy)]
struct Place<'a> {
    file: &'a str,
    document: Document<'a>,
    line: usize,
    item: Option<usize>,
}

/// A text and how it is to be taken.
struct Input {
    shown: String,
    text: Result<String, (Option<usize>, String)>,
    /// Found in a directory, where other files lie too.
    found: bool,
}

/// Checks everything at `paths`: files, directories, `-` for standard input. Objects that name no namespace
/// get `namespace`.
#[must_use]
pub fn validate(paths: &[PathBuf], namespace: Option<&str>, settings: &Settings) -> Verdict {
    let inputs: Vec<Input> = paths.iter().flat_map(|path| inputs(path)).collect();
    let mut verdict = Verdict::default();
    let mut places: HashMap<ObjectId, Place<'_>> = HashMap::new();
    let mut routes = Vec::new();
    let mut planner = Planner::new(World::new(settings.clone()));
    for Input { shown, text, found } in &inputs {
        let text = match text {
            Ok(text) => text,
            Err((line, message)) => {
                verdict.bad += 1;
                verdict.say(Severity::Error, shown, *line, None, "", message.clone());
                continue;
            }
        };
        for document in documents(text.strip_prefix('\u{feff}').unwrap_or(text)) {
            let reading = document.read_as(Custom { namespace, strays: *found });
            verdict.skipped += reading.others;
            for entry in reading.entries {
                let name = entry.id.as_ref().map(ObjectId::to_string);
                let before = verdict.findings.len();
                let place = Place { file: shown, document, line: entry.line, item: entry.item };
                match entry.object {
                    Err(wrongs) => {
                        for wrong in wrongs {
                            let line = Some(wrong.line);
                            verdict.say(
                                Severity::Error,
                                shown,
                                line,
                                name.clone(),
                                &wrong.field,
                                wrong.message,
                            );
                        }
                    }
                    Ok(object) => {
                        for problem in plimsoll_plan::check(&object, settings) {
                            let line = Some(document.line_of(entry.item, &problem.field));
                            verdict.say(
                                Severity::Error,
                                shown,
                                line,
                                name.clone(),
                                &problem.field,
                                problem.message,
                            );
                        }
                        verdict.twice(&object.id(), place, &places);
                        places.entry(object.id()).or_insert(place);
                        if let Object::Route(route) = &object {
                            routes.push((route.clone(), place));
                        }
                        if matches!(object, Object::Route(_) | Object::Backend(_)) {
                            planner.put(object);
                        }
                    }
                }
                let new = &verdict.findings[before..];
                match new.iter().any(|finding| finding.severity == Severity::Error) {
                    true => verdict.bad += 1,
                    false => verdict.good += 1,
                }
            }
        }
    }
    // Of a wrong backend others would say that it does not exist.
    if verdict.bad == 0 {
        verdict.warn(planner, &routes);
    }
    verdict
}

impl Verdict {
    fn say(
        &mut self,
        severity: Severity,
        file: &str,
        line: Option<usize>,
        object: Option<String>,
        field: &str,
        message: String,
    ) {
        let (file, field) = (file.to_owned(), field.to_owned());
        self.findings.push(Finding { severity, file, line, object, field, message });
    }

    /// In one file it is a mistake, in several it may be meant: a file for each cluster.
    fn twice(&mut self, id: &ObjectId, place: Place<'_>, places: &HashMap<ObjectId, Place<'_>>) {
        let Some(first) = places.get(id) else { return };
        let line = Some(place.line);
        let (severity, message) = if first.file == place.file {
            (Severity::Error, format!("stands in line {} too; remove one of them", first.line))
        } else {
            let message = format!(
                "stands in {}:{} too; in one cluster the last one applied counts",
                first.file, first.line
            );
            (Severity::Warning, message)
        };
        self.say(severity, place.file, line, Some(id.to_string()), "", message);
    }

    /// What routes say of backends that stand here too, and of each other.
    fn warn(&mut self, mut planner: Planner, routes: &[(Box<ModelRoute>, Place<'_>)]) {
        planner.replan(UnixMs(0));
        let plan = planner.plan();
        // A team's repository rarely has the platform's backends.
        let given: BTreeSet<&str> = plan.backends.keys().map(|name| &*name.namespace).collect();
        for (route, place) in routes {
            let id = Object::Route(route.clone()).id();
            let Some(planned) = plan.routes.get(&ObjectName::new(&*id.namespace, &*id.name)) else {
                continue;
            };
            for Problem { reason, field, message } in planned.problems.iter().chain(&planned.unresolved) {
                let told = match *reason {
                    "BackendNotFound" => given.contains(referenced(route, field).unwrap_or(&*id.namespace)),
                    "ModelNotFound" | "Conflicted" => true,
                    // Needs the labels of namespaces, which may be elsewhere.
                    _ => false,
                };
                if told {
                    let line = Some(place.document.line_of(place.item, field));
                    self.say(
                        Severity::Warning,
                        place.file,
                        line,
                        Some(id.to_string()),
                        field,
                        message.clone(),
                    );
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
