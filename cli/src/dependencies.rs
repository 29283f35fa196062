//! What images depend on, followed until nothing is missing: which image meets each dependency, and in which order they lie.
//!
//! Images are looked for level by level: all that a level asks for is got at once, so that a dependency costs no more round
//! trips than its depth. A repository takes part once. If several images ask for different releases of it, one that suits all
//! of them is taken, else the one that was asked for first: nearer to the command line before farther, left before right.
//! An image of the command line beats any. What then does not suit is told, and is no error.
//!
//! Order, lowest first: dependencies, each below whatever needs it; the images of the command line as they were named;
//! those of `--using`.

pub mod order;
pub mod want;

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail};
use layer_format::Digest;
use layer_format::manifest::{ImageManifest, StateImage};
use layer_format::reference::{ImageReference, Repository, Revision};

use crate::stack::Role;
use want::{Candidates, Requirement, Want};

/// How many levels of dependencies are followed.
pub const MAX_DEPTH: usize = 32;
/// Most images of a stack.
pub const MAX_IMAGES: usize = 128;

/// Where images are found. Called from several threads.
pub trait Source: Sync {
    /// An image that was got.
    type Image: Send;

    /// Releases of a repository that are known here, and the image each names.
    ///
    /// # Errors
    /// If the store cannot be read.
    fn local(&self, repository: &Repository) -> Result<Vec<(String, Digest)>>;

    /// Releases that the registry has; `None` if it is not to be asked.
    ///
    /// # Errors
    /// If it cannot be asked.
    fn remote(&self, repository: &Repository) -> Result<Option<Vec<(String, Digest)>>>;

    /// Gets an image: the one with `digest` if that is known.
    ///
    /// # Errors
    /// [`Source::is_absent`] tells whether there is none.
    fn get(&self, reference: &ImageReference, digest: Option<Digest>) -> Result<Self::Image>;

    /// Whether an error says that there is no such image, rather than that it could not be had.
    fn is_absent(&self, error: &anyhow::Error) -> bool;

    /// Digest and manifest of an image.
    fn manifest<'a>(&self, image: &'a Self::Image) -> (Digest, &'a ImageManifest);

    /// Told of the images of the command line, before their dependencies are looked for.
    fn roots_known(&self, _roots: &[Node<Self::Image>]) {}
}

/// What is asked for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Request<'a> {
    /// Images of the command line, lowest first.
    pub images: &'a [ImageReference],
    /// Images on top of them for one run, lowest first.
    pub using: &'a [ImageReference],
    /// What was chosen before, and is chosen again as long as it suits.
    pub pinned: &'a [StateImage],
    /// Whether the images of the command line are pinned as well.
    pub pin_images: bool,
    /// Ask the registry before what is known here.
    pub remote_first: bool,
}

/// An image and what it needs.
#[derive(Debug)]
pub struct Node<I> {
    /// By which name it was got.
    pub reference: ImageReference,
    /// Why it is there.
    pub role: Role,
    /// The image.
    pub image: I,
    needs: Vec<usize>,
}

/// A dependency that nothing meets.
#[derive(Debug)]
pub struct Missing {
    /// What is asked for, and by which image: `tools/java (>=8 <12), which tools/app needs`.
    pub wanted: String,
    /// The repository.
    pub repository: Repository,
    /// Why there is none.
    pub error: anyhow::Error,
}

/// All images of a stack.
#[derive(Debug)]
pub struct Graph<I> {
    /// Lowest first.
    pub nodes: Vec<Node<I>>,
    /// What is worth telling: which image does not suit which dependency.
    pub notes: Vec<String>,
    /// Dependencies that nothing meets.
    pub missing: Vec<Missing>,
}

