//! The applications that are launched: a Python program that imports scipy, the TypeScript compiler,
//! and a small Java program. Each has a root filesystem of its own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::rootfs::{in_root, run};

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

    /// The Debian packages of its root filesystem. With a dataset, what the dataset brings is left out.
    pub fn packages(self, with_dataset: bool) -> &'static [&'static str] {
        match (self, with_dataset) {
            (Self::Scipy, false) => &["python3-scipy"],
            (Self::Scipy, true) => &["python3-numpy", "libstdc++6"],
            (Self::Tsc, false) => &["nodejs", "node-typescript"],
            (Self::Tsc, true) => &["nodejs"],
            (Self::Java, false) => &["openjdk-17-jre-headless"],
            (Self::Java, true) => &[],
        }
    }

    /// A whole root filesystem that the dataset has for it.
    pub fn dataset_root(self, dataset: &Path) -> Option<PathBuf> {
        (self == Self::Java).then(|| dataset.join("img-java/v1"))
    }

    /// Brings the unpacked packages into the state in which their installation scripts would leave
    /// them, as far as a launch sees it, and adds the program.
    ///
    /// # Errors
    /// If the dataset lacks a tree, or a program of the root filesystem does not run.
    pub fn finish(self, root: &Path, dataset: Option<&Path>) -> Result<()> {
        let app = root.join("app");
        fs::create_dir_all(&app).with_context(|| format!("cannot create {}", app.display()))?;
        match self {
            Self::Scipy => {
                write(&app.join("main.py"), PYTHON_PROGRAM)?;
                if let Some(dataset) = dataset {
                    let library = root.join("usr/local/lib").join(python_version(root)?).join("dist-packages");
                    copy_entries(&dataset.join("scipy/1.15.2"), &library)?;
                }
                // What the packages' scripts do: without it Python would compile every module at every start.
                run(in_root(root, "/usr/bin/python3", &["-m", "compileall", "-q", "-j", "0", "/usr/lib", "/usr/local/lib"])?)
            }
            Self::Tsc => {
                write(&app.join("hello.ts"), TYPESCRIPT_PROGRAM)?;
                dataset.map_or(Ok(()), |dataset| copy_entries(&dataset.join("jsapp/v1"), &app))
            }
            Self::Java => {
                let java = java_home(root)?;
                // The archive of loaded classes, which the package makes when it is installed.
                if !root.join(&java[1..]).join("lib/server/classes.jsa").exists() {
                    run(in_root(root, &format!("{java}/bin/java"), &["-Xshare:dump"])?)?;
                }
                compile_java(&app)
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

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text.trim_start()).with_context(|| format!("cannot write {}", path.display()))
}

/// Copies all entries of a folder into another, with their times and modes.
fn copy_entries(from: &Path, to: &Path) -> Result<()> {
    if !from.is_dir() {
        bail!("the dataset has no {}", from.display());
    }
    fs::create_dir_all(to).with_context(|| format!("cannot create {}", to.display()))?;
    let mut copy = Command::new("cp");
    copy.args(["-a", "--reflink=auto"]).arg(from.join(".")).arg(to);
    run(copy)
}

fn python_version(root: &Path) -> Result<String> {
    let python = fs::read_link(root.join("usr/bin/python3")).context("no python3 in the root filesystem")?;
    let name = python.file_name().and_then(|name| name.to_str()).context("python3 leads to no version")?;
    Ok(name.to_owned())
}

/// The Java runtime's folder, as seen from inside.
fn java_home(root: &Path) -> Result<String> {
    let folder = root.join("usr/lib/jvm");
    let entries = fs::read_dir(&folder).with_context(|| format!("cannot list {}", folder.display()))?;
    let home = entries.flatten().find(|entry| entry.path().join("bin/java").exists() && entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let home = home.context("no Java runtime in the root filesystem")?;
    Ok(format!("/usr/lib/jvm/{}", home.file_name().display()))
}

/// Compiles the program if this machine has a compiler; else the application is the runtime alone.
fn compile_java(app: &Path) -> Result<()> {
    let present = Command::new("javac").arg("-version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !present.is_ok_and(|status| status.success()) {
        return Ok(());
    }
    let source = app.join("Main.java");
    write(&source, JAVA_PROGRAM)?;
    let mut compiler = Command::new("javac");
    compiler.args(["--release", "17", "-d"]).arg(app).arg(&source);
    run(compiler)
}
