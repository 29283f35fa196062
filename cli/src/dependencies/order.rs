//! The order of a stack: dependencies below whatever needs them, then the images that were named.

use anyhow::{Result, bail};

use super::Node;
use crate::stack::Role;

/// Orders nodes; those that were named keep their order among themselves. A dependency that images of `--using` alone
/// need gets their role.
///
/// # Errors
/// If dependencies go round in a circle: the error names it.
pub(super) fn order<I>(nodes: &mut Vec<Node<I>>) -> Result<()> {
    let of = |role: Role| (0..nodes.len()).filter(|at| nodes[*at].role == role).collect::<Vec<_>>();
    let (images, using) = (of(Role::Image), of(Role::Using));
    let mut walk = Walk { nodes, state: vec![State::New; nodes.len()], path: Vec::new(), sorted: Vec::new() };
    images.iter().try_for_each(|at| walk.visit(*at))?;
    let using_from = walk.sorted.len();
    using.iter().try_for_each(|at| walk.visit(*at))?;
    let sorted = walk.sorted;
    let is_dependency = |at: &usize| nodes[*at].role == Role::Dependency;
    let only_using: Vec<usize> = sorted.iter().skip(using_from).copied().filter(is_dependency).collect();
    let dependencies: Vec<usize> = sorted.into_iter().filter(is_dependency).collect();
    only_using.iter().for_each(|at| nodes[*at].role = Role::Using);
    let order: Vec<usize> = dependencies.into_iter().chain(images).chain(using).collect();
    let mut places: Vec<Option<usize>> = vec![None; nodes.len()];
    order.iter().enumerate().for_each(|(place, at)| places[*at] = Some(place));
    let mut sorted: Vec<(usize, Node<I>)> = std::mem::take(nodes).into_iter().zip(places).filter_map(|(node, place)| Some((place?, node))).collect();
    sorted.sort_by_key(|(place, _)| *place);
    *nodes = sorted.into_iter().map(|(_, node)| node).collect();
    // The numbers meant the old order, and were needed for this alone.
    nodes.iter_mut().for_each(|node| node.needs.clear());
    Ok(())
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    Open,
    Done,
}

struct Walk<'a, I> {
    nodes: &'a [Node<I>],
    state: Vec<State>,
    path: Vec<usize>,
    sorted: Vec<usize>,
}

impl<I> Walk<'_, I> {
    /// Depth first; as deep as the dependencies are, which is bounded.
    fn visit(&mut self, at: usize) -> Result<()> {
        match self.state[at] {
            State::Done => return Ok(()),
            State::Open => {
                let from = self.path.iter().position(|on| *on == at).unwrap_or(0);
                let names: Vec<String> = self.path[from..].iter().chain([&at]).map(|at| self.nodes[*at].reference.to_string()).collect();
                bail!("dependencies go round in a circle: {}", names.join(" → "));
            }
            State::New => {}
        }
        self.state[at] = State::Open;
        self.path.push(at);
        let nodes = self.nodes;
        nodes[at].needs.iter().try_for_each(|need| self.visit(*need))?;
        self.path.pop();
        self.state[at] = State::Done;
        self.sorted.push(at);
        Ok(())
    }
}
