use super::*;
use layer_format::manifest::{Dependency, Manifest};
use std::sync::Mutex;

/// Images of a machine and of a registry, by name.
#[derive(Default)]
struct Fake {
    here: Vec<(String, ImageManifest)>,
    there: Option<Vec<(String, ImageManifest)>>,
    asked: Mutex<Vec<String>>,
}

#[derive(Debug)]
struct Absent;

impl std::fmt::Display for Absent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("there is none")
    }
}
impl std::error::Error for Absent {}

#[derive(Debug)]
struct Got(Digest, ImageManifest);

fn digest(manifest: &ImageManifest) -> Digest {
    Digest::of(&manifest.encode().unwrap())
}

fn names(images: &[(String, ImageManifest)], repository: &Repository) -> Vec<(String, Digest)> {
    let of = |(name, manifest): &(String, ImageManifest)| {
        let reference: ImageReference = name.parse().unwrap();
        (reference.repository == *repository).then(|| (reference.release().unwrap().to_owned(), digest(manifest)))
    };
    images.iter().filter_map(of).collect()
}

impl Source for Fake {
    type Image = Got;

    fn local(&self, repository: &Repository) -> Result<Vec<(String, Digest)>> {
        Ok(names(&self.here, repository))
    }

    fn remote(&self, repository: &Repository) -> Result<Option<Vec<(String, Digest)>>> {
        self.asked.lock().unwrap().push(format!("releases of {repository}"));
        Ok(self.there.as_ref().map(|there| names(there, repository)))
    }

    fn get(&self, reference: &ImageReference, wanted: Option<Digest>) -> Result<Got> {
        let find = |images: &[(String, ImageManifest)]| {
            let is = |(name, manifest): &&(String, ImageManifest)| {
                let known: ImageReference = name.parse().unwrap();
                let same = match &reference.revision {
                    Revision::Digest(wanted) => *wanted == digest(manifest),
                    _ => known == *reference,
                };
                known.repository == reference.repository && wanted.map_or(same, |wanted| wanted == digest(manifest))
            };
            images.iter().find(is).map(|(_, manifest)| Got(digest(manifest), manifest.clone()))
        };
        if let Some(found) = find(&self.here) {
            return Ok(found);
        }
        self.asked.lock().unwrap().push(reference.to_string());
        self.there.as_ref().and_then(|there| find(there)).ok_or_else(|| Absent.into())
    }

    fn is_absent(&self, error: &anyhow::Error) -> bool {
        error.is::<Absent>()
    }

    fn manifest<'a>(&self, image: &'a Got) -> (Digest, &'a ImageManifest) {
        (image.0, &image.1)
    }
}

/// `NAME needs REFERENCE[ RANGE], ...`
fn image(line: &str) -> (String, ImageManifest) {
    let (name, needs) = line.split_once(" needs ").unwrap_or((line, ""));
    let mut manifest = ImageManifest::new("any", vec![]);
    manifest.metadata.insert("name".into(), name.into());
    for need in needs.split(", ").filter(|need| !need.is_empty()) {
        let (reference, releases) = need.split_once(' ').map_or((need, None), |(reference, range)| (reference, Some(range.to_owned())));
        manifest.dependencies.push(Dependency { reference: reference.into(), releases, digest: None });
    }
    (name.into(), manifest)
}

fn images(lines: &[&str]) -> Vec<(String, ImageManifest)> {
    lines.iter().map(|line| image(line)).collect()
}

fn list(names: &[&str]) -> Vec<ImageReference> {
    names.iter().map(|name| name.parse().unwrap()).collect()
}

fn stack(source: &Fake, named: &[&str], using: &[&str]) -> Result<Graph<Got>> {
    follow(source, &Request { images: &list(named), using: &list(using), ..Request::default() })
}

fn shown(graph: &Graph<Got>) -> Vec<String> {
    graph.nodes.iter().map(|node| node.reference.to_string()).collect()
}

