//! Users, keys, rights and the audit log from the server's console: `turbo-registry user|key|audit`. They work on the database, also
//! while servers run on it, which see changes within a second. Whoever can run them may do everything.
//!
//! Passwords come from a prompt or from standard input, never from arguments, which others on the machine can see.

use std::io::{IsTerminal, Read, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use serde_json::json;

use crate::config::{Config, Options};
use crate::db::audit_entry::{AuditRow, audit_list};
use crate::db::{Db, now_ms};
use crate::service::access::audit::Actor;
use crate::service::access::login;
use crate::service::access::manage::{Manager, NewGrant, NewKey, NewUser, hash_password};
use crate::service::access::rights::{Rights, Scope, Subject, Target};
use crate::service::access::setup;
use crate::time_text;

/// Longest password on standard input, in bytes.
const MAX_INPUT: u64 = 4096;
/// Audit entries that are read at a time.
const PAGE: u32 = 1000;
/// Connections to PostgreSQL.
const CONNECTIONS: u32 = 2;

/// Where the database is.
#[derive(Clone, Debug, Args)]
pub struct Place {
    /// TOML file with the options of `serve`
    #[arg(long, env = "TURBO_REGISTRY_CONFIG", global = true, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Folder of the server's data [default: turbo-registry in the XDG data folder]
    #[arg(long, env = "TURBO_REGISTRY_DATA", global = true, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The server's database [default: a file in the data folder]
    #[arg(long, env = "TURBO_REGISTRY_DATABASE_URL", global = true, value_name = "URL")]
    database_url: Option<String>,
}

/// Form of what is printed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    #[default]
    Text,
    /// JSON.
    Json,
}

/// Commands on the database.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Users, and who may do what
    User(OfUsers),
    /// Keys for programs: secrets with scopes that may expire
    Key(OfKeys),
    /// Print what was changed and what was refused, oldest first
    Audit(AuditCommand),
}

/// `turbo-registry user`.
#[derive(Debug, Args)]
pub struct OfUsers {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: UserCommand,
}

/// `turbo-registry key`.
#[derive(Debug, Args)]
pub struct OfKeys {
    #[command(flatten)]
    place: Place,
    #[command(subcommand)]
    command: KeyCommand,
}

/// What `turbo-registry user` does.
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// Add a user; the first one is an administrator. Asks for the password, or reads it from standard input
    Add {
        /// Also the name of the user's own namespace
        name: String,
        /// May do everything, and manage users
        #[arg(long)]
        admin: bool,
        /// Let the user own a namespace of this name in which there is something already
        #[arg(long)]
        take_namespace: bool,
    },
    /// List users
    List {
        /// How
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Set a user's password, and end its logins. Asks for the password, or reads it from standard input
    Passwd {
        /// Whose
        name: String,
    },
    /// Let a user log in no more; its keys, logins and tokens end, too
    Disable {
        /// Whom
        name: String,
    },
    /// Let a user log in again
    Enable {
        /// Whom
        name: String,
    },
    /// Make a user an administrator, or not
    Admin {
        /// Whom
        name: String,
        /// Whether
        #[arg(default_value_t = true, action = clap::ArgAction::Set)]
        admin: bool,
    },
    /// Remove a user with its keys and rights. What it pushed stays
    Remove {
        /// Whom
        name: String,
    },
    /// Grant rights, or deny them: a denial wins
    Grant {
        /// user:NAME, robot:NAME, authenticated or anonymous
        subject: Subject,
        /// Such as tools/* for a namespace, tools/app for a repository, * for all, @metrics
        target: Target,
        /// Some of pull, push, delete, admin, with commas
        rights: Rights,
        /// Deny them
        #[arg(long)]
        deny: bool,
    },
    /// Take a grant back, or a denial
    Revoke {
        /// As it was granted
        subject: Subject,
        /// As it was granted
        target: Target,
        /// Take a denial back
        #[arg(long)]
        deny: bool,
    },
    /// List grants and denials
    Grants {
        /// How
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

/// What `turbo-registry key` does.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key, and print its secret, this once
    Create {
        /// Name of the key
        name: String,
        /// The user whose rights bound it
        #[arg(long, conflicts_with = "namespace")]
        owner: Option<String>,
        /// The namespace that bounds it [default without --owner: none]
        #[arg(long)]
        namespace: Option<String>,
        /// What it may do, such as tools/*=pull,push; may be given more than once
        #[arg(long = "scope", required = true, value_name = "TARGET=RIGHTS")]
        scopes: Vec<Scope>,
        /// After how many days it expires [default: never]
        #[arg(long, value_name = "DAYS")]
        expires: Option<u32>,
    },
    /// List keys
    List {
        /// How
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Revoke a key
    Revoke {
        /// Which
        name: String,
    },
    /// End all tokens: sign with a new key, and forget the old ones
    RotateSigning,
}

/// `turbo-registry audit`.
#[derive(Debug, Args)]
pub struct AuditCommand {
    /// Only what is younger, such as 90m, 12h or 7d
    #[arg(long, value_name = "AGE", value_parser = parse_age)]
    since: Option<Duration>,
    /// How
    #[arg(long, value_enum, default_value_t)]
    format: Format,
    #[command(flatten)]
    place: Place,
}

fn parse_age(text: &str) -> Result<Duration, String> {
    let wrong = || "expected a number with s, m, h or d, such as 12h".to_owned();
    let unit = match text.chars().last() {
        Some('s') => 1,
        Some('m') => 60,
        Some('h') => 3600,
        Some('d') => 86_400,
        _ => return Err(wrong()),
    };
    let count: u64 = text[..text.len() - 1].parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(count.saturating_mul(unit)))
}

struct Console {
    config: Config,
    db: Db,
    actor: Actor,
}

impl Console {
    async fn open(place: &Place) -> anyhow::Result<Self> {
        let options = Options { data: place.data.clone(), database_url: place.database_url.clone(), ..Options::default() };
        let options = match &place.config {
            Some(path) => options.or(Options::from_file(path)?),
            None => options,
        };
        let config = options.into_config()?;
        std::fs::create_dir_all(&config.data).with_context(|| format!("could not create the data folder {}", config.data.display()))?;
        let db = Db::open(config.database_url.as_deref(), &config.data.join("registry.db"), CONNECTIONS).await?;
        Ok(Self { config, db, actor: Actor::console() })
    }

    fn manager(&self) -> Manager<'_> {
        Manager { db: &self.db, actor: &self.actor }
    }
}

