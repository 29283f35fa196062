//! `turbo inspect`.

mod conflicts;
mod report;

use std::io::Write;

use anyhow::Result;
use layer_format::manifest::{Attributes, Condition, EnvMode, FileMode};

use crate::app::App;
use crate::commands::launch_options::{Images, parse_images};
use crate::exit::Exit;
use crate::images;
use crate::output::bytes;
use crate::stack::Role;
use report::{Image, Layer, Report, assignment};

/// Files that several images have, of which so many are listed unless all are asked for.
const SHOWN: usize = 20;

/// Show what images consist of; of several, what holds when they are stacked in this order.
#[derive(Debug, clap::Args)]
pub struct Inspect {
    /// Images, separated by commas.
    #[arg(value_name = "IMAGE[,IMAGE...]", value_parser = parse_images)]
    images: Images,
    /// List all files as well.
    #[arg(long)]
    files: bool,
    /// List all files that several of the images have, not only the first 20.
    #[arg(long)]
    conflicts: bool,
}

impl Inspect {
    /// Prints manifests and layers, and what follows from them.
    pub fn run(self, app: &App) -> Result<Exit> {
        let store = app.store()?;
        let shown = if self.conflicts { usize::MAX } else { SHOWN };
        let report = Report::new(&store, &self.images.0, app.settings.allow_merge, shown)?;
        let mut files = Vec::new();
        if self.files {
            for layer in report.images.iter().filter(|image| image.role == Role::Image).flat_map(|image| &image.layers) {
                images::entries(&store, layer.manifest.root, |entry| {
                    files.push((images::kind_letter(&entry.kind), entry.meta.mode, entry.len(), entry.path));
                    Ok(())
                })?;
            }
        }
        let mut value = json(&report)?;
        if self.files {
            value["files"] =
                files.iter().map(|(kind, mode, len, path)| serde_json::json!({"kind": kind, "mode": mode, "len": len, "path": path.to_string()})).collect();
        }
        app.output.result(&value, |out| {
            report.images.iter().try_for_each(|image| print_image(out, image))?;
            print_stack(out, &report)?;
            files.iter().try_for_each(|(kind, mode, len, path)| writeln!(out, "{kind}{mode:04o} {len:>12} {path}"))
        })?;
        Ok(Exit::Success)
    }
}

/// One image that was named is an object; several are a list below `images`.
fn json(report: &Report) -> Result<serde_json::Value> {
    let of = |role: Role| report.images.iter().filter(move |image| image.role == role).collect::<Vec<_>>();
    let named = of(Role::Image);
    let mut value = match &named[..] {
        [one] => serde_json::to_value(one)?,
        several => serde_json::json!({"images": several}),
    };
    value["dependencies"] = serde_json::to_value(of(Role::Dependency))?;
    value["missing_dependencies"] = serde_json::to_value(&report.missing)?;
    value["notes"] = serde_json::to_value(&report.notes)?;
    value["isolation"] = serde_json::to_value(&report.isolation)?;
    value["environment"] = serde_json::to_value(&report.environment)?;
    value["startup"] = serde_json::to_value(&report.startup)?;
    value["requirements"] = serde_json::to_value(&report.requirements)?;
    value["conflicts"] = serde_json::to_value(&report.conflicts)?;
    Ok(value)
}

type Printed = std::io::Result<()>;

fn print_image(out: &mut dyn Write, image: &Image) -> Printed {
    let why = if image.role == Role::Dependency { "  (a dependency)" } else { "" };
    writeln!(out, "{}  {}{why}", image.name, image.digest)?;
    writeln!(out, "  architecture  {}", image.manifest.architecture)?;
    for file in &image.manifest.startup_files {
        let trigger = file.trigger.as_ref().map_or(String::new(), |name| format!(" (trigger {name})"));
        writeln!(out, "  startup file  {}{trigger}", shell_words::join(&file.command))?;
    }
    let scripts = &image.manifest.scripts;
    for (when, commands) in [("startup", &scripts.startup), ("shutdown", &scripts.shutdown)] {
        commands.iter().try_for_each(|command| writeln!(out, "  {when} script {}", shell_words::join(command)))?;
    }
    if let Some(folder) = &image.manifest.working_directory {
        writeln!(out, "  working dir   {folder}")?;
    }
    for dependency in &image.manifest.dependencies {
        let range = dependency.releases.as_ref().map_or(String::new(), |range| format!(" {range}"));
        writeln!(out, "  depends on    {}{range}", dependency.reference)?;
    }
    for (name, text) in &image.manifest.metadata {
        writeln!(out, "  {name:13} {text}")?;
    }
    image.layers.iter().try_for_each(|layer| print_layer(out, layer))
}

