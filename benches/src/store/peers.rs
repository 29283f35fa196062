//! The other tools, and how each does what is measured: lines for bash, with `$R` the repository, `$V1` and `$V2` the trees, `$O`
//! where to restore to (an empty directory), `$W` a folder for whatever else.

use std::path::PathBuf;

/// A tool.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub(super) name: &'static str,
    /// The program that it needs.
    program: &'static str,
    /// Where to get it.
    pub(super) install: &'static str,
    /// Whether it stores what two versions have in common once.
    pub(super) deduplicates: bool,
    /// Makes an empty repository; not measured.
    pub(super) init: &'static str,
    pub(super) first: &'static str,
    pub(super) second: &'static str,
    pub(super) restore: &'static str,
    /// Brings version 1 where version 2 will be restored (not measured), and restores that.
    pub(super) update: Option<(&'static str, &'static str)>,
}

const COPY_V1: &str = "cp -a $V1/. $O/";

const ALL: [Peer; 13] = [
    Peer {
        name: "cp",
        program: "cp",
        install: "Debian: coreutils",
        deduplicates: false,
        init: "",
        first: "cp -a $V1 $R/v1",
        second: "cp -a $V2 $R/v2",
        restore: "cp -a $R/v2/. $O/",
        update: None,
    },
    Peer {
        name: "tar+zstd",
        program: "zstd",
        install: "Debian: zstd",
        deduplicates: false,
        init: "",
        first: "tar -C $V1 -cf - . | zstd -q -3 -T0 -o $R/v1.tar.zst",
        second: "tar -C $V2 -cf - . | zstd -q -3 -T0 -o $R/v2.tar.zst",
        restore: "zstd -dcq $R/v2.tar.zst | tar -C $O -xpf -",
        update: None,
    },
    Peer {
        name: "rsync",
        program: "rsync",
        install: "Debian: rsync",
        deduplicates: false,
        init: "",
        first: "rsync -a $V1/ $R/v1/",
        second: "rsync -a -c --link-dest=$R/v1 $V2/ $R/v2/",
        restore: "rsync -a $R/v2/ $O/",
        update: Some((COPY_V1, "rsync -a -c --delete --no-whole-file $R/v2/ $O/")),
    },
    Peer {
        name: "casync",
        program: "casync",
        install: "Debian: casync",
        deduplicates: true,
        init: "",
        first: "casync make --store=$R/s.castr --with=unix $R/v1.caidx $V1",
        second: "casync make --store=$R/s.castr --with=unix $R/v2.caidx $V2",
        restore: "casync extract --store=$R/s.castr --with=unix $R/v2.caidx $O/t",
        update: Some(("", "casync extract --store=$R/s.castr --with=unix --seed=$V1 $R/v2.caidx $O/t")),
    },
    Peer {
        name: "desync",
        program: "desync",
        install: "go install github.com/folbricht/desync/cmd/desync@latest",
        deduplicates: true,
        init: "mkdir -p $R/s",
        first: "desync tar -i -s $R/s $R/v1.caidx $V1",
        second: "desync tar -i -s $R/s $R/v2.caidx $V2",
        restore: "desync untar -i -s $R/s $R/v2.caidx $O",
        update: None,
    },
    Peer {
        name: "restic",
        program: "restic",
        install: "Debian: restic",
        deduplicates: true,
        init: "restic -q -r $R/r init",
        first: "cd $V1 && restic -q -r $R/r backup --tag v1 .",
        second: "cd $V2 && restic -q -r $R/r backup --tag v2 .",
        restore: "restic -q -r $R/r restore --tag v2 -t $O latest",
        update: None,
    },
    Peer {
        name: "rustic",
        program: "rustic",
        install: "cargo install --locked rustic-rs",
        deduplicates: true,
        init: "rustic -r $R/r init --log-level=error --no-progress",
        first: "cd $V1 && rustic -r $R/r --log-level=error --no-progress backup --as-path /t --tag v1 .",
        second: "cd $V2 && rustic -r $R/r --log-level=error --no-progress backup --as-path /t --tag v2 .",
        restore: "rustic -r $R/r --log-level=error --no-progress restore latest:/t $O",
        update: Some((COPY_V1, "rustic -r $R/r --log-level=error --no-progress restore --delete --verify-existing latest:/t $O")),
    },
    Peer {
        name: "conserve",
        program: "conserve",
        install: "cargo install --locked conserve",
        deduplicates: true,
        init: "conserve init $R/r",
        first: "conserve backup -P --no-stats $R/r $V1",
        second: "conserve backup -P --no-stats $R/r $V2",
        restore: "conserve restore -P $R/r $O/t",
        update: None,
    },
    Peer {
        name: "bupstash",
        program: "bupstash",
        install: "cargo install --locked bupstash",
        deduplicates: true,
        init: "bupstash new-key -o $BUPSTASH_KEY && bupstash init -r $R/r",
        first: "bupstash put -q -r $R/r --no-send-log v=1 $V1",
        second: "bupstash put -q -r $R/r --no-send-log v=2 $V2",
        restore: "bupstash restore -q -r $R/r --into $O v=2",
        update: Some((COPY_V1, "bupstash restore -q -r $R/r --into $O v=2")),
    },
    Peer {
        name: "borg",
        program: "borg",
        install: "Debian: borgbackup",
        deduplicates: true,
        init: "borg init -e none $R/r",
        first: "cd $V1 && borg create -C zstd,3 $R/r::v1 .",
        second: "cd $V2 && borg create -C zstd,3 $R/r::v2 .",
        restore: "cd $O && borg extract $R/r::v2",
        update: None,
    },
    Peer {
        name: "ostree",
        program: "ostree",
        install: "Debian: ostree",
        deduplicates: true,
        init: "ostree --repo=$R/r init --mode=archive",
        first: "ostree --repo=$R/r commit -b v1 --tree=dir=$V1 --no-xattrs --fsync=0",
        second: "ostree --repo=$R/r commit -b v2 --tree=dir=$V2 --no-xattrs --fsync=0",
        restore: "ostree --repo=$O/.c init --mode=bare && ostree --repo=$O/.c pull-local --disable-fsync $R/r v2 && ostree --repo=$O/.c checkout -H --fsync=0 v2 $O/t",
        update: Some((
            "ostree --repo=$O/.c init --mode=bare && ostree --repo=$O/.c pull-local --disable-fsync $R/r v1",
            "ostree --repo=$O/.c pull-local --disable-fsync $R/r v2 && ostree --repo=$O/.c checkout -H --fsync=0 v2 $O/t",
        )),
    },
    Peer {
        name: "zstd --patch-from",
        program: "zstd",
        install: "Debian: zstd",
        deduplicates: false,
        init: "",
        first: "tar --sort=name -C $V1 -cf $W/p1.tar . && zstd -q -3 -T0 --long=30 $W/p1.tar -o $R/v1.tar.zst",
        second: "tar --sort=name -C $V2 -cf $W/p2.tar . && zstd -q -3 -T0 --long=30 --patch-from=$W/p1.tar $W/p2.tar -o $R/v2.patch",
        restore: "zstd -dq --long=30 --patch-from=$W/p1.tar $R/v2.patch -c | tar -C $O -xpf -",
        update: None,
    },
    Peer { name: "find -ls", program: "find", install: "Debian: findutils", deduplicates: false, init: "", first: "", second: "", restore: "", update: None },
];

/// The peers that are wanted and here, and those that are wanted and not here.
pub(super) fn installed(wanted: Option<&[String]>) -> (Vec<Peer>, Vec<Peer>) {
    let is_wanted = |peer: &&Peer| wanted.is_none_or(|wanted| wanted.iter().any(|name| name == peer.name));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let is_here = |peer: &Peer| folders.iter().any(|folder| folder.join(peer.program).is_file());
    ALL.iter().filter(is_wanted).copied().partition(is_here)
}

/// Whether a tool of this name stores what versions have in common once.
pub(super) fn deduplicates(tool: &str) -> bool {
    ALL.iter().any(|peer| peer.name == tool && peer.deduplicates)
}