impl Command {
    /// Does what it says.
    ///
    /// # Errors
    /// If the database does not open, or the change cannot be made.
    pub async fn run(self) -> anyhow::Result<()> {
        match self {
            Self::User(of) => of.command.run(&Console::open(&of.place).await?).await,
            Self::Key(of) => of.command.run(&Console::open(&of.place).await?).await,
            Self::Audit(command) => command.run().await,
        }
    }
}

impl UserCommand {
    async fn run(self, console: &Console) -> anyhow::Result<()> {
        match self {
            Self::Add { name, admin, take_namespace } => {
                let hash = hash_password(&password(&name)?)?;
                let user = NewUser { name: &name, password_hash: &hash, is_admin: admin, takes_namespace: take_namespace };
                let row = console.manager().user_add(user).await?;
                say(&format!("added {}{}", row.name, if row.is_admin { ", an administrator" } else { "" }))
            }
            Self::List { format } => {
                let rows = console.manager().users().await?;
                let all = rows
                    .iter()
                    .map(|row| json!({"name": row.name, "admin": row.is_admin, "disabled": row.is_disabled, "created_at": time_text(row.created_at)}));
                let line = |row: &crate::db::account::AccountRow| {
                    format!(
                        "{:24} {}{}{}",
                        row.name,
                        time_text(row.created_at),
                        if row.is_admin { "  admin" } else { "" },
                        if row.is_disabled { "  disabled" } else { "" }
                    )
                };
                show(format, || json!({"users": all.collect::<Vec<_>>()}), || rows.iter().map(line).collect())
            }
            Self::Passwd { name } => {
                console.manager().user_password(&name, &hash_password(&password(&name)?)?).await?;
                if name == setup::FIRST_ADMIN {
                    setup::forget(&console.config.data);
                }
                say("the password is set; logins with the one before have ended")
            }
            Self::Disable { name } => {
                console.manager().user_set(&name, None, Some(true)).await?;
                say(&format!("{name} cannot log in any more"))
            }
            Self::Enable { name } => {
                console.manager().user_set(&name, None, Some(false)).await?;
                say(&format!("{name} can log in"))
            }
            Self::Admin { name, admin } => {
                console.manager().user_set(&name, Some(admin), None).await?;
                say(&format!("{name} is {}an administrator", if admin { "" } else { "not " }))
            }
            Self::Remove { name } => {
                console.manager().user_remove(&name).await?;
                say(&format!("removed {name}"))
            }
            Self::Grant { subject, target, rights, deny } => {
                let grant = NewGrant { subject, target, is_deny: deny, rights };
                console.manager().grant_put(&grant).await?;
                say(&grant_line(&grant))
            }
            Self::Revoke { subject, target, deny } => {
                console.manager().grant_remove(&subject, &target, deny).await?;
                say("taken back")
            }
            Self::Grants { format } => {
                let grants = console.manager().grants().await?;
                let all = grants.iter().map(|grant| json!({"subject": grant.subject, "target": grant.target, "rights": grant.rights, "deny": grant.is_deny}));
                show(format, || json!({"grants": all.collect::<Vec<_>>()}), || grants.iter().map(grant_line).collect())
            }
        }
    }
}

fn grant_line(grant: &NewGrant) -> String {
    format!("{} {} {} on {}", grant.subject, if grant.is_deny { "may not" } else { "may" }, grant.rights, grant.target)
}

