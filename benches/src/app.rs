//! The applications that are launched: a Python program that imports scipy, the TypeScript compiler,
//! and a small Java program. Each has a root filesystem of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::next_version;
use crate::rootfs::{self, Recipe, copy_entries, in_root, run, run_once};

/// An application to launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum App {
    /// Python that imports parts of scipy and solves small problems with them.
    Scipy,
    /// The TypeScript compiler on one small file.
    Tsc,
    /// A small Java program; without a compiler on this machine, the runtime listing its modules.
    Java,
}

/// Which of two versions of an application.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    /// The one that is out.
    First,
    /// The next.
    Second,
}

impl Version {
    /// The name of its tree in the dataset, where that is not the version's own.
    fn tree(self) -> &'static str {
        if self == Self::First { "v1" } else { "v2" }
    }
}

const PYTHON_PROGRAM: &str = r#"
import numpy as np
import scipy.linalg, scipy.optimize, scipy.interpolate, scipy.integrate, scipy.sparse.linalg, scipy.spatial

a = np.random.default_rng(1).standard_normal((120, 120))
lu = scipy.linalg.lu_factor(a)
x = scipy.linalg.lu_solve(lu, np.ones(120))
assert np.allclose(a @ x, 1)
best = scipy.optimize.minimize(scipy.optimize.rosen, [1.3, 0.7, 0.8], method="BFGS")
assert np.allclose(best.x, 1, atol=1e-3)
area, _ = scipy.integrate.quad(np.sin, 0, np.pi)
assert abs(area - 2) < 1e-9
spline = scipy.interpolate.CubicSpline(range(10), [v * v for v in range(10)])
assert abs(spline(2.5) - 6.25) < 0.1
tree = scipy.spatial.cKDTree(np.eye(3))
print("scipy", scipy.__version__, "ok", tree.n)
"#;

const TYPESCRIPT_PROGRAM: &str = r#"
interface Shape { readonly name: string; area(): number }
class Circle implements Shape {
    readonly name = "circle";
    constructor(private radius: number) {}
    area(): number { return Math.PI * this.radius ** 2; }
}
const largest = <T extends Shape>(shapes: T[]): T | undefined => shapes.sort((a, b) => b.area() - a.area())[0];
console.log(largest([new Circle(1), new Circle(2)])?.name);
"#;

const JAVA_PROGRAM: &str = r#"
import java.time.Duration;
import java.util.*;
import java.util.regex.Pattern;
import java.util.stream.*;

public class Main {
    record Word(String text, long count) {}

    public static void main(String[] args) {
        var words = Pattern.compile("\\W+").splitAsStream("a launch of a program is a walk through its files");
        Map<String, Long> counts = words.collect(Collectors.groupingBy(word -> word, TreeMap::new, Collectors.counting()));
        var top = counts.entrySet().stream().map(e -> new Word(e.getKey(), e.getValue())).max(Comparator.comparingLong(Word::count));
        System.out.println("java ok " + top.orElseThrow() + " " + Duration.ofMillis(1500));
    }
}
"#;