/// Follows all dependencies.
///
/// # Errors
/// If an image of the command line cannot be got, dependencies go round in a circle, or there are too many. What is missing
/// of dependencies is no error: see [`Graph::missing`].
pub fn follow<S: Source>(source: &S, request: &Request<'_>) -> Result<Graph<S::Image>> {
    let mut graph = Graph { nodes: roots(source, request)?, notes: Vec::new(), missing: Vec::new() };
    source.roots_known(&graph.nodes);
    let mut level: Vec<usize> = (0..graph.nodes.len()).collect();
    for depth in 0.. {
        let groups = asked_for(source, &mut graph, &level)?;
        if groups.is_empty() {
            break;
        }
        if depth >= MAX_DEPTH || graph.nodes.len() + groups.len() > MAX_IMAGES {
            let first = &groups[0].1[0].1;
            bail!("{} asks for {first}: more than {MAX_DEPTH} levels of dependencies, or {MAX_IMAGES} images in all, are not stacked", first.by);
        }
        let found = at_once(&groups, |(repository, wants)| find(source, request, repository, wants))?;
        let begin = graph.nodes.len();
        for ((repository, wants), found) in groups.iter().zip(found) {
            match found {
                Ok((reference, image)) => {
                    let at = graph.nodes.len();
                    graph.nodes.push(Node { reference, role: Role::Dependency, image, needs: Vec::new() });
                    for (from, want) in wants {
                        graph.nodes[*from].needs.push(at);
                        tell_unsuited(source, &mut graph, at, want)?;
                    }
                }
                Err(error) => {
                    let wanted: Vec<String> = wants.iter().map(|(_, want)| format!("{want}, which {} needs", want.by)).collect();
                    graph.missing.push(Missing { wanted: wanted.join("; "), repository: repository.clone(), error });
                }
            }
        }
        level = (begin..graph.nodes.len()).collect();
    }
    order::order(&mut graph.nodes)?;
    Ok(graph)
}

/// The error that names all of these.
pub fn missing_error(missing: &[Missing]) -> anyhow::Error {
    let lines: Vec<String> = missing.iter().map(|missing| format!("\n  {}: {:#}", missing.wanted, missing.error)).collect();
    anyhow::anyhow!("{} cannot be had:{}", if missing.len() == 1 { "a dependency" } else { "dependencies" }, lines.concat())
}

/// The images of the command line, each once.
fn roots<S: Source>(source: &S, request: &Request<'_>) -> Result<Vec<Node<S::Image>>> {
    let mut asked: Vec<(&ImageReference, Role)> = Vec::new();
    for (reference, role) in request.images.iter().map(|image| (image, Role::Image)).chain(request.using.iter().map(|image| (image, Role::Using))) {
        if !asked.iter().any(|(known, _)| *known == reference) {
            asked.push((reference, role));
        }
    }
    if asked.len() > MAX_IMAGES {
        bail!("at most {MAX_IMAGES} images are stacked");
    }
    let got = at_once(&asked, |(reference, _)| {
        let name = reference.to_string();
        let pin = request.pinned.iter().find(|pin| request.pin_images && pin.reference == name).map(|pin| pin.digest);
        source.get(reference, pin)
    })?;
    let mut nodes: Vec<Node<S::Image>> = Vec::new();
    for ((reference, role), image) in asked.into_iter().zip(got) {
        let image = image?;
        let digest = source.manifest(&image).0;
        // Two names of one image: the second adds nothing.
        if !nodes.iter().any(|node| node.reference.repository == reference.repository && source.manifest(&node.image).0 == digest) {
            nodes.push(Node { reference: reference.clone(), role, image, needs: Vec::new() });
        }
    }
    Ok(nodes)
}

/// What a level asks for and is not there yet, by repository; `usize` is who asks.
type Groups = Vec<(Repository, Vec<(usize, Requirement)>)>;

fn asked_for<S: Source>(source: &S, graph: &mut Graph<S::Image>, level: &[usize]) -> Result<Groups> {
    let mut groups: Groups = Vec::new();
    for from in level {
        let node = &graph.nodes[*from];
        let by = node.reference.to_string();
        let wants: Vec<_> = source.manifest(&node.image).1.dependencies.iter().map(|dependency| Requirement::of(dependency, &by)).collect::<Result<_>>()?;
        for want in wants {
            if let Some(at) = present(source, graph, &want)? {
                graph.nodes[*from].needs.push(at);
                tell_unsuited(source, graph, at, &want)?;
            } else if graph.missing.iter().any(|missing| missing.repository == want.repository) {
                // Said once.
            } else {
                match groups.iter_mut().find(|(repository, _)| *repository == want.repository) {
                    Some((_, wants)) => wants.push((*from, want)),
                    None => groups.push((want.repository.clone(), vec![(*from, want)])),
                }
            }
        }
    }
    Ok(groups)
}

/// The image of the repository that takes part already: one that suits, if there are several.
fn present<S: Source>(source: &S, graph: &Graph<S::Image>, want: &Requirement) -> Result<Option<usize>> {
    let mut first = None;
    for (at, node) in graph.nodes.iter().enumerate().filter(|(_, node)| node.reference.repository == want.repository) {
        if suits(source, node, want)? {
            return Ok(Some(at));
        }
        first = first.or(Some(at));
    }
    Ok(first)
}