fn print_layer(out: &mut dyn Write, layer: &Layer) -> Printed {
    let manifest = &layer.manifest;
    writeln!(out, "  layer         {}: {} entries, {}", layer.digest.short(), manifest.entries, bytes(manifest.bytes))?;
    if let Some(condition) = &manifest.condition {
        let holds = if layer.takes_part { "which holds here" } else { "which does not hold here: the layer takes no part" };
        writeln!(out, "    condition   {}, {holds}", shown(condition))?;
    }
    for var in &manifest.environment {
        writeln!(out, "    variable    {}", assignment(var))?;
    }
    let isolation = &manifest.environment_isolation;
    if isolation.mode != EnvMode::Inherit {
        writeln!(out, "    variables   {}", env_mode(isolation.mode))?;
    }
    for (name, mode) in &isolation.variables {
        writeln!(out, "    variable    {name} is {}", env_mode(*mode))?;
    }
    for rule in &manifest.files {
        let mode = match rule.mode {
            FileMode::Full => "full",
            FileMode::Hide => "hide",
            FileMode::Defaulted => "defaulted",
        };
        writeln!(out, "    file        {} {mode}", rule.path)?;
    }
    manifest.attributes.iter().try_for_each(|rule| writeln!(out, "    attributes  {} {}", rule.path, attributes(rule.attributes)))
}

fn print_stack(out: &mut dyn Write, report: &Report) -> Printed {
    report.missing.iter().try_for_each(|missing| writeln!(out, "not here   {missing}"))?;
    report.notes.iter().try_for_each(|note| writeln!(out, "note       {note}"))?;
    let startup = &report.startup;
    let by = startup.image.as_ref().map_or("no image decides".to_owned(), |image| format!("from {image}"));
    writeln!(out, "starts     {} ({by})", shell_words::join(&startup.command))?;
    startup.beside.iter().try_for_each(|command| writeln!(out, "           {} (beside it)", shell_words::join(command)))?;
    for requirement in &report.requirements {
        let holds = if requirement.holds { "holds here" } else { &requirement.found };
        writeln!(out, "requires   {} (from {}): {holds}", requirement.requirement, requirement.image)?;
    }
    for rule in &report.isolation {
        writeln!(out, "isolation  {} {} (from {})", rule.path, rule.mode, rule.stated_by)?;
        rule.overridden.iter().try_for_each(|other| writeln!(out, "           not {other}"))?;
    }
    report.environment.iter().try_for_each(|var| writeln!(out, "variable   {}={}", var.name, var.value))?;
    let conflicts = &report.conflicts;
    for conflict in &conflicts.files {
        let same = if conflict.identical { ", the same" } else { "" };
        let (last, others) = conflict.images.split_last().map_or(("", &[][..]), |(last, others)| (last.as_str(), others));
        writeln!(out, "file       {} of {last}, not of {}{same}", conflict.path, others.join(", "))?;
    }
    if conflicts.count > conflicts.files.len() {
        writeln!(out, "           {} more files are in several images; --conflicts lists all", conflicts.count - conflicts.files.len())?;
    }
    conflicts.not_compared.iter().try_for_each(|image| writeln!(out, "note       the files of {image} are not all known here: `turbo pull` it to compare them"))
}

fn env_mode(mode: EnvMode) -> &'static str {
    match mode {
        EnvMode::Inherit => "as the isolation of /",
        EnvMode::Full => "not the host's",
        EnvMode::WriteCopy => "the host's where no image sets it",
    }
}

fn attributes(found: Attributes) -> String {
    let all = [(found.hidden, "hidden"), (found.read_only, "read-only"), (found.no_sync, "no-sync"), (found.no_upgrade, "no-upgrade")];
    all.into_iter().filter(|(has, _)| *has).map(|(_, name)| name).collect::<Vec<_>>().join(", ")
}

/// A condition as it is written, with parentheses wherever something is nested.
fn shown(condition: &Condition) -> String {
    let joined = |parts: &[Condition], word: &str| {
        let parts: Vec<String> = parts.iter().map(|part| if matches!(part, Condition::Host(_)) { shown(part) } else { format!("({})", shown(part)) }).collect();
        if parts.is_empty() { format!("({word} of nothing)") } else { parts.join(&format!(" {word} ")) }
    };
    match condition {
        Condition::Host(text) if text.contains([' ', '(', ')', '"']) => format!("'{text}'"),
        Condition::Host(text) => text.clone(),
        Condition::All(parts) => joined(parts, "and"),
        Condition::Any(parts) => joined(parts, "or"),
        Condition::Not(part) => format!("not {}", joined(std::slice::from_ref(part), "")),
    }
}

#[cfg(test)]
mod tests {
    use super::shown;
    use crate::commands::import::condition::parse;

    #[test]
    fn conditions_are_shown_as_they_are_written() {
        for text in ["os:linux", "a:1 and b:1", "not a:1", "not (a:1 or b:1)", "(a:1 and 'kernel:>=5 <7') or (not c:1)"] {
            assert_eq!(shown(&parse(text).unwrap()), text);
        }
    }
}
