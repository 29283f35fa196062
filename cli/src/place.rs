//! Which container a launch runs in, and how: as its owner, or beside a program that runs there already.

use std::cell::RefCell;
use std::rc::Rc;

use anyhow::{Result, bail};
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::containers::{Container, Locked};
use crate::control::client::{Client, Reached, reach};
use crate::detach::{self, Background};
use crate::exit::Exit;
use crate::forks::Forks;
use crate::join;
use crate::launch::Launch;
use crate::output::note;

/// A container for a launch.
#[derive(Debug)]
pub enum Place {
    /// It does not run: this process starts it.
    Own(Box<Locked>),
    /// It runs: this process joins.
    Join(Box<Container>, Client),
}

/// How a container came to be chosen, in case it must be chosen again.
#[derive(Clone, Debug)]
pub enum Choice {
    /// `run`: the container of this name and these images, created if absent.
    Matching {
        /// The name, if one was given.
        name: Option<String>,
        /// The images, in order.
        images: Vec<ImageReference>,
    },
    /// `new` and `try`: always another one.
    Fresh {
        /// The name, if one was given.
        name: Option<String>,
        /// The images, in order.
        images: Vec<ImageReference>,
        /// Whether it is deleted at the end.
        temporary: bool,
    },
    /// `start`: this one.
    Existing(Box<Container>),
    /// `continue`: this one, which was just made and is locked already.
    Made(Box<Container>, Made),
}

/// A locked container, until it is taken.
pub type Made = Rc<RefCell<Option<Box<Locked>>>>;

impl Place {
    /// The container.
    pub fn container(&self) -> &Container {
        match self {
            Self::Own(locked) => &locked.container,
            Self::Join(container, _) => container,
        }
    }

    /// Removes the container if it was made for this launch, which does not take place.
    fn give_up(self) {
        if let Self::Own(locked) = self
            && locked.is_new
        {
            let _ = locked.remove();
        }
    }
}

impl Choice {
    /// A container that this process has just made.
    pub fn made(locked: Locked) -> Self {
        Self::Made(Box::new(locked.container.clone()), Rc::new(RefCell::new(Some(Box::new(locked)))))
    }

    /// Chooses the container, and locks it or connects to the turbo that runs it.
    pub fn place(&self, app: &App) -> Result<Place> {
        let containers = app.containers();
        let found = match self {
            Self::Existing(container) => (**container).clone(),
            Self::Made(container, made) => match made.borrow_mut().take() {
                Some(locked) => return Ok(Place::Own(locked)),
                None => (**container).clone(),
            },
            Self::Fresh { name, images, temporary } => return fresh(app, name.as_deref(), images, *temporary).map(|locked| Place::Own(Box::new(locked))),
            Self::Matching { name, images } => match matching(app, name.as_deref(), images)? {
                Matched::Created(locked) => return Ok(Place::Own(Box::new(locked))),
                Matched::Found(container) => container,
            },
        };
        // The names are not locked any more: this may take a while.
        Ok(match reach(&containers, &found)? {
            Reached::Stopped(locked) => Place::Own(locked),
            Reached::Running(client) => Place::Join(Box::new(found), client),
        })
    }

    /// Chooses a container and launches there. `prepare` makes the launch, from what the container remembers.
    pub fn launch(&self, app: &App, forks: Forks, detach: bool, prepare: impl Fn(&mut Container) -> Result<Launch>) -> Result<Exit> {
        let (launcher, joiner) = forks.take()?;
        if let Some(background) = app.take_background() {
            let place = background.place(&app.containers())?;
            return self.go(app, (launcher, joiner), place, Some(background), prepare);
        }
        let place = self.place(app)?;
        if detach {
            drop((launcher, joiner));
            // What is wrong with the options is said here, not in the log.
            if let Err(error) = prepare(&mut place.container().clone()) {
                place.give_up();
                return Err(error);
            }
            return detach::start(app, place);
        }
        self.go(app, (launcher, joiner), place, None, prepare)
    }

    fn go(
        &self,
        app: &App,
        (launcher, joiner): (vm::Launcher, vm::Joiner),
        place: Place,
        background: Option<Background>,
        prepare: impl Fn(&mut Container) -> Result<Launch>,
    ) -> Result<Exit> {
        let (container, mut client) = match place {
            Place::Own(locked) => {
                drop(joiner);
                return own(app, launcher, locked, background, prepare);
            }
            Place::Join(container, client) => (container, client),
        };
        let launch = prepare(&mut (*container).clone())?;
        if let Some(spec) = join::accept(&launch, app, &mut client, &container)? {
            drop(launcher);
            note(format!("{} runs already; joining it", container.shown()));
            return join::run(joiner, spec, client, background);
        }
        drop((client, joiner));
        // It ended meanwhile.
        match self.place(app)? {
            Place::Own(locked) => own(app, launcher, locked, background, prepare),
            Place::Join(container, _) => bail!("{} ended before it could be joined; start it anew", container.shown()),
        }
    }
}

fn own(
    app: &App,
    launcher: vm::Launcher,
    mut locked: Box<Locked>,
    background: Option<Background>,
    prepare: impl Fn(&mut Container) -> Result<Launch>,
) -> Result<Exit> {
    match prepare(&mut locked.container) {
        Ok(launch) => launch.run(app, launcher, *locked, background),
        Err(error) => {
            Place::Own(locked).give_up();
            Err(error)
        }
    }
}

enum Matched {
    Created(Locked),
    Found(Container),
}

/// The container of this name and these images; without a name, of a name made from the images'.
fn matching(app: &App, name: Option<&str>, images: &[ImageReference]) -> Result<Matched> {
    let containers = app.containers();
    let references = references(images);
    // Held until the name is taken: two launches at once must not make two containers of one name.
    let _names = containers.lock_names()?;
    let all = containers.list()?;
    if let Some(name) = name {
        return match all.into_iter().find(|container| container.name == name) {
            None => containers.create(name, references, false).map(Matched::Created),
            Some(found) if found.images == references => Ok(Matched::Found(found)),
            Some(found) => bail!("the container {} has other images ({}); choose another --name, or `turbo rm` it", found.shown(), found.images.join(",")),
        };
    }
    let name = default_name(images);
    let numbered = (2..).map(|number| format!("{name}-{number}"));
    for candidate in std::iter::once(name.clone()).chain(numbered) {
        match all.iter().find(|container| container.name == candidate) {
            Some(found) if found.images == references && !found.temporary => return Ok(Matched::Found(found.clone())),
            Some(_) => {}
            None => {
                if candidate != name {
                    note(format!("`{name}` has other images; this is {candidate}"));
                }
                return containers.create(&candidate, references, false).map(Matched::Created);
            }
        }
    }
    bail!("no name is free")
}

/// A new container.
fn fresh(app: &App, name: Option<&str>, images: &[ImageReference], temporary: bool) -> Result<Locked> {
    let containers = app.containers();
    let _names = containers.lock_names()?;
    let free = containers.free_name(name.unwrap_or(&default_name(images)))?;
    if let Some(name) = name.filter(|name| *name != free) {
        bail!("there is a container `{name}` already; choose another --name, or `turbo rm` it");
    }
    containers.create(&free, references(images), temporary)
}

fn references(images: &[ImageReference]) -> Vec<String> {
    images.iter().map(ToString::to_string).collect()
}

/// The name of the first image's repository, without its namespace.
pub fn default_name(images: &[ImageReference]) -> String {
    let first = images.first().map(|image| image.repository.as_str()).unwrap_or_default();
    first.rsplit('/').next().unwrap_or_default().to_owned()
}
