//! `deploy/Containerfile`, read: what it says of the image's configuration is said there alone, and holds for the image that is
//! made without docker, too. Only the instructions that the file needs are known.

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value, json};

/// What an image's configuration says of how to run it.
#[derive(Debug, Default)]
pub(super) struct Containerfile {
    /// The object `config` of the image's configuration.
    pub(super) config: Map<String, Value>,
    /// The user that owns volumes: `UID:GID`.
    pub(super) owner: (u64, u64),
    /// Folders to copy: `(from the context, to the image, owner)`.
    pub(super) copies: Vec<(String, String, (u64, u64))>,
}

impl Containerfile {
    /// Reads the text.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut file = Self::default();
        let joined = text.replace("\\\n", " ");
        for line in joined.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (instruction, rest) = line.split_once(' ').with_context(|| format!("`{line}` says nothing"))?;
            file.instruction(instruction, rest.trim()).with_context(|| format!("in `{line}`"))?;
        }
        Ok(file)
    }

    fn instruction(&mut self, instruction: &str, rest: &str) -> Result<()> {
        match instruction {
            "FROM" if rest == "scratch" => {}
            "COPY" => {
                let (owner, rest) = match rest.strip_prefix("--chown=") {
                    Some(rest) => rest.split_once(' ').map(|(owner, rest)| (ids(owner), rest)).context("nothing to copy")?,
                    None => (Ok((0, 0)), rest),
                };
                let (from, to) = rest.trim().split_once(' ').context("where to?")?;
                self.copies.push((from.to_owned(), to.trim().to_owned(), owner?));
            }
            "ENV" => {
                let entry = self.config.entry("Env").or_insert_with(|| json!([]));
                let variables = entry.as_array_mut().context("variables are a list")?;
                variables.extend(rest.split_whitespace().map(Value::from));
            }
            "LABEL" => {
                let (name, value) = rest.split_once('=').context("a label has a value")?;
                self.set_in("Labels", name, Value::from(value.trim_matches('"')))?;
            }
            "USER" => {
                self.owner = ids(rest)?;
                self.config.insert("User".into(), rest.into());
            }
            "VOLUME" => self.set_in("Volumes", rest, json!({}))?,
            "EXPOSE" => self.set_in("ExposedPorts", &format!("{rest}/tcp"), json!({}))?,
            "WORKDIR" => drop(self.config.insert("WorkingDir".into(), rest.into())),
            "STOPSIGNAL" => drop(self.config.insert("StopSignal".into(), rest.into())),
            "ENTRYPOINT" => drop(self.config.insert("Entrypoint".into(), words(rest)?)),
            "CMD" => drop(self.config.insert("Cmd".into(), words(rest)?)),
            "HEALTHCHECK" => drop(self.config.insert("Healthcheck".into(), health(rest)?)),
            _ => bail!("this instruction is not known"),
        }
        Ok(())
    }

    fn set_in(&mut self, object: &str, name: &str, value: Value) -> Result<()> {
        let entry = self.config.entry(object).or_insert_with(|| json!({}));
        entry.as_object_mut().context("it is an object")?.insert(name.to_owned(), value);
        Ok(())
    }
}

fn words(text: &str) -> Result<Value> {
    let value: Value = serde_json::from_str(text).context("only the form with brackets is known: there is no shell in the image")?;
    value.as_array().is_some_and(|words| words.iter().all(Value::is_string)).then_some(value).context("it takes a list of words")
}

fn ids(text: &str) -> Result<(u64, u64)> {
    let (user, group) = text.split_once(':').context("it takes UID:GID")?;
    Ok((user.parse().context("names are not known in the image")?, group.parse().context("names are not known in the image")?))
}

/// `--interval=30s --timeout=5s CMD ["/program", "word"]`, with times in nanoseconds.
fn health(text: &str) -> Result<Value> {
    let (options, command) = text.split_once("CMD").context("it takes a CMD")?;
    let mut test = vec![Value::from("CMD")];
    test.extend(words(command.trim())?.as_array().cloned().unwrap_or_default());
    let mut object = json!({ "Test": test });
    for option in options.split_whitespace() {
        let (name, value) = option.strip_prefix("--").and_then(|option| option.split_once('=')).context("an option is --name=value")?;
        let seconds = |value: &str| value.strip_suffix('s').and_then(|value| value.parse::<u64>().ok()).context("times are in seconds, as 30s");
        match name {
            "interval" => object["Interval"] = (seconds(value)? * 1_000_000_000).into(),
            "timeout" => object["Timeout"] = (seconds(value)? * 1_000_000_000).into(),
            "start-period" => object["StartPeriod"] = (seconds(value)? * 1_000_000_000).into(),
            "retries" => object["Retries"] = value.parse::<u64>()?.into(),
            _ => bail!("--{name} is not known"),
        }
    }
    Ok(object)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn instructions_become_configuration() {
        let text = "# comment\nFROM scratch\nCOPY rootfs/ /\nCOPY --chown=1:2 data/ /data/\nENV A=1 \\\n    B=2\nUSER 1:2\nVOLUME /data\nEXPOSE 5000\n\
            LABEL a.b=\"x y\"\nHEALTHCHECK --interval=30s --retries=3 CMD [\"/p\", \"health\"]\nENTRYPOINT [\"/p\"]\nCMD [\"serve\"]\n";
        let file = Containerfile::parse(text).unwrap();
        let expected = json!({
            "Env": ["A=1", "B=2"], "User": "1:2", "Volumes": {"/data": {}}, "ExposedPorts": {"5000/tcp": {}}, "Labels": {"a.b": "x y"},
            "Healthcheck": {"Test": ["CMD", "/p", "health"], "Interval": 30_000_000_000u64, "Retries": 3}, "Entrypoint": ["/p"], "Cmd": ["serve"],
        });
        assert_eq!(Value::from(file.config), expected);
        assert_eq!(file.copies, [("rootfs/".to_owned(), "/".to_owned(), (0, 0)), ("data/".to_owned(), "/data/".to_owned(), (1, 2))]);
        for wrong in ["FROM debian", "RUN x", "CMD serve", "USER turbo", "COPY a"] {
            assert!(Containerfile::parse(wrong).is_err(), "{wrong}");
        }
    }
}
