//! Which program a launch starts.
//!
//! The first image of the list that is not a modifier layer decides. An explicit startup file beats it. Without any,
//! the user's shell is started.

use anyhow::{Result, bail};
use layer_format::manifest::ImageManifest;

use crate::exit::UsageError;

/// What is started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Startup {
    /// Program and arguments.
    pub command: Vec<String>,
    /// Name under which the predictor learns.
    pub entry_point: String,
    /// Which image of the list it comes from; `None` if it was given, or is the shell.
    pub image: Option<usize>,
}

/// Chooses the startup file for these images, in the order given, and appends `args`.
pub fn choose(images: &[(String, ImageManifest)], startup_file: Option<&str>, trigger: Option<&str>, args: &[String], host_visible: bool) -> Result<Startup> {
    let mut startup = if let Some(text) = startup_file {
        let command = split(text)?;
        Startup { entry_point: command[0].clone(), command, image: None }
    } else if let Some((at, file)) = images.iter().enumerate().find_map(|(at, (_, image))| image.startup(trigger).next().map(|file| (at, file))) {
        Startup { command: file.command.clone(), entry_point: trigger.unwrap_or(&file.command[0]).to_owned(), image: Some(at) }
    } else if let Some(trigger) = trigger {
        let known: Vec<&str> = images.iter().flat_map(|(_, image)| &image.startup_files).filter_map(|file| file.trigger.as_deref()).collect();
        bail!("no image has the trigger `{trigger}`; {}", if known.is_empty() { "there are none".into() } else { format!("there are: {}", known.join(", ")) });
    } else {
        let shell = std::env::var("SHELL").ok().filter(|shell| host_visible && !shell.is_empty()).unwrap_or_else(|| "/bin/sh".into());
        Startup { entry_point: shell.clone(), command: vec![shell], image: None }
    };
    startup.command.extend_from_slice(args);
    Ok(startup)
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
    use layer_format::manifest::StartupFile;

    fn image(name: &str, commands: &[(&str, Option<&str>)]) -> (String, ImageManifest) {
        let mut image = ImageManifest::new("any", vec![]);
        image.startup_files =
            commands.iter().map(|(command, trigger)| StartupFile { command: split(command).unwrap(), trigger: trigger.map(Into::into) }).collect();
        (name.into(), image)
    }

    #[test]
    fn the_first_image_that_starts_something_decides() {
        let images = [image("base", &[]), image("app", &[("/app 'a b'", None), ("/serve", Some("serve"))]), image("other", &[("/other", None)])];
        let chosen = choose(&images, None, None, &["x".into()], true).unwrap();
        assert_eq!((chosen.command, chosen.image), (vec!["/app".into(), "a b".into(), "x".into()], Some(1)));
        let chosen = choose(&images, None, Some("serve"), &[], true).unwrap();
        assert_eq!((chosen.command, chosen.entry_point.as_str()), (vec!["/serve".to_owned()], "serve"));
        assert!(choose(&images, None, Some("nope"), &[], true).unwrap_err().to_string().contains("serve"));
        let chosen = choose(&images, Some("/bin/ls -l"), None, &[], true).unwrap();
        assert_eq!(chosen.command, ["/bin/ls", "-l"]);
        assert_eq!(choose(&images[..1], None, None, &[], false).unwrap().command, ["/bin/sh"]);
        assert!(split("'open").is_err() && split(" ").is_err());
    }
}
