//! `turbo new`.

use anyhow::Result;

use crate::app::App;
use crate::commands::launch_options::{Images, LaunchOptions, parse_images};
use crate::commands::run::parse_name;
use crate::exit::Exit;
use crate::forks::Forks;
use crate::place::{Choice, Place};

/// Create a container and start it.
#[derive(Debug, clap::Args)]
pub struct New {
    /// Images, separated by commas; later ones lie on top.
    #[arg(value_name = "IMAGE[,IMAGE...]", value_parser = parse_images)]
    images: Images,
    #[command(flatten)]
    options: LaunchOptions,
    /// Name of the container, which no other may have [default: the image's name, with a number if it is taken].
    #[arg(short, long, value_parser = parse_name)]
    name: Option<String>,
    /// Delete the container at its end.
    #[arg(long)]
    temp: bool,
    /// Only create it, and print its id; `turbo start` starts it. Images are looked up then.
    #[arg(long, conflicts_with_all = ["detach", "temp"])]
    no_run: bool,
}

impl New {
    /// Creates it, and runs to the end of the application.
    pub fn run(self, app: &App, forks: Forks) -> Result<Exit> {
        let options = self.options.check()?;
        let choice = Choice::Fresh { name: self.name, images: self.images.0, temporary: self.temp };
        if !self.no_run {
            return choice.launch(app, forks, options.detach(), |container| options.launch(container));
        }
        drop(forks);
        let Place::Own(mut locked) = choice.place(app)? else { anyhow::bail!("a new container is in use") };
        locked.container.started_s = 0;
        let saved = options.remember(&mut locked.container).and_then(|()| locked.save());
        if let Err(error) = saved {
            let _ = locked.remove();
            return Err(error);
        }
        let container = &locked.container;
        app.output.result(&serde_json::json!({"container": container.id, "name": container.name}), |out| writeln!(out, "{}", container.id))?;
        Ok(Exit::Success)
    }
}