#[test]
fn dependencies_lie_below_what_needs_them_each_once() {
    let here = images(&["app needs lib, base", "lib needs base:1.0", "base:1.0", "base", "tool needs lib, debugger", "debugger", "settings"]);
    let source = Fake { here, ..Fake::default() };
    let graph = stack(&source, &["app", "settings", "app"], &["tool"]).unwrap();
    assert_eq!(shown(&graph), ["base", "lib", "debugger", "app", "settings", "tool"]);
    let roles: Vec<Role> = graph.nodes.iter().map(|node| node.role).collect();
    use Role::{Dependency, Image, Using};
    assert_eq!(roles, [Dependency, Dependency, Using, Image, Image, Using], "what --using alone needs is no part of a state either");
    assert!(graph.missing.is_empty());
    assert!(source.asked.lock().unwrap().is_empty(), "all is here");
}

#[test]
fn a_named_image_is_its_own_dependency_and_keeps_its_place() {
    let source = Fake { here: images(&["app needs base >=2", "base:1.0", "base:2.1"]), ..Fake::default() };
    assert_eq!(shown(&stack(&source, &["app"], &[]).unwrap()), ["base:2.1", "app"]);
    let graph = stack(&source, &["base:1.0", "app"], &[]).unwrap();
    assert_eq!(shown(&graph), ["base:1.0", "app"]);
    assert!(graph.notes.len() == 1 && graph.notes[0].contains(">=2") && graph.notes[0].contains("base:1.0"), "{:?}", graph.notes);
    let graph = stack(&source, &["base:1.0", "app", "base:2.1"], &[]).unwrap();
    assert!(graph.notes.is_empty(), "of two that were named one suits: {:?}", graph.notes);
}

#[test]
fn several_wishes_for_one_repository_are_met_together_or_the_first_is() {
    let here = images(&["a needs java >=8", "b needs java <12", "c needs java:8", "java:8.1", "java:8.2", "java:11", "java:17"]);
    let source = Fake { here, ..Fake::default() };
    assert_eq!(shown(&stack(&source, &["a"], &[]).unwrap())[0], "java:17");
    let graph = stack(&source, &["a", "b"], &[]).unwrap();
    assert_eq!((shown(&graph)[0].as_str(), graph.notes.len()), ("java:11", 0));
    assert_eq!(shown(&stack(&source, &["b", "c", "a"], &[]).unwrap())[0], "java:8.2");
    let source = Fake { here: images(&["a needs java:17", "b needs java:8", "java:8", "java:17"]), ..Fake::default() };
    let graph = stack(&source, &["a", "b"], &[]).unwrap();
    assert_eq!(shown(&graph), ["java:17", "a", "b"]);
    assert!(graph.notes[0].contains("b needs java:8") && graph.notes[0].contains("java:17"), "{:?}", graph.notes);
    // Nearer to the command line goes before farther.
    let source = Fake { here: images(&["a needs lib, java:17", "lib needs java:8", "java:8", "java:17"]), ..Fake::default() };
    let graph = stack(&source, &["a"], &[]).unwrap();
    assert_eq!((shown(&graph), graph.notes.len()), (vec!["java:17".into(), "lib".into(), "a".into()], 1));
}