/// Whether an image meets a dependency, as far as its release is known.
fn suits<S: Source>(source: &S, node: &Node<S::Image>, want: &Requirement) -> Result<bool> {
    let digest = source.manifest(&node.image).0;
    let mut names: Vec<String> = source.local(&want.repository)?.into_iter().filter(|(_, known)| *known == digest).map(|(name, _)| name).collect();
    if let Revision::Release(release) = &node.reference.revision {
        names.push(release.clone());
    }
    Ok(want.is_met_by(&names, &digest))
}

fn tell_unsuited<S: Source>(source: &S, graph: &mut Graph<S::Image>, at: usize, want: &Requirement) -> Result<()> {
    if !suits(source, &graph.nodes[at], want)? {
        graph.notes.push(format!("{} needs {want}; {} takes part all the same, since one release of a repository does", want.by, graph.nodes[at].reference));
    }
    Ok(())
}

/// Gets an image of the repository that meets all of these, or else the first.
fn find<S: Source>(source: &S, request: &Request<'_>, repository: &Repository, wants: &[(usize, Requirement)]) -> Result<(ImageReference, S::Image)> {
    let wants: Vec<&Want> = wants.iter().map(|(_, want)| &want.want).collect();
    let named = |name: &str| want::reference(repository, name);
    let got = |reference: ImageReference, digest| match source.get(&reference, digest) {
        Ok(image) => Ok(Some((reference, image))),
        Err(error) if source.is_absent(&error) => Ok(None),
        Err(error) => Err(error),
    };
    for pin in request.pinned.iter().filter(|pin| pin.dependency) {
        let Ok(reference) = pin.reference.parse::<ImageReference>() else { continue };
        let names: Vec<String> = reference.release().into_iter().map(Into::into).collect();
        if reference.repository == *repository
            && wants.iter().all(|want| want.is_met_by(&names, &pin.digest))
            && let Some(found) = got(reference, Some(pin.digest))?
        {
            return Ok(found);
        }
    }
    let local = Candidates::new(source.local(repository)?);
    let here = |wants: &[&Want]| match local.best(wants) {
        Some((name, digest)) => got(named(name)?, Some(digest)),
        None => Ok(None),
    };
    if !request.remote_first
        && let Some(found) = here(&wants)?
    {
        return Ok(found);
    }
    let mut reason = None;
    // What one name says needs no list of releases.
    if let Some(reference) = wants[0].direct(repository).filter(|_| wants.iter().all(|want| *want == wants[0])) {
        match source.get(&reference, None) {
            Ok(image) => return Ok((reference, image)),
            Err(error) if source.is_absent(&error) => reason = Some(error),
            Err(error) => return here(&wants)?.ok_or(error),
        }
    }
    let remote = match source.remote(repository) {
        Ok(remote) => remote.map(Candidates::new),
        // What is here will do, even if it is not asked first.
        Err(error) => return here(&wants)?.or(here(&wants[..1])?).ok_or(error),
    };
    let there = |wants: &[&Want]| match remote.as_ref().and_then(|remote| remote.best(wants)) {
        Some((name, digest)) => got(named(name)?, Some(digest)),
        None => Ok(None),
    };
    // What suits all goes before what suits the first alone.
    for wants in [&wants[..], &wants[..1]] {
        for is_local in [!request.remote_first, request.remote_first] {
            if let Some(found) = if is_local { here(wants)? } else { there(wants)? } {
                return Ok(found);
            }
        }
    }
    let known: BTreeSet<&str> = local.names().chain(remote.iter().flat_map(Candidates::names)).collect();
    let known: Vec<&str> = known.into_iter().collect();
    let places = if remote.is_some() { "neither this machine nor the registry has it" } else { "it is not on this machine, and the registry is not asked" };
    let releases = if known.is_empty() { String::new() } else { format!("; there are: {}", known.join(", ")) };
    match reason {
        Some(error) if known.is_empty() => Err(error),
        _ => bail!("{places}{releases}"),
    }
}

/// Does the same for each, all at once.
fn at_once<T: Sync, R: Send>(items: &[T], each: impl Fn(&T) -> R + Sync) -> Result<Vec<R>> {
    if let [one] = items {
        return Ok(vec![each(one)]);
    }
    std::thread::scope(|scope| {
        let threads: Vec<_> = items.iter().map(|item| scope.spawn(|| each(item))).collect();
        threads.into_iter().map(|thread| thread.join().ok().context("looking for an image failed")).collect()
    })
}

#[cfg(test)]
#[path = "dependencies_tests.rs"]
mod tests;
