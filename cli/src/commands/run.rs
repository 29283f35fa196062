//! `turbo run` and `turbo try`.

use anyhow::Result;
use layer_format::reference::ImageReference;

use crate::app::App;
use crate::commands::launch_options::{Images, LaunchOptions, parse_images};
use crate::exit::Exit;
use crate::forks::Forks;
use crate::place::Choice;

/// Start the container of an image, creating it if absent; join it if it runs.
#[derive(Debug, clap::Args)]
pub struct Run {
    /// Images, separated by commas; later ones lie on top.
    #[arg(value_name = "IMAGE[,IMAGE...]", value_parser = parse_images)]
    images: Images,
    #[command(flatten)]
    pub options: LaunchOptions,
    /// Name of the container: the same name and images continue with what was written before [default: the image's name].
    #[arg(short, long, value_parser = parse_name)]
    name: Option<String>,
    /// Use a fresh container, and delete it at the end.
    #[arg(long)]
    temp: bool,
}

/// Start an image in a container that is deleted at the end.
#[derive(Debug, clap::Args)]
pub struct Try {
    /// Images, separated by commas; later ones lie on top.
    #[arg(value_name = "IMAGE[,IMAGE...]", value_parser = parse_images)]
    images: Images,
    #[command(flatten)]
    options: LaunchOptions,
    /// Name of the container [default: the image's name].
    #[arg(short, long, value_parser = parse_name)]
    name: Option<String>,
}

/// Checks the name of a container: it stands in paths of `turbo cp` and beside `#`.
pub fn parse_name(text: &str) -> Result<String, String> {
    match text {
        "" | "-" => Err("a name is not empty".into()),
        _ if text.len() > 128 => Err("a name has at most 128 bytes".into()),
        _ if text.starts_with(['-', '.']) || text.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, '/' | ':' | '#' | ',')) => {
            Err("a name has no space, `/`, `:`, `#` or `,`, and does not start with `-` or `.`".into())
        }
        _ => Ok(text.into()),
    }
}

impl Run {
    /// Images that are started.
    pub fn images(&self) -> &[ImageReference] {
        &self.images.0
    }

    /// Runs to the end of the application.
    pub fn run(self, app: &App, forks: Forks) -> Result<Exit> {
        let options = self.options.check()?;
        let (name, images) = (self.name, self.images.0);
        let choice = if self.temp { Choice::Fresh { name, images, temporary: true } } else { Choice::Matching { name, images } };
        choice.launch(app, forks, options.detach(), |container| options.launch(container))
    }
}

impl Try {
    /// Runs to the end of the application.
    pub fn run(self, app: &App, forks: Forks) -> Result<Exit> {
        let options = self.options.check()?;
        let choice = Choice::Fresh { name: self.name, images: self.images.0, temporary: true };
        choice.launch(app, forks, options.detach(), |container| options.launch(container))
    }
}

#[cfg(test)]
mod tests {
    use super::parse_name;

    #[test]
    fn names_cannot_be_mistaken_for_something_else() {
        for good in ["app", "my.app_2", "é", "a-b"] {
            assert!(parse_name(good).is_ok(), "{good}");
        }
        for bad in ["", "-", "-x", ".x", "a/b", "a:b", "a#b", "a b", "a,b", "a\nb", &"x".repeat(129)] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }
}