#[test]
fn the_registry_is_asked_only_for_what_is_not_here() {
    let here = images(&["app needs lib >=1, base, tool:3", "base"]);
    let there = images(&["lib:1.0", "lib:1.2 needs base", "lib:0.9", "tool:3.1", "tool:3.0"]);
    let source = Fake { here, there: Some(there), ..Fake::default() };
    let graph = stack(&source, &["app"], &[]).unwrap();
    assert_eq!(shown(&graph), ["base", "lib:1.2", "tool:3.1", "app"]);
    let mut asked = source.asked.lock().unwrap().clone();
    asked.sort();
    assert_eq!(asked, ["lib:1.2", "releases of lib", "releases of tool", "tool:3", "tool:3.1"]);
    let request = Request { remote_first: true, ..Request::default() };
    let source = Fake { here: images(&["app needs lib >=1", "lib:1.0"]), there: Some(images(&["lib:1.5"])), ..Fake::default() };
    let named = list(&["app"]);
    assert_eq!(shown(&follow(&source, &Request { images: &named, ..Request::default() }).unwrap())[0], "lib:1.0");
    assert_eq!(shown(&follow(&source, &Request { images: &named, ..request }).unwrap())[0], "lib:1.5");
    let offline = Fake { here: images(&["app needs lib >=1", "lib:1.0"]), ..Fake::default() };
    assert_eq!(shown(&follow(&offline, &Request { images: &named, ..request }).unwrap())[0], "lib:1.0");
}

#[test]
fn what_was_chosen_before_is_chosen_again_while_it_suits() {
    let here = images(&["app needs lib >=1 <3", "lib:1.0", "lib:2.0"]);
    let source = Fake { here: here.clone(), ..Fake::default() };
    let pin = |name: &str| StateImage { reference: name.into(), digest: digest(&image(name).1), dependency: true };
    let named = list(&["app"]);
    let first = |pinned: &[StateImage]| shown(&follow(&source, &Request { images: &named, pinned, ..Request::default() }).unwrap())[0].clone();
    assert_eq!(first(&[]), "lib:2.0");
    assert_eq!(first(&[pin("lib:1.0")]), "lib:1.0");
    assert_eq!(first(&[pin("lib:3.0")]), "lib:2.0", "it does not suit any more");
    assert_eq!(first(&[pin("lib:1.5")]), "lib:2.0", "it is gone");
    let old = StateImage { dependency: false, ..pin("lib:1.0") };
    let pinned = Request { images: &list(&["lib:2.0"]), pinned: std::slice::from_ref(&old), pin_images: true, ..Request::default() };
    assert_eq!(shown(&follow(&source, &pinned).unwrap()), ["lib:2.0"], "another image's pin is not its");
}

#[test]
fn all_that_is_missing_is_listed() {
    let source = Fake { here: images(&["app needs lib >=2, gone, base", "base needs gone, other:1", "lib:1.0"]), ..Fake::default() };
    let graph = stack(&source, &["app"], &[]).unwrap();
    let error = missing_error(&graph.missing).to_string();
    for part in ["lib (>=2), which app needs", "there are: 1.0", "gone, which app needs", "other:1, which base needs"] {
        assert!(graph.missing.len() == 3 && error.contains(part), "{error}");
    }
    let error = stack(&source, &["nothing"], &[]).unwrap_err();
    assert!(source.is_absent(&error), "what was named is an error of its own");
}

#[test]
fn circles_and_towers_are_refused() {
    let source = Fake { here: images(&["a needs b", "b needs c", "c needs b"]), ..Fake::default() };
    let error = stack(&source, &["a"], &[]).unwrap_err().to_string();
    assert!(error.contains("b → c → b"), "{error}");
    let source = Fake { here: images(&["self needs self"]), ..Fake::default() };
    assert!(stack(&source, &["self"], &[]).unwrap_err().to_string().contains("self → self"));
    let tower: Vec<String> = (0..=MAX_DEPTH + 1).map(|n| format!("t{n} needs t{}", n + 1)).collect();
    let source = Fake { here: images(&tower.iter().map(String::as_str).collect::<Vec<_>>()), ..Fake::default() };
    assert!(stack(&source, &["t0"], &[]).unwrap_err().to_string().contains("levels"));
    let broad = format!("app needs {}", (0..MAX_IMAGES).map(|n| format!("x{n}")).collect::<Vec<_>>().join(", "));
    let source = Fake { here: images(&[&broad]), ..Fake::default() };
    assert!(stack(&source, &["app"], &[]).unwrap_err().to_string().contains("images"));
}
