//! Which programs a launch starts.
//!
//! The first image of the list that is not a modifier layer decides; if all of them are, the image they depend on that lies
//! highest does. An explicit startup file beats them. Without any, the user's shell is started. A trigger names a group of
//! startup files in place of the default group; images of `--using` can bring groups, and never decide otherwise.
//!
//! All startup files of a group are started together: the first is the application (it has the terminal, gets the
//! signals and the arguments, and its exit code is the run's), and the run ends when all of them have ended.

use anyhow::{Result, bail};
use layer_format::manifest::{ImageManifest, StartupFile};

use crate::exit::UsageError;
use crate::stack::Role;

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Further programs of the group, started beside it.
    pub beside: Vec<Vec<String>>,
    /// Name under which the predictor learns.
    pub entry_point: String,
    /// Which image of the list it comes from; `None` if it was given, or is the shell.
    pub image: Option<usize>,
}

/// An image of the list.
#[derive(Clone, Copy, Debug)]
pub struct Candidate<'a> {
    /// Why it is there.
    pub role: Role,
    /// Its manifest.
    pub manifest: &'a ImageManifest,
}

/// What decides besides the images.
#[derive(Clone, Copy, Debug, Default)]
pub struct Wish<'a> {
    /// Program and arguments in place of the images'.
    pub startup_file: Option<&'a [String]>,
    /// Group of startup files.
    pub trigger: Option<&'a str>,
    /// Appended to the arguments.
    pub args: &'a [String],
    /// Whether the user's own shell is there.
    pub host_visible: bool,
}

/// Chooses the startup files for these images, lowest first.
pub fn choose(images: &[Candidate<'_>], wish: &Wish<'_>) -> Result<Startup> {
    let mut startup = if let Some(command) = wish.startup_file {
        let Some(program) = command.first() else { bail!(UsageError("the startup file is empty".into())) };
        Startup { command: command.to_vec(), beside: Vec::new(), entry_point: program.clone(), image: None }
    } else if let Some((at, files)) = group(images, wish.trigger)
        && let [main, beside @ ..] = &files[..]
    {
        let entry_point = wish.trigger.unwrap_or(&main.command[0]).to_owned();
        Startup { command: main.command.clone(), beside: beside.iter().map(|file| file.command.clone()).collect(), entry_point, image: Some(at) }
    } else if let Some(trigger) = wish.trigger {
        let mut known: Vec<&str> = images.iter().flat_map(|image| &image.manifest.startup_files).filter_map(|file| file.trigger.as_deref()).collect();
        known.dedup();
        bail!("no image has the trigger `{trigger}`; {}", if known.is_empty() { "there are none".into() } else { format!("there are: {}", known.join(", ")) });
    } else {
        let shell = std::env::var("SHELL").ok().filter(|shell| wish.host_visible && !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
        Startup { entry_point: shell.clone(), command: vec![shell], beside: Vec::new(), image: None }
    };
    startup.command.extend_from_slice(wish.args);
    Ok(startup)
}

/// The group of startup files that is started, and the image that has it.
fn group<'a>(images: &[Candidate<'a>], trigger: Option<&str>) -> Option<(usize, Vec<&'a StartupFile>)> {
    let of = |role: Role| images.iter().enumerate().filter(move |(_, image)| image.role == role);
    let named = of(Role::Image);
    // What lies highest is nearest to what was named.
    let needed = of(Role::Dependency).rev();
    let using = of(Role::Using).filter(|_| trigger.is_some());
    named.chain(needed).chain(using).find_map(|(at, image)| {
        let files: Vec<_> = image.manifest.startup(trigger).collect();
        (!files.is_empty()).then_some((at, files))
    })
}

/// Splits a command as a shell splits words: quotes and backslashes, no expansion.
pub fn split(text: &str) -> Result<Vec<String>> {
    match shell_words::split(text) {
        Ok(words) if !words.is_empty() => Ok(words),
        Ok(_) => bail!(UsageError("the startup file is empty".into())),
        Err(_) => bail!(UsageError(format!("a quote in `{text}` is not closed"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(commands: &[(&str, Option<&str>)]) -> ImageManifest {
        let mut image = ImageManifest::new("any", vec![]);
        image.startup_files =
            commands.iter().map(|(command, trigger)| StartupFile { command: split(command).unwrap(), trigger: trigger.map(Into::into) }).collect();
        image
    }

    fn chosen(images: &[(Role, &ImageManifest)], wish: &Wish<'_>) -> Result<Startup> {
        let images: Vec<_> = images.iter().map(|(role, manifest)| Candidate { role: *role, manifest }).collect();
        choose(&images, wish)
    }

    #[test]
    fn the_first_image_that_starts_something_decides() {
        use Role::{Dependency, Image, Using};
        let (modifier, app) = (image(&[]), image(&[("/app 'a b'", None), ("/serve", Some("serve"))]));
        let (other, low) = (image(&[("/other", None)]), image(&[("/low", None)]));
        let stack = [(Dependency, &low), (Image, &modifier), (Image, &app), (Image, &other), (Using, &low)];
        let startup = chosen(&stack, &Wish { args: &["x".into()], ..Wish::default() }).unwrap();
        assert_eq!((startup.command, startup.image), (vec!["/app".into(), "a b".into(), "x".into()], Some(2)));
        let startup = chosen(&stack, &Wish { trigger: Some("serve"), ..Wish::default() }).unwrap();
        assert_eq!((startup.command, startup.entry_point.as_str()), (vec!["/serve".to_owned()], "serve"));
        let error = chosen(&stack, &Wish { trigger: Some("nope"), ..Wish::default() }).unwrap_err();
        assert!(error.to_string().contains("serve"));
        let given = ["/bin/ls".to_owned(), "-l".to_owned()];
        assert_eq!(chosen(&stack, &Wish { startup_file: Some(&given), ..Wish::default() }).unwrap().command, given);
        let deep = [(Dependency, &other), (Dependency, &low), (Image, &modifier)];
        assert_eq!(chosen(&deep, &Wish::default()).unwrap().command, ["/low"], "a modifier layer starts what it modifies");
        for nothing in [&[(Image, &modifier)][..], &[(Image, &modifier), (Using, &app)]] {
            assert_eq!(chosen(nothing, &Wish::default()).unwrap().command, ["/bin/sh"], "what lies on top for one run decides nothing");
        }
        let trigger = Wish { trigger: Some("serve"), ..Wish::default() };
        assert_eq!(chosen(&[(Image, &modifier), (Using, &app)], &trigger).unwrap().command, ["/serve"], "but its groups can be asked for");
        assert!(split("'open").is_err() && split(" ").is_err());
    }

    #[test]
    fn a_group_is_started_as_a_whole() {
        let one = image(&[("/a", None), ("/b x", None), ("/t1", Some("t")), ("/t2", Some("t"))]);
        let other = image(&[("/t3", Some("t"))]);
        let stack = [(Role::Image, &one), (Role::Image, &other)];
        let startup = chosen(&stack, &Wish { args: &["arg".into()], ..Wish::default() }).unwrap();
        assert_eq!((startup.command, startup.beside), (vec!["/a".into(), "arg".into()], vec![vec!["/b".to_owned(), "x".to_owned()]]));
        let startup = chosen(&stack, &Wish { trigger: Some("t"), ..Wish::default() }).unwrap();
        assert_eq!((startup.command, startup.beside), (vec!["/t1".to_owned()], vec![vec!["/t2".to_owned()]]), "one image decides");
    }
}