impl KeyCommand {
    async fn run(self, console: &Console) -> anyhow::Result<()> {
        match self {
            Self::Create { name, owner, namespace, scopes, expires } => {
                let expires_at = expires.map(|days| now_ms().saturating_add(i64::from(days) * 86_400_000));
                let new = NewKey { name, owner, namespace, scopes, expires_at };
                let (_, secret) = console.manager().key_create(new).await?;
                eprintln!("this is shown once; use it as TURBO_TOKEN, or as the password of container tools with the key's name as user:");
                say(&secret)
            }
            Self::List { format } => {
                let rows = console.manager().keys().await?;
                let all = rows.iter().map(|row| {
                    json!({
                        "name": row.name, "prefix": row.prefix, "owner": row.owner, "namespace": row.namespace, "login": row.is_login,
                        "scopes": serde_json::from_str::<serde_json::Value>(&row.scopes).unwrap_or_default(),
                        "expires_at": row.expires_at.map(time_text), "last_used_at": row.last_used_at.map(time_text),
                    })
                });
                let line = |row: &crate::db::robot_key::RobotKeyRow| {
                    let of = row.owner.as_deref().or(row.namespace.as_deref()).unwrap_or("-");
                    let scopes: Vec<Scope> = serde_json::from_str(&row.scopes).unwrap_or_default();
                    let scopes: Vec<String> = scopes.iter().map(|scope| format!("{}={}", scope.target, scope.rights)).collect();
                    let expires = row.expires_at.map_or("never expires".into(), |at| format!("expires {}", time_text(at)));
                    format!("{:24} {}…  {of:16} {}  {expires}", row.name, row.prefix, scopes.join(" "))
                };
                show(format, || json!({"keys": all.collect::<Vec<_>>()}), || rows.iter().map(line).collect())
            }
            Self::Revoke { name } => {
                console.manager().key_revoke(&name).await?;
                say(&format!("revoked {name}"))
            }
            Self::RotateSigning => {
                let key = login::rotate(&console.db, true).await?;
                say(&format!("tokens are signed with {} now; all others have ended", key.id))
            }
        }
    }
}

impl AuditCommand {
    async fn run(self) -> anyhow::Result<()> {
        let console = Console::open(&self.place).await?;
        let from = self.since.map_or(0, |age| now_ms().saturating_sub(i64::try_from(age.as_millis()).unwrap_or(i64::MAX)));
        let mut after = AuditRow::first_id(from);
        loop {
            let rows = audit_list(&mut console.db.read().await?, &after, PAGE).await?;
            let Some(last) = rows.last() else { return Ok(()) };
            after = last.id.clone();
            let mut out = std::io::BufWriter::new(std::io::stdout().lock());
            for row in rows {
                let written = match self.format {
                    Format::Text => writeln!(out, "{}", audit_line(&row)),
                    Format::Json => writeln!(out, "{}", audit_json(&row)),
                };
                if written.is_err() {
                    // Nobody reads on.
                    return Ok(());
                }
            }
            let _ = out.flush();
        }
    }
}

fn audit_line(row: &AuditRow) -> String {
    let or_dash = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".into());
    let detail = row.detail.as_ref().map(|detail| format!("  ({detail})")).unwrap_or_default();
    format!("{}  {:8} {:20} {:16} {:16} {}{detail}", time_text(row.at), row.outcome, row.who, or_dash(&row.address), row.action, row.target)
}

fn audit_json(row: &AuditRow) -> serde_json::Value {
    json!({
        "id": row.id, "at": time_text(row.at), "who": row.who, "action": row.action, "target": row.target, "outcome": row.outcome,
        "detail": row.detail, "address": row.address, "request": row.request,
    })
}

/// The password of a user: from a prompt that shows nothing, twice, or the first line of standard input.
fn password(name: &str) -> anyhow::Result<String> {
    if !std::io::stdin().is_terminal() {
        let mut text = String::new();
        std::io::stdin().take(MAX_INPUT).read_to_string(&mut text).context("could not read the password from standard input")?;
        return Ok(text.lines().next().unwrap_or_default().to_owned());
    }
    let ask = |prompt: String| rpassword::prompt_password(prompt).context("could not ask for the password");
    let password = ask(format!("password of {name}: "))?;
    if password != ask("once more: ".into())? {
        bail!("the two are not the same");
    }
    Ok(password)
}

fn say(text: &str) -> anyhow::Result<()> {
    // A closed pipe is not an error.
    let _ = writeln!(std::io::stdout(), "{text}");
    Ok(())
}

fn show(format: Format, json: impl FnOnce() -> serde_json::Value, lines: impl FnOnce() -> Vec<String>) -> anyhow::Result<()> {
    let text = match format {
        Format::Text => lines().join("\n"),
        Format::Json => json().to_string(),
    };
    if text.is_empty() { Ok(()) } else { say(&text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages() {
        assert_eq!(parse_age("90m").unwrap(), Duration::from_secs(5400));
        assert_eq!(parse_age("7d").unwrap(), Duration::from_secs(7 * 86_400));
        for text in ["", "7", "d", "-1h", "1w", "é"] {
            assert!(parse_age(text).is_err(), "{text}");
        }
    }
}