impl App {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Scipy, Self::Tsc, Self::Java];

    /// A short name, also that of its image.
    pub fn name(self) -> &'static str {
        match self {
            Self::Scipy => "scipy",
            Self::Tsc => "tsc",
            Self::Java => "java",
        }
    }

    /// The root filesystem of a version, built below `cache` or found there. With a dataset the versions are those that
    /// the dataset brings; else the second is the first with files moved, changed and renamed.
    ///
    /// # Errors
    /// If it cannot be built, or the application does not run in it.
    pub fn root(self, version: Version, dataset: Option<&Path>, cache: &Path) -> Result<PathBuf> {
        let suffix = if version == Version::Second { "-2" } else { "" };
        let name = format!("{}{}{suffix}", self.name(), if dataset.is_some() { "-dataset" } else { "" });
        let derived = version == Version::Second && dataset.is_none();
        let base = match derived {
            true => Some(self.root(Version::First, None, cache)?),
            false => dataset.filter(|_| self == Self::Java).map(|dataset| dataset.join("img-java").join(version.tree())),
        };
        let packages = if derived { &[] } else { self.packages(dataset.is_some()) };
        let recipe = Recipe { name: &name, base, packages, made_from: format!("dataset {dataset:?}") };
        rootfs::build(&recipe, cache, |root| {
            if derived {
                next_version::derive(root)?
            } else {
                self.finish(root, version, dataset)?
            };
            run_once(root, &self.command(root)?).with_context(|| format!("{} does not run in its root filesystem", self.name()))
        })
    }

    /// The Debian packages of its root filesystem. With a dataset, what the dataset brings is left out.
    fn packages(self, with_dataset: bool) -> &'static [&'static str] {
        match (self, with_dataset) {
            (Self::Scipy, false) => &["python3-scipy"],
            (Self::Scipy, true) => &["python3-numpy", "libstdc++6"],
            (Self::Tsc, false) => &["nodejs", "node-typescript"],
            (Self::Tsc, true) => &["nodejs"],
            (Self::Java, false) => &["openjdk-17-jre-headless"],
            (Self::Java, true) => &[],
        }
    }

    /// Brings the unpacked packages into the state in which their installation scripts would leave
    /// them, as far as a launch sees it, and adds the program.
    fn finish(self, root: &Path, version: Version, dataset: Option<&Path>) -> Result<()> {
        let app = root.join("app");
        fs::create_dir_all(&app).with_context(|| format!("cannot create {}", app.display()))?;
        match self {
            Self::Scipy => {
                write(&app.join("main.py"), PYTHON_PROGRAM)?;
                if let Some(dataset) = dataset {
                    let library = root.join("usr/local/lib").join(python_version(root)?).join("dist-packages");
                    let tree = if version == Version::First { "1.15.2" } else { "1.15.3" };
                    copy_entries(&dataset.join("scipy").join(tree), &library)?;
                }
                compile_python(root)
            }
            Self::Tsc => {
                write(&app.join("hello.ts"), TYPESCRIPT_PROGRAM)?;
                dataset.map_or(Ok(()), |dataset| copy_entries(&dataset.join("jsapp").join(version.tree()), &app))
            }
            Self::Java => {
                let java = java_home(root)?;
                // The archive of loaded classes, which the package makes when it is installed.
                if !root.join(&java[1..]).join("lib/server/classes.jsa").exists() {
                    run(in_root(root, &format!("{java}/bin/java"), &["-Xshare:dump"])?)?;
                }
                compile_java(&app, "Main", JAVA_PROGRAM).map(drop)
            }
        }
    }

    /// How it is started, by paths inside its root filesystem; no word has a space in it.
    ///
    /// # Errors
    /// If the root filesystem does not hold the application.
    pub fn command(self, root: &Path) -> Result<Vec<String>> {
        let words: Vec<&str> = match self {
            Self::Scipy => vec!["/usr/bin/python3", "/app/main.py"],
            Self::Tsc => {
                let places = ["/app/node_modules/typescript/bin/tsc", "/usr/share/nodejs/typescript/bin/tsc"];
                let tsc = places.into_iter().find(|place| root.join(&place[1..]).exists()).context("no TypeScript compiler in the root filesystem")?;
                vec!["/usr/bin/node", tsc, "--outDir", "/tmp/tsc", "/app/hello.ts"]
            }
            Self::Java => {
                let java = format!("{}/bin/java", java_home(root)?);
                let rest: &[&str] = if root.join("app/Main.class").exists() { &["-cp", "/app", "Main"] } else { &["--list-modules"] };
                return Ok(std::iter::once(java).chain(rest.iter().map(|word| (*word).to_owned())).collect());
            }
        };
        Ok(words.into_iter().map(str::to_owned).collect())
    }
}

pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text.trim_start()).with_context(|| format!("cannot write {}", path.display()))
}

/// What the packages' scripts do: without it Python would compile every module at every start.
pub(crate) fn compile_python(root: &Path) -> Result<()> {
    run(in_root(root, "/usr/bin/python3", &["-m", "compileall", "-q", "-j", "0", "/usr/lib", "/usr/local/lib"])?)
}

fn python_version(root: &Path) -> Result<String> {
    let python = fs::read_link(root.join("usr/bin/python3")).context("no python3 in the root filesystem")?;
    let name = python.file_name().and_then(|name| name.to_str()).context("python3 leads to no version")?;
    Ok(name.to_owned())
}

/// The Java runtime's folder, as seen from inside.
pub(crate) fn java_home(root: &Path) -> Result<String> {
    let folder = root.join("usr/lib/jvm");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let home = entries.flatten().find(|entry| entry.path().join("bin/java").exists() && entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let home = home.context("no Java runtime in the root filesystem")?;
    Ok(format!("/usr/lib/jvm/{}", home.file_name().display()))
}

/// Compiles a program if this machine has a compiler, and says whether it did.
pub(crate) fn compile_java(app: &Path, class: &str, text: &str) -> Result<bool> {
    let present = Command::new("javac").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !present.is_ok_and(|status| status.success()) {
        return Ok(false);
    }
    let source = app.join(format!("{class}.java"));
    write(&source, text)?;
    let mut compiler = Command::new("javac");
    compiler.args(["--release", "17", "-d"]).arg(app).arg(&source);
    run(compiler).map(|()| true)
}
